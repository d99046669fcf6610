"""A network in other programs: the same digit in each of the 10,000 test images, and the same logits."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import BEST, DATA, FIRST, Branching, Net, load
from torch import Tensor

from mnist_lightning import DigitClassifier, DigitReader, LeNet, archive
from mnist_lightning.cli import main
from mnist_lightning.errors import OutputError
from mnist_lightning.use.export import FORMATS

ONE_VIEW, NINE_VIEWS = "--model.network.shift=0", "--model.network.shift=0.75"


@pytest.fixture(scope="module", params=[ONE_VIEW])
def convnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of a ConvNet, which has batch normalization, trained on images with an unusual mean and std."""
    folder = tmp_path_factory.mktemp("convnet")
    network = ["--model.network=ConvNet", request.param, "--model.optimizer.lr=0.1", "--figures=false"]
    data = [f"--data.root={DATA}", "--data.mean=0.1", "--data.std=0.3", "--data.val_size=100"]
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=10", "--trainer.log_every_n_steps=10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mnist_lightning"])
        main(["fit", *network, *data, *quick, f"--trainer.default_root_dir={folder}"])
    return folder / "lightning_logs"


@pytest.fixture
def checkpoint(convnet: Path, workplace: Path) -> Path:
    """The checkpoint of a ConvNet."""
    shutil.copytree(convnet, "lightning_logs")
    return BEST


@pytest.fixture
def lenet(trained: Path, workplace: Path) -> Path:
    """The checkpoint of a LeNet."""
    shutil.copytree(trained, "lightning_logs")
    return BEST


thoroughly = pytest.mark.parametrize(
    ("convnet", "images"),
    [
        (ONE_VIEW, 1_000),
        pytest.param(ONE_VIEW, 10_000, marks=pytest.mark.slow),
        pytest.param(NINE_VIEWS, 1_000, marks=pytest.mark.slow),
    ],
    indirect=True,
)


@pytest.fixture(scope="module")  # read before a test replaces the archives
def images(request: pytest.FixtureRequest) -> Tensor:
    return archive.read(DATA, "test")[0][: getattr(request, "param", 10_000)]


def expected(images: Tensor, mean: float = 0.1, std: float = 0.3) -> Tensor:
    model = DigitClassifier.load_from_checkpoint(BEST).eval()
    with torch.no_grad():
        return torch.cat([model((batch[:, None] / 255 - mean) / std) for batch in images.split(500)])


def check(logits: Tensor, probabilities: Tensor, images: Tensor) -> None:
    logits_of_checkpoint = expected(images)
    assert logits.shape == probabilities.shape == (len(images), 10)
    assert logits.dtype == probabilities.dtype == torch.float32
    assert torch.equal(logits.argmax(1), logits_of_checkpoint.argmax(1))
    assert (logits - logits_of_checkpoint).abs().max() < 1e-4
    assert torch.allclose(probabilities, logits_of_checkpoint.softmax(1), atol=1e-5)


def description(file: str) -> dict[str, Any]:
    """Check that the JSON file of an exported network says where the network comes from, and return its content."""
    described = json.loads(Path(f"{file}.json").read_text())
    content = load(BEST)
    assert described["file"] == file
    assert described["validation"] == content["calibration"]
    best_score = content["callbacks"]["CheckpointWriter"]["best_score"]
    assert described["validation"]["accuracy"] == pytest.approx(best_score)
    assert described["validation"]["images"] == 100
    assert (described["run"], described["checkpoint"]) == (str(FIRST), str(BEST))
    assert described["step"] == described["validation"]["step"] == content["global_step"]
    assert described["network"] == "mnist_lightning.networks.ConvNet"
    arguments = content["hyper_parameters"]["network"]["init_args"]
    assert described["arguments"] == json.loads(json.dumps(arguments))  # JSON knows no tuples
    return described


def check_interface(file: str) -> None:
    """Check that the description has the inputs and outputs of a file with normalization and softmax."""
    described = description(file)
    assert described["inputs"]["images"]["dtype"] == "uint8"
    assert list(described["outputs"]) == ["logits", "probabilities"]


@thoroughly
def test_onnx_gives_the_same_logits_and_probabilities(checkpoint: Path, images: Tensor) -> None:
    main(["export", "digits.onnx", "--ckpt_path=best"])
    session = onnxruntime.InferenceSession("digits.onnx")
    (input_,) = session.get_inputs()
    assert (input_.name, input_.type, input_.shape[1:]) == ("images", "tensor(uint8)", [28, 28])
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    outputs = [session.run(None, {"images": batch.numpy()}) for batch in images.split(1_000)]
    logits, probabilities = (np.concatenate(output) for output in zip(*outputs, strict=True))
    check(torch.from_numpy(logits), torch.from_numpy(probabilities), images)
    one, _ = session.run(None, {"images": images[:1].numpy()})
    assert np.allclose(one, logits[:1], atol=1e-4)
    # ONNX could also keep weights in another file.
    assert sorted(path.name for path in Path().glob("digits*")) == ["digits.onnx", "digits.onnx.json"]
    check_interface("digits.onnx")


@thoroughly
def test_torch_export_gives_the_same_logits_and_probabilities(checkpoint: Path, images: Tensor) -> None:
    main(["export", "digits.pt2", "--ckpt_path=best"])
    module = torch.export.load("digits.pt2").module()
    with torch.no_grad():
        logits, probabilities = zip(*[module(batch) for batch in images.split(1_000)], strict=True)
    check(torch.cat(logits), torch.cat(probabilities), images)
    check_interface("digits.pt2")


@pytest.mark.slow
def test_torch_export_needs_nothing_of_this_project(checkpoint: Path, images: Tensor) -> None:
    main(["export", "digits.pt2", "--ckpt_path=best"])
    torch.save(images, "images.pt")
    code = """
import sys
import torch
module = torch.export.load("digits.pt2").module()
images = torch.load("images.pt")
torch.save((module(images), module(images[:1])), "outputs.pt")
assert "mnist_lightning" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (logits, probabilities), (one, _) = torch.load("outputs.pt")
    check(logits.detach(), probabilities.detach(), images)
    assert torch.allclose(one, logits[:1], atol=1e-4)


def test_the_network_of_the_tutorial_loads_the_weights(lenet: Path, images: Tensor) -> None:
    main(["export", "mnist_net.pth", "--ckpt_path=best"])
    net = Net()
    net.load_state_dict(torch.load("mnist_net.pth"))
    with torch.no_grad():
        logits = torch.cat([net((batch[:, None] / 255 - 0.5) / 0.5) for batch in images.split(500)])
    assert torch.allclose(logits, expected(images, 0.5, 0.5), atol=1e-5)


def test_pth_files_come_with_a_description(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "digits.pth"])
    described = description("digits.pth")
    blocks = [[16], [48, 48], [96, 96, 96]]
    assert described["arguments"] == {"blocks": blocks, "dropout": 0.25, "jitter": 0, "shift": 0.0}
    assert described["inputs"]["images"]["shape"] == ["N", 1, 28, 28]
    assert "- 0.1) / 0.3" in described["inputs"]["images"]["values"]
    assert capsys.readouterr().out.splitlines() == [
        f"Checkpoint: {BEST}",
        "Written:    digits.pth, described in digits.pth.json",
    ]


def test_files_are_replaced_only_with_overwrite(lenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def export(name: str, *flags: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["export", name, *flags])
        assert stop.value.code == 2
        return capsys.readouterr().err

    Path("digits.pth").write_text("mine")
    assert "FILE: digits.pth already exists; expected a new name, or --overwrite" in export("digits.pth")
    assert Path("digits.pth").read_text() == "mine"
    assert not Path("digits.pth.json").exists()
    main(["export", "digits.pth", "--overwrite"])
    assert torch.load("digits.pth").keys() == Net().state_dict().keys()
    Path("other.pth.json").write_text("mine")
    assert "other.pth.json already exists; expected a new name, or --overwrite" in export("other.pth")
    assert Path("other.pth.json").read_text() == "mine"
    assert not Path("other.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits.tflite"], "digits.tflite has an unknown format; expected a name that ends in .pth, .onnx, .pt2"),
        (["digits"], "digits has an unknown format; expected a name that ends in .pth, .onnx, .pt2"),
        (["no/digits.onnx"], "the folder no does not exist"),
        ([], "the following arguments are required: FILE"),
        (["--output=digits.pth"], "the following arguments are required: FILE"),
        ([f"{'x' * 300}.pth"], "can't be written: File name too long"),
        (["digits.pth", "--ckpt_path=missing.ckpt"], "--ckpt_path: missing.ckpt is not a file; expected best, last"),
    ],
)
def test_an_error_names_the_argument_and_what_was_found(
    arguments: list[str], message: str, lenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code
    assert message in f"{capsys.readouterr().err}{stop.value.code}"
    assert sorted(Path().rglob("*")) == before


class ByNumber(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * images.mean().item() if images.mean().item() > 0 else images)


class ByCount(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * len(images.nonzero().tolist())


class OneByOne(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([LeNet.forward(self, image[None]) for image in images])


class AtRandom(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * random.random()


class Numpy(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(images.numpy()))


BY_IMAGES = r".*\.py, line \d+: the images decide which steps it computes"


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Branching, BY_IMAGES),
        (ByNumber, BY_IMAGES),
        (ByCount, BY_IMAGES),
        (OneByOne, "it fixes the number of images"),
        (AtRandom, "the exported network gives other logits, for example because it uses random numbers"),
        (Numpy, r"test_export\.py, line \d+: \.numpy\(\) is not supported for tensor subclasses\."),
    ],
)
def test_what_torch_cant_follow_is_said_in_a_line(
    network: type[LeNet], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = rf"torch\.export can't follow the network \({reason}\); a \.pth file can hold any network"
    with pytest.raises(OutputError) as caught:
        FORMATS[".pt2"](DigitReader(network()))
    assert re.fullmatch(message, str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_what_onnx_cant_hold_is_said_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Bessel(LeNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(torch.special.bessel_j0(images))

    message = r"ONNX can't hold the network \(.*bessel_j0.*\); expected a \.pt2 or a \.pth file"
    with pytest.raises(OutputError) as caught:
        FORMATS[".onnx"](DigitReader(Bessel()))
    assert re.fullmatch(message, str(caught.value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_that_torch_cant_follow_is_refused_except_in_pth_files(suffix: str, lenet: Path) -> None:
    content = load(BEST)
    content["hyper_parameters"]["network"]["class_path"] = "helpers.Branching"
    torch.save(content, BEST)
    with pytest.raises(
        SystemExit, match=r"torch\.export can't follow the network .*; a \.pth file can hold any network"
    ):
        main(["export", f"digits{suffix}"])
    assert list(Path().glob("digits*")) == []
    main(["export", "digits.PTH"])
    assert "conv1.weight" in torch.load("digits.PTH")


def test_a_missing_package_is_named(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r"ONNX files need onnxscript: pip install 'mnist-lightning\[export\]'"):
        main(["export", "digits.onnx"])
    assert list(Path().glob("digits*")) == []
    assert list(Path().glob("*.partial")) == []
