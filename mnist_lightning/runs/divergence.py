"""`Divergence`: stops a run whose loss is not finite. Such a run learns nothing more."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning import checkpoint
from mnist_lightning.errors import UserError
from mnist_lightning.runs.saving import end_run, highest

EVERY = 50  # steps between two checks, except on a CPU


class Diverged(UserError):
    """A loss or the weights of a run are not finite.

    Args:
        message: What is not finite, at which step, and with which learning rate.
        step: The step. If several are possible, the first of them.
        trained: Whether this process had done a step before.
    """

    def __init__(self, message: str, step: int, trained: bool) -> None:
        super().__init__(message)
        self.step = step
        self.trained = trained


class Divergence(Callback):
    """Stops all processes of a run when a training or validation loss of one of them is NaN or infinite.

    Args:
        stop: If it is False, the run goes on after a warning.
    """

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._checked = trainer.global_step
        self._every = 1 if trainer.strategy.root_device.type == "cpu" else EVERY
        self._losses: float | torch.Tensor = 0.0
        self._note_step(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._note_step(trainer)

    def _note_step(self, trainer: Trainer) -> None:
        # Read before the step: its end raises the counter, and may change the rate.
        self._step, self._lr = trainer.global_step, float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        # The sum is finite if all losses are, and stays on the device. To read it, the process waits for the device.
        # A CPU has no such queue, and the check takes 0.1 % of a step. On a GPU, the wait at each step would slow down
        # all runs, and a late stop costs seconds: `CheckpointWriter` checks the weights.
        self._losses = self._losses + loss.detach().float()
        if self._step == self._start or (self._step + 1) % self._every == 0:
            self._check(trainer, pl_module, "train/loss is", self._losses, trained=self._step > self._start)
            self._losses, self._checked = 0.0, self._step + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._check(trainer, pl_module, "val/loss is", trainer.callback_metrics.get("val/loss", 0.0))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # No loss is computed after the last step, so check the weights.
        weights = 0.0 if checkpoint.not_finite(pl_module) is None else math.nan
        self._check(trainer, pl_module, "the weights are", weights)

    def _check(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        name: str,
        value: float | torch.Tensor,
        trained: bool = True,
    ) -> None:
        if self._warned or not highest(trainer, not math.isfinite(value)):
            return
        first = min(self._checked, self._step)
        steps = f"step {first}" if first == self._step else f"one of the steps {first} to {self._step}"
        error = Diverged(f"{name} not finite at {steps}, with the learning rate {self._lr:g}", first, trained)
        if self.stop:
            end_run(trainer, pl_module, error)
        self._warned = True
        if trainer.is_global_zero:
            print(f"{error}. Training goes on, but weights that are not finite are never saved.", flush=True)
