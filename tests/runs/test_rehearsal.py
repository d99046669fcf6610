"""What can't work is found before a run folder is made, or leaves none."""

import random
import resource
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Program, Run
from helpers import BEST, DATA, FIRST, LAST, differences, load
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchvision.datasets import MNIST
from torchvision.models import MobileNetV2  # noqa: F401  as a user would import it

from mnist_lightning import DigitClassifier, LeNet, archive
from mnist_lightning.data import split
from mnist_lightning.errors import SettingError
from mnist_lightning.runs.rehearsal import check_split, rehearse

# The network.


class Custom(nn.Module):
    """A network with outputs of a chosen number and kind."""

    def __init__(self, outputs: int = 10, kind: str = "") -> None:
        super().__init__()
        self.linear = nn.Linear(784, outputs)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        logits = self.linear(images.flatten(1))
        kinds = {
            "list": [logits],
            "squeezed": logits.squeeze(),
            "mean": logits.mean(0),
            "centred": logits - logits.mean(0),
            "list in training": [logits] if self.training else logits,
            "without gradient": logits.detach(),
        }
        return kinds.get(self.kind, logits)


class Noisy(nn.Module):
    """A network with batch normalization, which always uses random numbers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))

    def forward(self, images: Tensor) -> Tensor:
        scale = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return nn.functional.dropout(self.layers(images * scale), 0.2, training=True)


def error_of(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that can't work. It takes a line, and nothing new is on the disk."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code not in (0, None)
    message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    lines = [line for line in message.splitlines() if not line.startswith(("Seed set", "See python"))]
    assert len(lines) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert not list(Path().rglob("version_*")) or before
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("Custom --model.network.outputs 7", "logits have the shape (1, 7), not (1, 10)"),
        ("Custom --model.network.outputs 11", "logits have the shape (1, 11), not (1, 10)"),
        ("Custom --model.network.kind list", "outputs are of the type list; expected a tensor of logits"),
        ("Custom --model.network.kind squeezed", "logits have the shape (10,), not (1, 10)"),
        ("Custom --model.network.kind mean", "logits have the shape (10,), not (1, 10)"),
        ("Custom --model.network.kind centred", "logits of an image depend on the other images of the batch"),
        ("Custom --model.network.kind list+in+training", "outputs are of the type list"),
        ("Custom --model.network.kind without+gradient", "network fails on images (N, 1, 28, 28): RuntimeError: elem"),
        ("MobileNetV2", "network fails on images (N, 1, 28, 28): RuntimeError: Given groups=1, weight of size"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    arguments: str, found: str, run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("+", " ") for word in arguments.split()]
    message = error_of(run, capsys, "fit", "--model.network", f"test_rehearsal.{words[0]}", *words[1:])
    assert f"fit: error: --model.network: {found}" in message
    assert list(workplace.iterdir()) == []


def test_a_lazy_network_is_trained_tested_and_used(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--model.network=test_trial.Lazy", "--model.optimizer.lr=0.1")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    run("test")
    run("predict")
    assert load(LAST)["epoch"] == 3
    assert DigitClassifier.load_from_checkpoint(LAST).network[3].weight.shape == (10, 4 * 26 * 26)
    message = error_of(run, capsys, "fit", "--model.network=test_trial.Lazy", "--model.network.outputs=9")
    assert "--model.network: logits have the shape (1, 9), not (1, 10)" in message


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_the_try_changes_no_weights_no_statistics_and_no_random_state() -> None:
    model = DigitClassifier(Noisy())
    before, states = {name: value.clone() for name, value in model.state_dict().items()}, random_states()
    rehearse(model, Trainer(logger=False, barebones=True), None)
    assert differences(before, dict(model.state_dict())) == []
    assert random_states() == states
    assert all(weights.grad is None for weights in model.parameters())
    assert model.network.training


class Uncopyable(LeNet):
    """A network that can't be copied, but works."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopyable":
        raise RuntimeError("no copies")


def test_a_network_that_cant_be_copied_is_trained(run: Run) -> None:
    run("fit", "--model.network=test_rehearsal.Uncopyable", "--figures=false")
    assert load(LAST)["global_step"] == 10


# The optimizer, and numbers of the trainer.

PLATEAU = "--model.lr_scheduler lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--model.optimizer LBFGS", "--model.optimizer: optimizer is LBFGS; expected one for batches, such as SGD"),
        ("--model.optimizer SparseAdam", "--model.optimizer: SparseAdam can't make a step: SparseAdam does not supp"),
        ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches is 0; expected at least 1"),
        ("--trainer.check_val_every_n_epoch 0", "--trainer.check_val_every_n_epoch is 0; expected at least 1"),
        (
            "--trainer.val_check_interval 1000",
            "--trainer.val_check_interval is 1000; expected at most 5, the batches of an epoch. To count batches over "
            "several epochs, add --trainer.check_val_every_n_epoch null",
        ),
        (
            "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_acc",
            "--trainer.callbacks: EarlyStopping follows val_acc, which this run does not measure; did you mean "
            "val/acc? It measures train/acc, train/loss, val/acc, val/loss",
        ),
        (
            "--trainer.callbacks ModelCheckpoint --trainer.callbacks.monitor loss",
            "ModelCheckpoint follows loss, which this run does not measure; did you mean val/loss?",
        ),
        (f"{PLATEAU} val_loss", "--model.lr_scheduler: ReduceLROnPlateau follows val_loss, which this run does not m"),
        (f"{PLATEAU} val/loss --data.val_size 0", "did you mean train/loss? It measures train/acc, train/loss"),
        (f"{PLATEAU} val/loss --model.lr_interval step", "--model.lr_interval is step; expected epoch, because val/"),
        ("--trainer.callbacks EarlyStopping", "error: EarlyStopping also needs --trainer.callbacks.monitor"),
        (
            "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks+ EarlyStopping",
            "error: EarlyStopping also needs --trainer.callbacks.monitor",
        ),
        (
            "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss --trainer.callbacks.mode mean",
            "error: EarlyStopping: `mode` can be min, max, got mean",
        ),
    ],
)
def test_settings_that_cant_work_are_refused(
    arguments: str, found: str, run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found in error_of(run, capsys, "fit", *arguments.split())
    assert list(workplace.iterdir()) == []


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "WandbLogger: Requirement 'wandb" in error_of(run, capsys, "fit", "--trainer.logger=WandbLogger")


class MetricOfTheUser(Callback):
    """Logs a metric of its own."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/mine", 1.0)


@pytest.mark.parametrize(
    "arguments",
    [
        "--trainer.callbacks ModelCheckpoint --trainer.callbacks.monitor step --trainer.callbacks.mode max",
        "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_acc --trainer.callbacks.strict false",
        "--trainer.callbacks+ test_rehearsal.MetricOfTheUser "
        "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor val/mine",
        "--trainer.val_check_interval 7 --trainer.check_val_every_n_epoch null",
    ],
)
def test_settings_that_work_are_not_refused(arguments: str, run: Run) -> None:
    run("fit", *arguments.split())
    assert load(LAST)["global_step"] == 10


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_metric_that_turns_out_to_be_missing_is_named_in_a_line(run: Run) -> None:
    """`train/loss` is logged at some steps only, and an epoch can be shorter than that."""
    monitor = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
    with pytest.raises(SystemExit, match="Early stopping conditioned on metric `train/loss` which is not available"):
        run("fit", *monitor, "--trainer.log_every_n_steps=50")
    assert LAST.is_file()  # an epoch was trained


# Folders of runs that have not started.


def test_a_run_that_has_not_started_leaves_its_older_folder_unchanged(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit")
    interval = ["--trainer.val_check_interval=1000", "--trainer.max_epochs=3"]
    with pytest.raises(SystemExit):
        run("fit", "--ckpt_path=last", *interval)
    assert not (FIRST / "config_2.yaml").exists()  # it would count from now on
    assert BEST.is_file()
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert load(LAST)["epoch"] == 3


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_start_leaves_no_run(small_data: str, workplace: Path) -> None:
    """The limit leaves room for the first lines of curves, and none for the configuration."""
    code = f"""
from torchvision.datasets import MNIST
from mnist_lightning.cli import main
MNIST.resources = {MNIST.resources}
main(["fit", "--data.root={small_data}", "--data.val_size=100"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "can't be written: File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(workplace.iterdir()) == []


def test_a_folder_that_was_there_stays(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine/lightning_logs").mkdir(parents=True)
    error_of(run, capsys, "fit", "--trainer.default_root_dir=mine", "--trainer.val_check_interval=1000")
    error_of(run, capsys, "fit", "--trainer.default_root_dir=other/folder", "--trainer.val_check_interval=1000")
    assert sorted(map(str, Path().rglob("*"))) == ["mine", "mine/lightning_logs"]


def test_a_run_without_a_step_leaves_nothing(run: Run, workplace: Path) -> None:
    run("fit", "--trainer.max_epochs=0")
    assert list(workplace.iterdir()) == []


def test_a_run_without_checkpoints_keeps_its_curves(run: Run) -> None:
    run("fit", "--trainer.enable_checkpointing=false")
    assert list(FIRST.glob("events.*"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_during_a_download_leaves_no_folders(name: str, code: int, program: Program, workplace: Path) -> None:
    command = "from torchvision.datasets import MNIST; from mnist_lightning.cli import main; "
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        process = program("fit", "--data.root=no/where", python=f"{command} MNIST.mirrors = ['{mirror}']; main()")
        with silent.accept()[0]:
            assert Path("no/where/MNIST/raw").is_dir()
            process.send_signal(getattr(signal, name))
            process.communicate(timeout=10)
    assert process.returncode == code
    assert list(workplace.iterdir()) == []


# Images that were trained on.


def test_only_a_split_within_the_split_of_the_run_is_accepted() -> None:
    """Exactly those numbers are accepted whose validation images were all kept from training."""
    labels = archive.read(DATA, "train")[1]
    kept = {size: {*split(labels, size)[1].tolist()} for size in (1, 7, 50, 100, 2_500, 4_999, 5_000, 10_000, 59_999)}
    for trained, images in [*kept.items(), (0, set[int]())]:
        for val_size, asked in kept.items():
            accepted = True
            try:
                check_split(val_size, trained)
            except SettingError:
                accepted = False
            assert accepted == (asked <= images), (val_size, trained)
        check_split(0, trained)  # validates nothing
    check_split(59_999, None)  # a checkpoint that does not say
    check_split(59_999, -1)  # a checkpoint that makes no sense


@pytest.mark.parametrize("verb", ["validate", "fit"])
def test_no_network_is_validated_on_images_that_it_was_trained_on(
    verb: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit")
    Path("other.yaml").write_text("data:\n  val_size: 200\n")
    more = ["--trainer.max_epochs=3"] if verb == "fit" else []
    for arguments in (["--data.val_size=200"], ["--config=other.yaml"]):
        message = error_of(run, capsys, verb, "--ckpt_path=last", *arguments, *more)
        assert f"{verb}: error: --data.val_size: val_size is 200; expected 100, or a number that divides it: the " in (
            message
        )
    message = error_of(run, capsys, verb, "--ckpt_path=last", "--data.val_size=-1", *more)
    assert "--data.val_size: val_size is -1; expected 0..59999" in message
    run(verb, "--ckpt_path=last", "--data.val_size=50", *more)


def test_a_run_that_was_trained_on_all_images_is_not_validated_later(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--data.val_size=0")
    message = error_of(run, capsys, "validate", "--data.val_size=100")
    assert "--data.val_size: val_size is 100; expected 0: the checkpoint was trained on the other images" in message


# Learning rates.

FINDER = ["--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.num_training_steps=40"]


def test_a_found_learning_rate_is_as_good_as_a_typed_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The search leaves no trace: the run equals one for which the rate was typed, bit for bit."""
    network = ["--model.network=test_rehearsal.Noisy", "--model.lr_scheduler=CosineAnnealingLR"]
    network += ["--model.lr_scheduler.T_max=4", "--figures=false"]
    run("fit", *FINDER, *network)
    config = yaml.safe_load((FIRST / "config.yaml").read_text())
    rate = config["model"]["optimizer"]["init_args"]["lr"]
    assert f"LearningRateFinder chose --model.optimizer.lr {rate:.4g}\n" in capsys.readouterr().out
    assert config["trainer"]["callbacks"] is None
    assert rate != 0.001
    assert sorted(path.name for path in Path().iterdir()) == ["lightning_logs"]
    found = load(LAST)
    run("fit", f"--model.optimizer.lr={rate}", *network)
    assert differences(found, load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))) == []

    run("fit", "--ckpt_path=version_0", "--trainer.max_epochs=3")
    run("fit", f"--config={FIRST / 'config.yaml'}")
    assert "LearningRateFinder" not in capsys.readouterr().out  # neither searches again
    assert differences(found, load(Path("lightning_logs/version_2/checkpoints/last.ckpt"))) == []


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--trainer.callbacks.num_training_steps=5"], "found no learning rate in 5 steps; expected more steps"),
        (["--trainer.callbacks.mode=mean"], "`mode` should be either of ('linear', 'exponential')"),
        (
            ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=1"],
            "finds the learning rate of the optimizer, and torch.optim.lr_scheduler.OneCycleLR replaces this rate",
        ),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    arguments: list[str], found: str, run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"LearningRateFinder{': ' if found[0] == '`' else ' '}{found}" in error_of(
        run, capsys, "fit", *FINDER, *arguments
    )
    assert list(workplace.iterdir()) == []


def test_a_run_that_continues_is_not_searched(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    message = error_of(run, capsys, "fit", "--ckpt_path=last", "--trainer.max_epochs=3", *FINDER)
    assert "LearningRateFinder can't continue a run; leave it out, and the run keeps its learning rate" in message
