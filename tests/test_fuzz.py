"""Damaged and invented files: every reader ends in an answer or in a message of one or two lines.

Each test reads a few dozen inputs, or 2,000 as a slow test. The inputs follow from a fixed seed.
"""

import contextlib
import gzip
import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Run
from damage import ANYTHING, changed, damaged, packed, repacked
from helpers import BEST, FIRST, LAST, ROOT, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.internal.conjecture import providers
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torchvision.datasets import MNIST

from mnist_lightning import DigitClassifier, DigitReader, MNISTDataModule, archive, checkpoint
from mnist_lightning.calibration import Calibration
from mnist_lightning.errors import ArchiveError, UserError
from mnist_lightning.runs import listing
from mnist_lightning.runs.calibrator import Calibrator
from mnist_lightning.runs.cli import RunCLI
from mnist_lightning.runs.folders import read_status
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.resume import ExactResume
from mnist_lightning.runs.saving import DurableCheckpointIO
from mnist_lightning.runs.start import Start
from mnist_lightning.runs.verbs import errors_of_lightning
from mnist_lightning.use import photos


def fuzz(few: int) -> pytest.MarkDecorator:
    """Let a test read `few` inputs by default, and 2,000 as a slow test."""
    return pytest.mark.parametrize("inputs", [few, pytest.param(2_000, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def the_same_inputs_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Hypothesis write to a temporary folder, and ignore the constants of the modules that happen to be loaded.

    It has no setting for these constants. They would make the inputs depend on the other tests of the same run.
    """
    set_hypothesis_home_dir(tmp_path)
    monkeypatch.setattr(providers, "is_local_module_file", lambda path: False)


class Hidden:
    """An input that Hypothesis does not print, as its text may be huge. Most tests write it to a file."""

    def __init__(self, value: Any) -> None:
        self.value = value


def each(strategy: st.SearchStrategy[Any], inputs: int, check: Callable[[Any], None]) -> None:
    """Check this number of inputs, always the same ones."""
    health = list(HealthCheck)
    always = settings(derandomize=True, database=None, deadline=None, suppress_health_check=health)
    test = given(strategy.map(lambda value: Hidden(value)))(lambda hidden: check(hidden.value))
    settings(always, max_examples=inputs)(test)()


def assert_short(message: object) -> None:
    lines = str(message).splitlines()
    assert 1 <= len(lines) <= 2
    assert all(line.isprintable() and len(line) < 800 for line in lines), message


def ends_well(read: Callable[[], Any]) -> Any:
    """Return the answer of a reader, or the message of its error."""
    try:
        return read()
    except UserError as error:
        assert_short(error)
        return error


class Tiny(nn.Sequential):
    """A network of 500 numbers, so that its checkpoints are small."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(nn.AvgPool2d(size), nn.Flatten(), nn.Linear((28 // size) ** 2, 10))


@pytest.fixture
def tiny(run: Run) -> Path:
    """The checkpoint of a run that was stopped within its second epoch."""
    schedule = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1", "--model.lr_interval=step"]
    limits = ["--trainer.max_steps=7", "--trainer.limit_val_batches=1", "--model.lr_scheduler.total_steps=15"]
    run("fit", "--model.network=test_fuzz.Tiny", *schedule, *limits)
    return LAST


@fuzz(50)
def test_damaged_checkpoints(inputs: int, tiny: Path) -> None:
    def check(data: bytes) -> None:
        Path("x.ckpt").write_bytes(data)
        ends_well(lambda: checkpoint.read("x.ckpt"))

    whole = tiny.read_bytes()
    each(damaged(lambda: [whole, BEST.read_bytes(), packed(Tiny().state_dict())]), inputs, check)
    with zipfile.ZipFile(tiny) as records:
        pickled = records.read("archive/data.pkl")
    deeply = b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b"."
    each(damaged(lambda: [pickled, deeply]).map(lambda content: repacked(whole, content)), inputs, check)


@fuzz(50)
def test_crafted_checkpoints(inputs: int, tiny: Path) -> None:
    def check(content: Any) -> None:
        torch.save(content, "x.ckpt")

        def start() -> None:
            found = Start.find("x.ckpt", Path("lightning_logs"), "last")
            found.check_limit("max_epochs", 5)
            json.loads(found.settings())

        ends_well(start)
        reader = ends_well(lambda: DigitReader.load("x.ckpt"))
        if isinstance(reader, DigitReader):
            json.dumps(reader.source)
            assert reader.probabilities(torch.zeros(1, 28, 28, dtype=torch.uint8)).isfinite().all()

    content = load(tiny)
    used = ("hyper_parameters", "datamodule_hyper_parameters", "ExactResume", "calibration", "global_step")
    parts = changed(lambda: [{name: content[name] for name in used}], ANYTHING).map(lambda parts: content | parts)
    each(st.one_of(changed(lambda: [content], ANYTHING), parts, parts), inputs, check)


@fuzz(20)
def test_crafted_training_states(inputs: int, tiny: Path, small_data: str) -> None:
    """The run goes on for two steps, or the message says that it can't."""

    def check(parts: dict[str, Any]) -> None:
        torch.save(content | parts, "x.ckpt")
        model = DigitClassifier(
            Tiny(),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=15),
            lr_interval="step",
        )
        trainer = Trainer(max_steps=content["global_step"] + 2, callbacks=[ExactResume(), Calibrator()], **quiet)

        def fit() -> None:
            with errors_of_lightning(trainer):
                trainer.fit(model, MNISTDataModule(small_data, val_size=100), ckpt_path="x.ckpt")

        ends_well(fit)

    quiet: Any = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    quiet |= {"plugins": [DurableCheckpointIO()], "limit_val_batches": 0, "accelerator": "cpu"}
    content = load(tiny)
    parts = {name: content[name] for name in ("loops", "optimizer_states", "lr_schedulers", "callbacks", "ExactResume")}
    each(changed(lambda: [parts], ANYTHING), inputs, check)


@fuzz(50)
def test_calibrations(inputs: int) -> None:
    def check(values: Any) -> None:
        stored = Calibration.stored(values)
        if stored:
            assert 0 <= stored.threshold <= math.nextafter(1, 2)
            assert 0 <= stored.accuracy <= 1 <= stored.images
            assert stored.step >= 0

    right = {"threshold": 0.9, "accuracy": 0.99, "images": 5_000, "step": 860}
    each(changed(lambda: [right], ANYTHING), inputs, check)


@fuzz(50)
def test_damaged_archives(inputs: int, small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        monkeypatch.setattr(MNIST, "mirrors", [])
        assert isinstance(ends_well(lambda: archive.read(small_data, "test")), ArchiveError) == (data != whole)
        assert isinstance(ends_well(lambda: archive.prepare(small_data)), ArchiveError) == (data != whole)

    path = archive.raw_folder(small_data) / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    each(damaged(lambda: [whole, gzip.decompress(whole)]), inputs, check)


@fuzz(30)
def test_damaged_photos(inputs: int, tmp_path: Path) -> None:
    def check(photo: tuple[str, bytes]) -> None:
        path = tmp_path / photo[0]
        path.write_bytes(photo[1])
        (image,), (problem,) = photos.prepare_all([path])
        assert problem or image.any()
        assert not problem or len(problem) < 250
        assert problem.isprintable()

    files = []
    Image.init()
    for form in Image.SAVE:
        for mode in ("L", "RGB", "RGBA", "P", "1", "I;16"):
            picture = Image.new("L", (40, 32), 255)
            picture.paste(0, (18, 4, 22, 28))
            with contextlib.suppress(Exception):
                picture.convert("I" if mode == "I;16" else mode).convert(mode).save(file := io.BytesIO(), form)
                files.append((f"{form}.{mode}.png", file.getvalue()))
    assert len({name.partition(".")[0] for name, _ in files}) > 15
    mutated = st.sampled_from(files).flatmap(lambda file: st.tuples(st.just(file[0]), damaged(lambda: [file[1]])))
    each(mutated, inputs, check)


@fuzz(20)
def test_configurations(inputs: int, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(data: bytes) -> None:
        Path("x.yaml").write_bytes(data)
        try:
            ends_well(lambda: cli.parse_arguments(cli.parser, ["--config=x.yaml"]))
        except SystemExit as stop:
            assert stop.code == 2
            assert_short(capsys.readouterr().err.removesuffix("See python -m mnist_lightning fit --help\n"))

    cli = RunCLI("fit", [])
    files = [path.read_bytes() for path in (*sorted(ROOT.glob("configs/*.yaml")), FIRST / "config.yaml")]
    dumped = changed(lambda: [yaml.safe_load(data) for data in files]).map(
        lambda content: yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    texts = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    each(st.one_of(dumped, dumped, damaged(lambda: files), texts), inputs, check)


@fuzz(50)
def test_damaged_curves(inputs: int, tiny: Path) -> None:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        ends_well(lambda: logger._remove_later_points(path))

    path = max(FIRST.glob("events.*"), key=lambda file: file.stat().st_size)
    whole = path.read_bytes()
    logger = RunLogger(FIRST.parent, 0)
    logger.first_step = 4
    each(damaged(lambda: [whole]), inputs, check)


@fuzz(50)
def test_status_files(inputs: int, tiny: Path) -> None:
    def check(data: bytes) -> None:
        (FIRST / "status.json").write_bytes(data)
        for name, value in listing.describe(FIRST).items():
            assert value is None or listing.COLUMNS[name](value).isprintable()
        json.dumps(read_status(FIRST), indent=1)

    whole = (FIRST / "status.json").read_bytes()
    dumped = changed(lambda: [json.loads(whole)]).map(lambda content: json.dumps(content).encode())
    each(st.one_of(dumped, damaged(lambda: [whole, b"[" * 100_000, b"9" * 10_000])), inputs, check)
