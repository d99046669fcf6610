"""A run whose loss is not finite: how it stops, what it leaves, and how it continues."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from helpers import BEST, FIRST, LAST, SECOND, differences, fit_in_notebook, load
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from mnist_lightning import DigitClassifier, DigitReader, LeNet, checkpoint
from mnist_lightning.cli import main
from mnist_lightning.errors import CheckpointError
from mnist_lightning.runs.divergence import Diverged, Divergence


class OnlyTrains(LeNet):
    """A network whose logits are finite in training alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if self.training else torch.inf)


class Masked(LeNet):
    """A network with a buffer that holds infinity on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0, -torch.inf]))


def is_finite(path: Path) -> bool:
    return all(weights.isfinite().all() for weights in load(path)["state_dict"].values())


def error_of(run: Run, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit:
        run("fit", *arguments)
    assert isinstance(exit.value.code, str)  # the exit code is 1
    assert len(exit.value.code.splitlines()) == 2
    return exit.value.code


def type_last_line(error: str) -> None:
    main(shlex.split(error.split("Continue: python -m mnist_lightning ")[1]))


@pytest.mark.parametrize(("lr", "step"), [("1e6", 2), ("100", 5)])
def test_a_run_stops_and_continues_as_it_proposes(lr: str, step: int, run: Run) -> None:
    error = error_of(run, f"--model.optimizer.lr={lr}", "--trainer.max_epochs=20", "--data.batch_size=32")
    found = f"fit: error: train/loss is not finite at step {step}, with the learning rate {float(lr):g}.\n"
    assert found in error
    assert is_finite(LAST)
    type_last_line(error + " --trainer.max_epochs 2")
    assert load(LAST)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    assert is_finite(LAST)


def test_an_older_run_in_another_folder_continues_as_proposed(run: Run) -> None:
    root = "--trainer.default_root_dir=my runs"
    run("fit", root)
    run("fit", root)
    best = load("my runs" / BEST)
    error = error_of(run, root, "--ckpt_path=version_0", "--model.optimizer.lr=1e6", "--trainer.max_epochs=4")
    assert f"fit --ckpt_path 'my runs/{BEST}' --model.optimizer.lr 0.1" in error
    assert differences(load("my runs" / BEST), best) == []
    type_last_line(error)
    assert load("my runs" / LAST)["global_step"] == 20
    assert is_finite("my runs" / LAST)
    assert len(list(Path("my runs/lightning_logs").iterdir())) == 2


def test_a_schedule_continues_with_a_lower_peak(run: Run) -> None:
    schedule = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=1e6", "--model.lr_interval=step"]
    error = error_of(run, *schedule)
    assert "--model.lr_scheduler.max_lr 0.1" in error
    type_last_line(error)
    assert load(LAST)["global_step"] == 10
    assert is_finite(LAST)


def test_if_no_checkpoint_is_good_the_run_is_started_again(run: Run) -> None:
    """Weights of 1e13 are finite, and give no finite loss."""
    error = error_of(run, "--model.optimizer.lr=1e13", "--checkpoint.every_n_steps=1")
    proposal = "No checkpoint is good. Start again: python -m mnist_lightning "
    assert f"\n{proposal}fit --config {FIRST}/config.yaml --model.optimizer.lr 0.1" in error
    main(shlex.split(error.split(proposal)[1]))
    assert load(SECOND / "checkpoints/last.ckpt")["global_step"] == 10


def test_a_run_without_a_step_is_removed(run: Run) -> None:
    error = error_of(run, "--data.std=1e-42")
    assert "train/loss is not finite at step 0" in error
    assert "\nNothing was trained, and the new run is removed; look for the reason in the network and" in error
    assert list(FIRST.parent.iterdir()) == []


def test_a_checkpoint_that_gives_no_finite_loss_is_named(run: Run) -> None:
    run("fit")
    content = load(LAST)
    content["state_dict"]["network.fc3.weight"] *= 1e38
    torch.save(content, LAST)
    error = error_of(run, "--ckpt_path=last", "--trainer.max_epochs=3")
    advice = "Nothing was trained; continue from an earlier checkpoint than"
    assert f"at step 10, with the learning rate 0.001.\n{advice} {LAST}" in error
    assert LAST.exists()
    shutil.copy(LAST, "elsewhere.ckpt")
    error = error_of(run, "--ckpt_path=elsewhere.ckpt", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1")
    assert "Nothing was trained, and the new run is removed; continue from an earlier checkpoint than else" in error
    assert not SECOND.exists()


def test_the_last_step_is_checked_too(run: Run) -> None:
    """The only step has a finite loss, and leaves weights that are not finite. No other step or validation follows."""
    error = error_of(run, "--model.optimizer.lr=1e40", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    assert "error: the weights are not finite at step 0, with the learning rate 1e+40" in error
    assert is_finite(LAST)


def test_a_validation_is_checked_too(run: Run) -> None:
    error = error_of(run, "--model.network=test_divergence.OnlyTrains")
    assert "error: val/loss is not finite at step 4, with the learning rate 0.001.\nContinue: " in error
    assert load(LAST)["global_step"] == 0
    assert not BEST.exists()


@pytest.mark.parametrize("every", ["1", "300"])
def test_a_flag_lets_the_run_go_on_and_bad_weights_are_never_saved(
    every: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step has a finite loss, and leaves weights that are not finite."""
    run("fit", "--model.optimizer.lr=1e40", "--stop_at_nan=false", f"--checkpoint.every_n_steps={every}")
    out = capsys.readouterr().out
    assert out.count("train/loss is not finite at step 1, with the learning rate 1e+40. Training goes on") == 1
    assert "epoch   2  train/loss nan" in out
    assert is_finite(LAST)
    assert load(LAST)["global_step"] == 0


def test_without_checkpoints_a_run_stops_too(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"at step 2, with the learning rate 1e\+06; try a smaller one$"):
        run("fit", "--model.optimizer.lr=1e6", "--trainer.logger=false")


def test_each_batch_of_a_step_is_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two batches a step, batch 3 belongs to step 1."""
    step = DigitClassifier.training_step

    def poisoned(self: DigitClassifier, batch: Any, batch_idx: int) -> Tensor:
        return step(self, batch, batch_idx) * (torch.nan if batch_idx == 3 else 1)

    monkeypatch.setattr(DigitClassifier, "training_step", poisoned)
    assert "train/loss is not finite at step 1" in error_of(run, "--trainer.accumulate_grad_batches=2")


def test_a_step_that_a_gradient_scaler_skips_stops_nothing(small_data: str, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # the gradients are infinite in float16
    options: dict[str, Any] = {"plugins": MixedPrecision("16-mixed", "cpu", scaler), "callbacks": Divergence()}
    options["enable_model_summary"] = False
    fit_in_notebook(DigitClassifier(LeNet()), small_data, tmp_path, **options)
    assert scaler.get_scale() < 2.0**40  # steps were skipped


def test_a_device_with_a_queue_is_read_now_and_then(small_data: str, tmp_path: Path) -> None:
    class EveryFour(Divergence):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_train_start(trainer, pl_module)
            self._every = 4

    model = DigitClassifier(LeNet(), optimizer=lambda params: torch.optim.SGD(params, lr=1e6))
    with pytest.raises(Diverged, match="train/loss is not finite at one of the steps 1 to 3, with") as found:
        fit_in_notebook(model, small_data, tmp_path, callbacks=EveryFour())
    assert (found.value.step, found.value.trained) == (1, True)


# Checkpoints with weights that are not finite.


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_every_verb_refuses_weights_that_are_not_finite(value: float, run: Run) -> None:
    run("fit")
    content = load(BEST)
    content["state_dict"]["network.conv1.bias"][0] = value
    torch.save(content, "bad.ckpt")
    reason = r"bad\.ckpt can't be used: its weights (network\.)?conv1\.bias are not finite"
    for verb in ("fit", "test", "validate", "predict", "export"):
        with pytest.raises(SystemExit, match=reason):
            run(verb, *(["digits.onnx"] if verb == "export" else []), "--ckpt_path=bad.ckpt")
    with pytest.raises(SystemExit, match=reason):
        run("compare", str(BEST), "bad.ckpt")


def test_logits_can_hide_a_weight_that_is_not_finite() -> None:
    network = LeNet()
    with torch.no_grad():
        network.conv1.bias[0] = -torch.inf
    logits, _ = DigitReader(network)(torch.zeros(1, 28, 28, dtype=torch.uint8))
    assert logits.isfinite().all()
    assert checkpoint.not_finite(network) == "conv1.bias"


def test_a_buffer_may_hold_infinity_but_not_nan() -> None:
    assert checkpoint.not_finite(Masked()) is None
    network = nn.BatchNorm2d(1)
    network.running_var.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="its weights running_var are not finite"):
        checkpoint.load_weights(nn.BatchNorm2d(1), network.state_dict(), "some.ckpt")
