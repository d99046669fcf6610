"""`DigitClassifier`: how a network learns and how it is measured."""

from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities import apply_to_collection
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import CatMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning.calibration import Calibration, calibrate
from mnist_lightning.checkpoint import carry_over, epochs_done, read

Batch = tuple[Tensor, Tensor]  # float images (N, 1, 28, 28), int64 labels (N,)


class DigitClassifier(LightningModule):
    """Any network of digits, trained with cross-entropy.

    Logs `train/loss` and `lr` at steps, `train/acc`, `val/loss`, `val/acc`, `test/loss` and `test/acc` at the end
    of an epoch: losses in nats, accuracies as fractions in 0..1.

    Args:
        network: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out.
        optimizer: makes the optimizer from the parameters. The default is the tutorial's; torch's fused step computes
            the same, and takes 4 % less of an epoch.
        lr_scheduler: makes the schedule from the optimizer. One that takes `total_steps`, as `OneCycleLR` does, is
            told the number unless it was given one. `ReduceLROnPlateau` follows its `monitor`.
        lr_interval: what a step of the schedule is, a training step or an epoch.
        label_smoothing: the share of each label that is spread evenly over the classes, in 0..1.

    Attributes:
        calibration: what the last validation made of the network's confidence, None before the first. Checkpoints
            have it.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.001, momentum=0.9, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing (--model.label_smoothing) is {label_smoothing}; expected 0..1")
        # Objects would make a checkpoint that the safe loader refuses. `cli.py` adds what they were built from.
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        # With the images in the same format (`data.py`), a training step on a CPU takes a quarter less.
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self._checkpoint: dict[str, Any] | None = None  # what is being continued
        # Checking its arguments would cost the metric a device sync each step.
        accuracy = MulticlassAccuracy(num_classes=10, average="micro", validate_args=False)
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (accuracy.clone() for _ in range(3))
        self.val_logits, self.val_labels = (CatMetric(nan_strategy="disable") for _ in range(2))
        self.calibration: Calibration | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` for float images `(N, 1, 28, 28)`."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_accuracy.update(logits, labels)
        # What Lightning is told between the points that it draws costs half a millisecond a step, and is dropped.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self.log_dict({"train/loss": loss.detach(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/acc", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return logits `(B, 10)`, for callbacks."""
        logits = self._evaluate("val", self.val_accuracy, batch)
        self.val_logits.update(logits)
        self.val_labels.update(batch[1])
        return logits

    def on_validation_epoch_start(self) -> None:
        self.val_logits.reset()
        self.val_labels.reset()

    def on_validation_epoch_end(self) -> None:
        logits, labels = self.val_logits.compute(), self.val_labels.compute()  # of all processes
        if not self.trainer.sanity_checking:
            self.calibration = calibrate(logits, labels.long(), self.global_step)  # CatMetric makes them float

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return logits `(B, 10)`, for callbacks."""
        return self._evaluate("test", self.test_accuracy, batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return logits `(B, 10)`."""
        return self(batch[0])

    def _evaluate(self, stage: str, accuracy: Metric, batch: Batch) -> Tensor:
        images, labels = batch
        logits = self(images)
        accuracy.update(logits, labels)
        # Means over the images of all batches and processes, for which Lightning wants the batch's size.
        loss = F.cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}/acc", accuracy, batch_size=len(labels), prog_bar=True)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.network.parameters())
        if self.lr_scheduler is None:
            self._continue(optimizer, None)
            return optimizer
        scheduler = self.lr_scheduler(optimizer, **self._total_steps(self.lr_scheduler))
        self._continue(optimizer, scheduler)
        # Lightning's ReduceLROnPlateau names its metric; torch's own, and other schedules, do not.
        monitor = getattr(scheduler, "monitor", "val/loss")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval, "monitor": monitor},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `train/acc` has counted in this epoch, over all processes, and the calibration.

        Lightning saves no metrics.
        """
        if self.calibration:
            checkpoint["calibration"] = asdict(self.calibration)  # plain numbers, for the safe loader
        with self.train_accuracy.sync_context():
            checkpoint["train_accuracy"] = apply_to_collection(self.train_accuracy.metric_state, Tensor, Tensor.clone)
        # An optimizer or a data module of a notebook's may have been given numbers of NumPy's, at which the safe
        # loader stops.
        checkpoint.update(apply_to_collection(checkpoint, np.generic, np.generic.item))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._checkpoint = checkpoint
        # Those of other programs, and from before the first validation, have none.
        calibration = checkpoint.get("calibration")
        self.calibration = Calibration(**calibration) if calibration else None
        if self._trainer is not None and self.global_rank == 0:
            for name, value in checkpoint.get("train_accuracy", {}).items():
                setattr(self.train_accuracy, name, value.to(self.device))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Build a classifier from a checkpoint of `fit`, or of a notebook's, which needs `network=` too.

        Args:
            checkpoint_path: a file.
            kwargs: those of Lightning's `load_from_checkpoint`, and the arguments of this class that are to differ.

        Raises:
            CheckpointError: the file can't be read, is damaged, or holds more than plain data. Lightning's own method
                runs what a pickle from a URL, or under TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, asks it to run.
        """
        read(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, **(kwargs | {"weights_only": True}))

    def _continue(self, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
        """Where optimizer or schedule are configured otherwise than the checkpoint's, let this configuration win."""
        if self._checkpoint is None or "optimizer" not in self.hparams:  # a notebook's: objects can't be compared
            return
        old, new = self._checkpoint.get("hyper_parameters", {}), self.hparams
        same_settings = all(old.get(key) == new[key] for key in ("optimizer", "lr_scheduler", "lr_interval"))
        total_steps = getattr(scheduler, "total_steps", None)
        same_length = all(state.get("total_steps") == total_steps for state in self._checkpoint["lr_schedulers"])
        if same_settings and same_length:
            return
        by_step = self.lr_interval == "step"
        carry_over(
            self._checkpoint,
            optimizer,
            scheduler,
            position=self._checkpoint["global_step"] if by_step else epochs_done(self._checkpoint),
            same_class=old.get("optimizer", {}).get("class_path") == new["optimizer"]["class_path"],
        )

    def _total_steps(self, schedule: Callable[..., Any]) -> dict[str, int]:
        """Return the argument that a schedule such as `OneCycleLR` needs, unless it was given."""
        # LightningCLI hands over a partial with every argument among its keywords, None where none was given.
        given = getattr(schedule, "keywords", {})
        if "total_steps" not in {*given, *signature(schedule).parameters}:
            return {}
        if given.get("total_steps") or given.get("epochs"):
            return {}
        steps = self.trainer.estimated_stepping_batches if self.lr_interval == "step" else self.trainer.max_epochs
        return {"total_steps": cast(int, steps)}
