"""`DigitReader`: a trained network as a Python program uses it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import BEST, DATA, FIRST, LAST, ROOT, SECOND, load
from lightning.pytorch import Trainer
from torch import Tensor

from mnist_lightning import DigitClassifier, DigitReader, LeNet, MNISTDataModule, archive
from mnist_lightning.calibration import Calibration
from mnist_lightning.cli import main
from mnist_lightning.errors import CheckpointError
from mnist_lightning.networks import ConvNet
from mnist_lightning.use.reader import Prediction

PHOTO = ROOT / "docs/digits/seven.png"


@pytest.fixture
def logs(trained: Path, workplace: Path) -> Path:
    """The logs of a trained LeNet, in the current folder."""
    shutil.copytree(trained, "lightning_logs")
    return Path("lightning_logs")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return archive.read(DATA, "test")[0][:1_100]


def change(checkpoint: Path = BEST, **values: Any) -> None:
    """Replace entries of a checkpoint."""
    torch.save(load(checkpoint) | values, checkpoint)


def test_each_name_of_a_checkpoint_can_be_loaded(logs: Path) -> None:
    shutil.copytree(FIRST, SECOND)
    (SECOND / "checkpoints/last.ckpt").unlink()
    names: dict[str | Path, Path] = {
        "best": SECOND / "checkpoints/best.ckpt",
        "last": LAST,  # of the newest run that has one
        FIRST: BEST,
        str(FIRST): BEST,
        "version_0": BEST,
        LAST: LAST,
    }
    for name, checkpoint in names.items():
        assert DigitReader.load(name).source["checkpoint"] == str(checkpoint)
    assert DigitReader.load().source["checkpoint"] == str(names["best"])
    logs.rename("elsewhere")
    reader = DigitReader.load("version_0", logs="elsewhere")
    assert reader.source["checkpoint"] == "elsewhere/version_0/checkpoints/best.ckpt"


def test_a_reader_knows_where_its_network_comes_from(logs: Path) -> None:
    content = load(BEST)
    reader = DigitReader.load("best")
    assert reader.source == {
        "network": "mnist_lightning.networks.LeNet",
        "arguments": {},
        "validation": content["calibration"],
        "run": str(FIRST),
        "checkpoint": str(BEST),
        "step": 400,
    }
    assert reader.calibration == Calibration(**content["calibration"])
    shutil.copy(BEST, "copy.ckpt")
    assert DigitReader.load("copy.ckpt").source["run"] is None


def test_a_reader_computes_what_the_classifier_computes(logs: Path, images: Tensor) -> None:
    content = load(BEST)
    change(datamodule_hyper_parameters=content["datamodule_hyper_parameters"] | {"mean": 0.45, "std": 0.6})
    pixels, _ = MNISTDataModule(mean=0.45, std=0.6).on_after_batch_transfer((images, images), 0)
    reader = DigitReader.load(BEST)
    with torch.no_grad():
        expected = DigitClassifier.load_from_checkpoint(BEST).eval()(pixels)
        logits, probabilities = reader(images)
    assert logits.shape == probabilities.shape == (1_100, 10)
    assert logits.dtype == probabilities.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.equal(probabilities, logits.softmax(1))
    assert torch.allclose(reader.probabilities(images), probabilities, atol=1e-6)  # computed in several batches


def test_a_prediction_holds_the_two_most_likely_digits(logs: Path, images: Tensor) -> None:
    reader = DigitReader.load("best")
    predictions = reader.predict(images[:300], [f"{number}" for number in range(300)])
    probabilities, digits = reader.probabilities(images[:300]).sort(descending=True)
    assert reader.calibration
    for number, row in enumerate(predictions):
        sure = probabilities[number, 0] >= reader.calibration.threshold
        assert row.file == str(number)
        assert row.answer == (str(row.digit) if sure else "unsure")
        assert [row.digit, row.second_digit] == digits[number, :2].tolist()
        assert [row.confidence, row.second_confidence] == probabilities[number, :2].tolist()
        assert row.problem == ""
    assert {row.answer == "unsure" for row in predictions} == {True, False}


def test_a_prediction_shows_itself_as_a_line() -> None:
    """A notebook shows it."""
    assert repr(Prediction("a.png", "7", 7, 0.9963, 9, 0.0027)) == "<a.png: 7, 99.63%, second choice 9 (0.27%)>"
    unsure = Prediction("a.png", "unsure", 7, 0.5, 9, 0.25)
    assert repr(unsure) == "<a.png: unsure, 50.00% for 7, second choice 9 (25.00%)>"
    assert repr(Prediction("a.png", "", problem="is not a file")) == "<a.png: is not a file>"


def test_a_photo_is_read_as_predict_reads_it(logs: Path) -> None:
    shutil.copy(PHOTO, "seven.png")
    reader = DigitReader.load("best")
    row = reader.read("seven.png")
    assert (row.file, row.digit, row.problem) == ("seven.png", 7, "")
    assert row.confidence and 0.5 < row.confidence <= 1
    assert reader.read(Path("seven.png")) == row
    main(["predict", "seven.png", "--output=x.json"])
    assert json.loads(Path("x.json").read_text()) == [asdict(row)]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("text.jpg", "is not a picture that Pillow can open"),
        ("half.png", "can't be read: image file is truncated"),
        ("missing.png", "is not a file"),
    ],
)
def test_a_photo_that_cant_be_read_gives_a_problem(name: str, problem: str, workplace: Path) -> None:
    Path("text.jpg").write_text("no picture")
    Path("half.png").write_bytes(PHOTO.read_bytes()[: PHOTO.stat().st_size // 2])
    row = DigitReader(LeNet()).read(name)
    assert (row.file, row.answer) == (name, "")
    assert row.problem.startswith(problem)
    assert row.digit is row.confidence is row.second_digit is row.second_confidence is None


def test_a_reader_without_calibration_is_never_unsure(images: Tensor) -> None:
    for row in DigitReader(LeNet()).predict(images[:9], ["x"] * 9):
        assert row.confidence and row.confidence < 0.5  # its weights are random
        assert row.answer == str(row.digit)


def test_a_checkpoint_of_a_notebook_needs_its_network(workplace: Path, images: Tensor) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)
    model = DigitClassifier(LeNet())
    trainer.fit(model, MNISTDataModule(DATA, mean=0.1))
    trainer.save_checkpoint("notebook.ckpt")

    with pytest.raises(CheckpointError, match=r"notebook\.ckpt does not name its network; expected .* or a `network`"):
        DigitReader.load("notebook.ckpt")
    with pytest.raises(SystemExit, match=r"error: --ckpt_path: notebook\.ckpt does not name its network"):
        main(["predict", str(PHOTO), "--ckpt_path=notebook.ckpt"])
    with pytest.raises(CheckpointError, match=r"weights in notebook\.ckpt don't fit the network: "):
        DigitReader.load("notebook.ckpt", network=ConvNet())

    network = LeNet()
    reader = DigitReader.load("notebook.ckpt", network=network)
    assert reader.network is not network  # a copy
    assert network.training
    assert (reader.mean, reader.std, reader.calibration) == (0.1, 0.5, None)
    assert reader.source["network"] == "mnist_lightning.networks.LeNet"
    pixels, _ = MNISTDataModule(mean=0.1).on_after_batch_transfer((images, images), 0)
    with torch.no_grad():
        assert torch.allclose(reader(images)[0], model.eval()(pixels), atol=1e-5)


@pytest.mark.parametrize("settings", [None, {"batch_size": 64, "val_size": 0}, {"mean": 0.5}])
def test_a_checkpoint_without_normalization_is_refused(settings: dict[str, float] | None, logs: Path) -> None:
    content = load(BEST)
    del content["datamodule_hyper_parameters"]
    torch.save(content | ({"datamodule_hyper_parameters": settings} if settings else {}), BEST)
    with pytest.raises(CheckpointError, match=r"best\.ckpt does not say how its images were normalized; expected a ch"):
        DigitReader.load(BEST)


def convnet_checkpoint(path: Path, **arguments: Any) -> ConvNet:
    """Write the checkpoint of a new ConvNet with arguments, and return the network."""
    network = ConvNet(**arguments)
    content = load(BEST)
    content["hyper_parameters"]["network"] = {
        "class_path": "mnist_lightning.networks.ConvNet",
        "init_args": arguments,
    }
    content["state_dict"] = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    torch.save(content, path)
    return network


def test_a_network_is_rebuilt_with_its_arguments(logs: Path, images: Tensor) -> None:
    network = convnet_checkpoint(BEST, dropout=0.1, shift=0.75).eval()
    reader = DigitReader.load(BEST)
    assert isinstance(reader.network, ConvNet)
    assert (reader.network.dropout.p, reader.network.shift) == (0.1, 0.75)
    assert reader.source["arguments"] == {"dropout": 0.1, "shift": 0.75}
    pixels, _ = MNISTDataModule().on_after_batch_transfer((images[:9], images[:9]), 0)
    with torch.no_grad():
        logits, _ = reader(images[:9])
        assert torch.allclose(logits, network(pixels), atol=1e-5)
        network.shift = 0.0
        assert not torch.allclose(logits, network(pixels), atol=1e-3)


def test_arguments_that_a_network_refuses_are_named(logs: Path) -> None:
    convnet_checkpoint(BEST, shift=0.5)
    content = load(BEST)
    for arguments, message in (({"shift": 2.0}, "shift is 2.0; expected 0..1"), ({"width": 7}, "width")):
        content["hyper_parameters"]["network"]["init_args"] = arguments
        torch.save(content, BEST)
        with pytest.raises(
            CheckpointError, match=rf"best\.ckpt can't be used: its network can't be built: .*{message}"
        ):
            DigitReader.load(BEST)


def test_weights_of_another_network_are_refused(logs: Path) -> None:
    change(state_dict={})
    with pytest.raises(CheckpointError, match=r"weights in .*best\.ckpt don't fit the network: Missing key"):
        DigitReader.load(BEST)


TOUCH = {"args": ["touch", "ran"]}


@pytest.mark.parametrize(
    "network",
    [
        "builtins.exec",
        {"class_path": "builtins.exec", "init_args": {"source": "open('ran', 'w')"}},
        {"class_path": "subprocess.run", "init_args": TOUCH},
        {"class_path": "subprocess.run", "dict_kwargs": TOUCH},
        {"class_path": "subprocess.Popen", "init_args": TOUCH},
        {
            "class_path": "mnist_lightning.networks.ConvNet",
            "init_args": {"dropout": {"class_path": "subprocess.run", "init_args": TOUCH}},
        },
        {
            "class_path": "torch.nn.ModuleList",
            "init_args": {"modules": [{"class_path": "subprocess.run", "init_args": TOUCH}]},
        },
    ],
)
def test_a_checkpoint_that_names_a_function_is_refused_and_nothing_runs(network: Any, logs: Path) -> None:
    content = load(BEST)
    content["hyper_parameters"]["network"] = network
    torch.save(content, BEST)
    with pytest.raises(CheckpointError, match=r"best\.ckpt can't be used: its network is .*; expected a network class"):
        DigitReader.load(BEST)
    with pytest.raises(CheckpointError, match=r"best\.ckpt can't be used: its network is .*; expected a network class"):
        DigitReader.load(BEST, network=LeNet())
    assert not Path("ran").exists()


def test_a_checkpoint_with_code_is_refused_and_nothing_runs(workplace: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("open('ran', 'w')",)

    torch.save({"state_dict": Code(), "pytorch-lightning_version": "2.6.6"}, "code.ckpt")
    with pytest.raises(
        CheckpointError, match=r"code\.ckpt holds more than plain data \(builtins\.exec\), and could run code; it was"
    ):
        DigitReader.load("code.ckpt")
    assert not Path("ran").exists()


class ElevenLogits(LeNet):
    """A network for eleven digits."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super().forward(images), torch.zeros(len(images), 1)], dim=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state_dict": [1]}, "its state_dict is not a mapping"),
        ({"datamodule_hyper_parameters": [1]}, "its datamodule_hyper_parameters is not a mapping"),
        ({"datamodule_hyper_parameters": {"mean": "0.5", "std": 0.5}}, "does not say how its images were normalized"),
        ({"datamodule_hyper_parameters": {"mean": 0.5, "std": 0}}, "does not say how its images were normalized"),
        ({"hyper_parameters": {"network": "mnist_lightning.LeNet"}}, "its network can't be built"),
        (
            {"hyper_parameters": {"network": {"class_path": "test_reader.ElevenLogits"}}},
            r"its logits have the shape \(1, 11\), not \(1, 10\)",
        ),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_refused(values: dict[str, Any], message: str, logs: Path) -> None:
    change(**values)
    with pytest.raises(CheckpointError, match=message):
        DigitReader.load(BEST)


def test_weights_that_are_not_finite_are_refused(logs: Path) -> None:
    weights = load(BEST)["state_dict"]
    weights["network.fc3.bias"][3] = float("nan")
    change(state_dict=weights)
    for command in (["predict", str(PHOTO)], ["export", "digits.pth"], ["compare", "best", "last"]):
        with pytest.raises(SystemExit, match=r"its weights fc3\.bias are not finite"):
            main(command)


def test_a_network_with_logits_that_are_not_finite_is_refused(logs: Path) -> None:
    """All weights are finite."""
    weights = load(BEST)["state_dict"]
    for layer in ("fc1", "fc2", "fc3"):
        weights[f"network.{layer}.weight"] *= 1e15
    change(state_dict=weights)
    with pytest.raises(CheckpointError, match="its network gives numbers that are not finite"):
        DigitReader.load(BEST)


@pytest.mark.parametrize("calibration", [{"temperature": 1.0, "threshold": 0.9}, [0.9], {"threshold": "high"}])
def test_a_calibration_of_another_version_does_not_count(calibration: Any, logs: Path) -> None:
    change(calibration=calibration)
    assert DigitReader.load(BEST).calibration is None
