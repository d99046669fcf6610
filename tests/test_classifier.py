from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule


def fit(model: DigitClassifier, root: str, tmp_path: Path, ckpt_path: Path | None = None, **trainer: Any) -> Trainer:
    """Train as a notebook would, on 540 images in batches of 128: 5 steps an epoch."""
    options = {
        "max_epochs": 2,
        "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    trained = Trainer(**(options | trainer))
    trained.fit(model, MNISTDataModule(root, val_size=100), ckpt_path=ckpt_path)
    return trained


class LearningRates(DigitClassifier):
    """Keeps the learning rate of each step."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.used = [*getattr(self, "used", []), self.trainer.callback_metrics["lr"].item()]


def test_defaults_are_the_tutorials() -> None:
    model = DigitClassifier(LeNet())
    optimizer = model.optimizer(model.parameters())
    assert isinstance(optimizer, SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.001, 0.9)
    assert model.lr_scheduler is None
    assert model.label_smoothing == 0


def test_logs_what_the_network_really_does(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet())
    trainer = fit(model, small_data, tmp_path)
    data = MNISTDataModule(small_data, val_size=100)
    data.setup("validate")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(trainer.callback_metrics["val/acc"], (logits.argmax(1) == labels).float().mean())


def test_train_accuracy_is_over_the_images_of_the_epoch(small_data: str, tmp_path: Path) -> None:
    class Frozen(DigitClassifier):
        def configure_optimizers(self) -> SGD:
            return SGD(self.parameters(), lr=0.0)

    model = Frozen(LeNet())
    trainer = fit(model, small_data, tmp_path, limit_val_batches=0)
    data = MNISTDataModule(small_data, val_size=100)
    data.setup("fit")
    right = 0
    with torch.no_grad():
        for batch in data.train_dataloader():
            images, labels = data.on_after_batch_transfer(batch, 0)
            right += int((model(images).argmax(1) == labels).sum())
    assert trainer.callback_metrics["train/acc"].item() == pytest.approx(right / 540)


def test_label_smoothing_is_trained_with_and_not_measured_with(small_data: str, tmp_path: Path) -> None:
    def losses(**arguments: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = DigitClassifier(LeNet(), optimizer=partial(SGD, lr=0.0), **arguments)
        model.network.fc3.bias.data[3] = 5  # sure of itself, which smoothing makes dearer
        return fit(model, small_data, tmp_path, max_epochs=1).callback_metrics

    plain, smooth = losses(), losses(label_smoothing=0.2)
    assert smooth["train/loss"] < plain["train/loss"]
    assert torch.equal(smooth["val/loss"], plain["val/loss"])


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch'")
@pytest.mark.parametrize(("interval", "total"), [("step", 10), ("epoch", 2)])
def test_one_cycle_is_told_its_number_of_steps(interval: Any, total: int, small_data: str, tmp_path: Path) -> None:
    model = LearningRates(LeNet(), lr_scheduler=partial(OneCycleLR, max_lr=0.1), lr_interval=interval)
    trainer = fit(model, small_data, tmp_path)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == total
    if interval == "step":
        assert model.used[0] == pytest.approx(0.1 / 25)
        assert max(model.used) == pytest.approx(0.1, rel=0.2)


def test_one_cycle_keeps_a_number_of_steps_that_it_was_given(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet(), lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=99), lr_interval="step")
    assert fit(model, small_data, tmp_path).lr_scheduler_configs[0].scheduler.total_steps == 99


@pytest.mark.parametrize(("interval", "expected"), [("step", [0.1, 0.1, 0.01, 0.01, 1e-3] * 2), ("epoch", [0.1] * 10)])
def test_a_schedule_steps_by_step_or_by_epoch(
    interval: Any, expected: list[float], small_data: str, tmp_path: Path
) -> None:
    model = LearningRates(
        LeNet(),
        optimizer=partial(SGD, lr=0.1),
        lr_scheduler=partial(StepLR, step_size=2, gamma=0.1),
        lr_interval=interval,
    )
    fit(model, small_data, tmp_path, max_epochs=1 if interval == "step" else 2)
    assert model.used == pytest.approx(expected[: len(model.used)])
    assert len(model.used) == (5 if interval == "step" else 10)


def test_reduce_on_plateau_follows_its_monitor(small_data: str, tmp_path: Path) -> None:
    schedule = partial(ReduceLROnPlateau, monitor="val/acc", mode="min", patience=0, factor=0.5, threshold=10.0)
    model = LearningRates(LeNet(), optimizer=partial(SGD, lr=0.1), lr_scheduler=schedule)
    trainer = fit(model, small_data, tmp_path, max_epochs=3)
    assert trainer.lr_scheduler_configs[0].monitor == "val/acc"
    assert model.used[-1] < 0.1


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("step", [7, 10, 12])
def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped(step: int, small_data: str, tmp_path: Path) -> None:
    """With 5 steps an epoch, a checkpoint from within the second, from its end, and from within the third."""

    def model() -> DigitClassifier:
        seed_everything(7)
        return DigitClassifier(
            LeNet(),
            optimizer=partial(SGD, lr=0.1, momentum=0.9),
            lr_scheduler=partial(OneCycleLR, max_lr=0.1),
            lr_interval="step",
        )

    every_step = ModelCheckpoint(dirpath=tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, continued = model(), model()
    fit(whole, small_data, tmp_path, max_epochs=3, callbacks=every_step)
    seed_everything(8)  # the order goes on with the seed that it began with
    fit(continued, small_data, tmp_path, max_epochs=3, ckpt_path=tmp_path / f"steps/step={step}.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, continued.state_dict()[name]), name


def test_a_notebooks_checkpoint_is_plain_data_and_loads_with_its_network(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet(), optimizer=partial(Adam, lr=0.01), label_smoothing=0.1)
    trainer = fit(model, small_data, tmp_path)
    path = tmp_path / "notebook.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = DigitClassifier.load_from_checkpoint(path, network=LeNet(), weights_only=True)
    assert loaded.label_smoothing == 0.1
    assert torch.equal(loaded.network.fc3.weight, model.network.fc3.weight)


def test_label_smoothing_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing .* is 1\.5; expected 0\.\.1"):
        DigitClassifier(LeNet(), label_smoothing=1.5)
