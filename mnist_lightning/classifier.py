"""`DigitClassifier`: how a network learns, and how it is measured."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning import checkpoint, settings, trial

Batch = tuple[Tensor, Tensor]  # float images (B, 1, 28, 28), int64 labels (B,)


class DigitClassifier(LightningModule):
    """Trains any network of digits with cross-entropy.

    It logs `train/loss` at some steps, and `train/acc`, `val/loss`, `val/acc`, `test/loss` and `test/acc` at the end of
    an epoch. Accuracies are fractions in 0..1.

    Args:
        network: The network: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out.
        optimizer: The class or function that makes the optimizer. The default has the tutorial's settings. The
            fused step of torch gives the same result in half the time.
        lr_scheduler: The class or function that makes the schedule of the learning rate. A schedule such as
            `OneCycleLR` receives its `total_steps`, unless they are given.
        lr_interval: When the schedule moves: after each training step, or after each epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.001, momentum=0.9, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
    ) -> None:
        super().__init__()
        # torch's safe loader refuses a checkpoint with objects.
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        # In this memory format, a training step on a CPU takes a quarter less time.
        self.network = trial.with_weights(network).to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        # `validate_args` would cost a device sync at each step.
        accuracy = MulticlassAccuracy(num_classes=10, average="micro", validate_args=False)
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (accuracy.clone() for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` for float images `(N, 1, 28, 28)`."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.train_accuracy.update(logits, labels)
        self._log_step("train/loss", loss)
        return loss

    def _log_step(self, name: str, value: Tensor) -> None:
        # `self.log` takes 0.5 ms, which is 10 % of a step on a CPU, and Lightning keeps only every n-th value.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self.log(name, value)

    def on_train_epoch_end(self) -> None:
        self.log("train/acc", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a batch, and return its logits `(B, 10)` for callbacks."""
        return self._measure("val", self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a batch, and return its logits `(B, 10)` for callbacks."""
        return self._measure("test", self.test_accuracy, batch)

    def _measure(self, split: str, accuracy: Metric, batch: Batch) -> Tensor:
        images, labels = batch
        logits = self(images)
        accuracy.update(logits, labels)
        loss = F.cross_entropy(logits, labels)
        # With the batch size, Lightning averages over the images of all batches and processes.
        self.log(f"{split}/loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{split}/acc", accuracy, batch_size=len(labels), prog_bar=True)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.network.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer, **self._total_steps(self.lr_scheduler))
        monitor = getattr(scheduler, "monitor", "val/loss")  # Lightning's ReduceLROnPlateau names one
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor},
        }

    def _total_steps(self, schedule: Callable[..., Any]) -> dict[str, int]:
        """Return the `total_steps` that a schedule needs, unless they are given."""
        # LightningCLI passes a partial whose keywords hold every argument. Arguments not given are None.
        given = getattr(schedule, "keywords", {})
        if "total_steps" not in {*given, *signature(schedule).parameters}:
            return {}
        if given.get("total_steps") or given.get("epochs"):
            return {}
        steps = self.trainer.estimated_stepping_batches if self.lr_interval == "step" else self.trainer.max_epochs
        return {"total_steps": cast(int, steps)}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Build a classifier from a checkpoint. Lightning's own method may run code from it. This one never does.

        Args:
            checkpoint_path: The file.
            kwargs: Arguments of this class that replace the stored ones. A notebook's checkpoint needs `network`.

        Raises:
            CheckpointError: The file can't be read, is damaged, or holds more than plain data.
        """
        settings.settings_of(checkpoint.read(checkpoint_path), checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, **(kwargs | {"weights_only": True}))
