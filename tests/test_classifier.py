from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fit_in_notebook
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule


class LearningRates(DigitClassifier):
    """Keeps the learning rate of each step."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.used = [*getattr(self, "used", []), self.trainer.optimizers[0].param_groups[0]["lr"]]


def test_defaults_are_the_tutorials() -> None:
    model = DigitClassifier(LeNet())
    optimizer = model.optimizer(model.parameters())
    assert isinstance(optimizer, SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.001, 0.9)
    assert model.lr_scheduler is None


def test_logs_what_the_network_really_does(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet())
    trainer = fit_in_notebook(model, small_data, tmp_path)
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
    trainer = fit_in_notebook(model, small_data, tmp_path, limit_val_batches=0)
    data = MNISTDataModule(small_data, val_size=100)
    data.setup("fit")
    right = 0
    with torch.no_grad():
        for batch in data.train_dataloader():
            images, labels = data.on_after_batch_transfer(batch, 0)
            right += int((model(images).argmax(1) == labels).sum())
    assert trainer.callback_metrics["train/acc"].item() == pytest.approx(right / 540)


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch'")
@pytest.mark.parametrize(("interval", "total"), [("step", 10), ("epoch", 2)])
def test_one_cycle_is_told_its_number_of_steps(interval: Any, total: int, small_data: str, tmp_path: Path) -> None:
    model = LearningRates(LeNet(), lr_scheduler=partial(OneCycleLR, max_lr=0.1), lr_interval=interval)
    trainer = fit_in_notebook(model, small_data, tmp_path)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == total
    if interval == "step":
        assert model.used[0] == pytest.approx(0.1 / 25)
        assert max(model.used) == pytest.approx(0.1, rel=0.2)


def test_one_cycle_keeps_a_number_of_steps_that_it_was_given(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet(), lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=99), lr_interval="step")
    assert fit_in_notebook(model, small_data, tmp_path).lr_scheduler_configs[0].scheduler.total_steps == 99


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
    fit_in_notebook(model, small_data, tmp_path, max_epochs=1 if interval == "step" else 2)
    assert model.used == pytest.approx(expected[: len(model.used)])
    assert len(model.used) == (5 if interval == "step" else 10)


def test_reduce_on_plateau_follows_its_monitor(small_data: str, tmp_path: Path) -> None:
    schedule = partial(ReduceLROnPlateau, monitor="val/acc", mode="min", patience=0, factor=0.5, threshold=10.0)
    model = LearningRates(LeNet(), optimizer=partial(SGD, lr=0.1), lr_scheduler=schedule)
    trainer = fit_in_notebook(model, small_data, tmp_path, max_epochs=3)
    assert trainer.lr_scheduler_configs[0].monitor == "val/acc"
    assert model.used[-1] < 0.1


def test_a_notebooks_checkpoint_is_plain_data_and_loads_with_its_network(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet(), optimizer=partial(Adam, lr=0.01), lr_interval="step")
    trainer = fit_in_notebook(model, small_data, tmp_path)
    path = tmp_path / "notebook.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = DigitClassifier.load_from_checkpoint(path, network=LeNet(), weights_only=True)
    assert loaded.lr_interval == "step"
    assert torch.equal(loaded.network.fc3.weight, model.network.fc3.weight)
