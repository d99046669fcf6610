"""A network in other programs: the same digit for each of the 10,000 test images, and the same logits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import DATA, Run
from test_networks import Net
from torch import Tensor

from mnist_lightning import DigitClassifier, LeNet, archive
from mnist_lightning.cli import main

BEST = Path("lightning_logs/version_0/checkpoints/best.ckpt")


ONE_VIEW, NINE_VIEWS = "--model.network.shift=0", "--model.network.shift=0.75"


@pytest.fixture(params=[ONE_VIEW])
def checkpoint(run: Run, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short run of ConvNet, whose layers normalise, with a normalisation of its own. Trained once, then copied."""
    kept = tmp_path_factory.getbasetemp() / request.param
    if not kept.exists():
        network = ["--model.network=ConvNet", request.param, "--model.optimizer.lr=0.1"]
        run("fit", *network, "--data.mean=0.1", "--data.std=0.3", f"--trainer.default_root_dir={kept}")
    shutil.copytree(kept / "lightning_logs", "lightning_logs")
    return BEST


thoroughly = pytest.mark.parametrize(
    ("checkpoint", "images"),
    [
        (ONE_VIEW, 1_000),
        pytest.param(ONE_VIEW, 10_000, marks=pytest.mark.slow),
        pytest.param(NINE_VIEWS, 1_000, marks=pytest.mark.slow),
    ],
    indirect=True,
)


@pytest.fixture(scope="module")  # read before others take the place of the archives
def images(request: pytest.FixtureRequest) -> Tensor:
    return archive.read(DATA, "test")[0][: getattr(request, "param", 10_000)]


def expected(images: Tensor, mean: float = 0.1, std: float = 0.3) -> Tensor:
    model = DigitClassifier.load_from_checkpoint(BEST).eval()
    with torch.no_grad():
        return torch.cat([model((batch[:, None] / 255 - mean) / std) for batch in images.split(1_000)])


def check(logits: Tensor, probabilities: Tensor, images: Tensor) -> None:
    checkpoints = expected(images)
    assert logits.shape == probabilities.shape == (len(images), 10)
    assert logits.dtype == probabilities.dtype == torch.float32
    assert torch.equal(logits.argmax(1), checkpoints.argmax(1))
    assert (logits - checkpoints).abs().max() < 1e-4
    temperature = torch.load(BEST, weights_only=True)["calibration"]["temperature"]
    assert temperature != 1
    assert torch.allclose(probabilities, (checkpoints / temperature).softmax(1), atol=1e-5)


@thoroughly
def test_onnx(checkpoint: Path, images: Tensor) -> None:
    main(["export", "--ckpt_path=best", "--output=digits.onnx"])
    session = onnxruntime.InferenceSession("digits.onnx")
    (input_,) = session.get_inputs()
    assert (input_.name, input_.type, input_.shape[1:]) == ("images", "tensor(uint8)", [28, 28])
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    outputs = [session.run(None, {"images": batch.numpy()}) for batch in images.split(1_000)]
    logits, probabilities = (np.concatenate(output) for output in zip(*outputs, strict=True))
    check(torch.from_numpy(logits), torch.from_numpy(probabilities), images)
    one, _ = session.run(None, {"images": images[:1].numpy()})
    assert np.allclose(one, logits[:1], atol=1e-4)
    # No other file, where ONNX could keep weights.
    assert sorted(path.name for path in Path().glob("digits*")) == ["digits.onnx", "digits.onnx.json"]


@thoroughly
def test_torch_export(checkpoint: Path, images: Tensor) -> None:
    main(["export", "--ckpt_path=best", "--output=digits.pt2"])
    module = torch.export.load("digits.pt2").module()
    with torch.no_grad():
        logits, probabilities = zip(*[module(batch) for batch in images.split(1_000)], strict=True)
    check(torch.cat(logits), torch.cat(probabilities), images)


@pytest.mark.slow
def test_torch_export_in_a_process_that_knows_nothing_of_this_project(checkpoint: Path, images: Tensor) -> None:
    main(["export", "--ckpt_path=best", "--output=digits.pt2"])
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


def test_the_tutorials_net_takes_the_weights(run: Run, images: Tensor) -> None:
    run("fit")
    main(["export", "--ckpt_path=best", "--output=mnist_net.pth"])
    net = Net()
    net.load_state_dict(torch.load("mnist_net.pth"))
    with torch.no_grad():
        logits = net((images[:, None] / 255 - 0.5) / 0.5)
    assert torch.allclose(logits, expected(images, 0.5, 0.5), atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".onnx", ".pt2"])
def test_the_file_beside_says_what_it_is(suffix: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", f"--output=digits{suffix}"])
    said = json.loads(Path(f"digits{suffix}.json").read_text())
    content = torch.load(BEST, weights_only=True)
    assert said["file"] == f"digits{suffix}"
    assert said["validation"] == content["calibration"]
    assert said["validation"]["accuracy"] == pytest.approx(content["callbacks"]["CheckpointWriter"]["best_score"])
    assert said["validation"]["images"] == 100
    assert (said["run"], said["checkpoint"]) == ("lightning_logs/version_0", str(BEST))
    assert said["step"] == said["validation"]["step"] == content["global_step"]
    assert said["network"] == "mnist_lightning.networks.ConvNet"
    assert said["arguments"] == {"dropout": 0.25, "shift": 0.0}
    if suffix == ".pth":
        assert said["inputs"]["images"]["shape"] == ["N", 1, 28, 28]
        assert "- 0.1) / 0.3" in said["inputs"]["images"]["values"]
    else:
        assert said["inputs"]["images"]["dtype"] == "uint8"
        assert list(said["outputs"]) == ["logits", "probabilities"]
    assert f"digits{suffix}.json" in capsys.readouterr().out


def test_nothing_is_replaced_unless_it_is_asked_for(checkpoint: Path) -> None:
    Path("digits.pth").write_text("mine")
    with pytest.raises(SystemExit, match=r"--output is digits\.pth, which is there already; .* or --overwrite"):
        main(["export", "--output=digits.pth"])
    assert Path("digits.pth").read_text() == "mine"
    assert not Path("digits.pth.json").exists()
    main(["export", "--output=digits.pth", "--overwrite"])
    assert "conv1.weight" not in torch.load("digits.pth")  # ConvNet's are called otherwise
    Path("other.pth.json").write_text("mine")
    with pytest.raises(SystemExit, match=r"other\.pth\.json, which is there already"):
        main(["export", "--output=other.pth"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=digits.tflite"], "--output is digits.tflite; expected a name that ends in .pth, .onnx, .pt2"),
        (["--output=digits"], "--output is digits; expected a name that ends in .pth, .onnx, .pt2"),
        (["--output=no/digits.onnx"], "--output is no/digits.onnx, and there is no folder no"),
        ([], "the following arguments are required: --output"),
        (["--output=digits.pth", "--ckpt_path=missing.ckpt"], "missing.ckpt (--ckpt_path) is not a file"),
    ],
)
def test_what_cant_be_done_is_said(
    arguments: list[str], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--trainer.max_epochs=1")
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code
    assert message in f"{capsys.readouterr().err}{stop.value.code}"


class Branching(LeNet):
    """A network that computes one thing or another, by the images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_that_torch_cant_follow_is_named(suffix: str, run: Run) -> None:
    run("fit", "--trainer.max_epochs=1", "--model.network=test_export.Branching", "--pictures=false")
    with pytest.raises(SystemExit, match=r"torch\.export can't follow the network .*; a \.pth file takes any"):
        main(["export", f"--output=digits{suffix}"])
    assert list(Path().glob("digits*")) == []
    main(["export", "--output=digits.PTH"])
    assert "conv1.weight" in torch.load("digits.PTH")


def test_a_package_that_is_missing_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fit", "--trainer.max_epochs=1")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r"pip install 'mnist-lightning\[export\]'"):
        main(["export", "--output=digits.onnx"])
    assert list(Path().glob("digits*")) == []
    assert list(Path().glob("*.partial")) == []
