"""`CheckpointWriter`: when a run's checkpoints are written, so that it goes on from each as if it had not stopped."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mnist_lightning.files import remove_partial
from mnist_lightning.runs.signals import Stopped, StopSignal


class CheckpointWriter(Checkpoint):
    """Writes a run's `best.ckpt` and `last.ckpt`, always between two steps.

    `best` is written after a validation with a higher `val/acc` than any before it; a run without validation writes
    it after every epoch. `last` is written after every epoch, every so many steps, and when a signal ends the run.

    Lightning's `ModelCheckpoint` writes from within a step, a validation or an epoch's end, when a part of what
    they log has been drawn: a run that goes on from there draws the rest twice, or never. Between two steps all of
    it is drawn, the metrics of the epoch stand at the last step, and nothing random is under way (`data.py`).

    Args:
        every_n_steps: optimizer steps from one `last` to the next within an epoch, at least 1: what a kill can cost.
            Each takes about 5 ms for `LeNet`, which at 300 is 0.3 % of a run on two CPU cores.

    Attributes:
        best_score: the highest `val/acc` so far, None before the first validation.

    Raises:
        ValueError: `every_n_steps` is out of its range.
    """

    def __init__(self, every_n_steps: int = 300) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps (--checkpoint.every_n_steps) is {every_n_steps}; expected at least 1")
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self._stop = StopSignal()
        self._best_is_due = False
        self._last_is_due = False

    def path(self, name: str) -> Path:
        """Return where the checkpoint `best` or `last` is written."""
        return self._folder / f"{name}.ckpt"

    def state_dict(self) -> dict[str, float | None]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        self.best_score = state_dict["best_score"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = Path(trainer.log_dir or trainer.default_root_dir)  # the same on all processes
        self._folder = run / "checkpoints"
        if trainer.is_global_zero:
            remove_partial(run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All processes decide alike, whatever they see of the folder.
        if not trainer.strategy.broadcast(self.path("best").exists()):  # a score from another run
            self.best_score = None
        self._saved_step = trainer.global_step
        self._last_is_due = True  # there is one from the first step on
        self._stop.watch()
        # Lightning takes the first epoch after a resume for one to be made up for, in which it leaves out the step
        # of `ReduceLROnPlateau`; with `max_steps`, it also takes an epoch's start for its end, and counts it twice.
        loop = trainer.fit_loop
        loop._restarting = False
        if loop.epoch_progress.current.ready == loop.epoch_progress.current.completed:
            loop.epoch_loop._restarting = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        score = trainer.callback_metrics["val/acc"].item()
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            self._best_is_due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_is_due = True
        if not trainer.enable_validation and self.best_score is None:
            self._best_is_due = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:  # gradients are no part of a checkpoint
            return
        signum = self._signal_to_any(trainer)
        if signum or trainer.global_step - self._saved_step >= self.every_n_steps:
            self._last_is_due = True
        self._write(trainer)
        self._stop_for(signum, trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_is_due = True
        self._write(trainer)
        self._stop_for(self._signal_to_any(trainer), trainer, pl_module)

    def _stop_for(self, signum: int, trainer: Trainer, pl_module: LightningModule) -> None:
        if not signum:
            return
        if trainer.progress_bar_callback:  # which would draw itself once more, below the last words
            trainer.progress_bar_callback.on_train_end(trainer, pl_module)
        # Lightning kills the first of its processes when it sees another one end with an error.
        raise Stopped(signum, self.path("last"), code=None if trainer.is_global_zero else 0)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count back the batch that Lightning has counted as ready, if it is not begun.

        Its restart knows of no checkpoint from before a batch: this is made one from the end of the batch, or of the
        epoch, before it.
        """
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        if batches["current"]["ready"] == batches["current"]["started"]:
            return
        batches["is_last_batch"] = False
        for count in (batches["total"], batches["current"]):
            count["ready"] = count["started"]
        if batches["current"]["ready"] > 0:
            # As in `on_train_batch_end`, when Lightning has not counted the batch as completed, nor its step.
            for count in (batches["total"], batches["current"]):
                count["completed"] -= 1
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        else:
            # As before `on_train_epoch_start`, when Lightning has not counted the epoch as begun.
            for count in (epochs["total"], epochs["current"]):
                count["ready"] = count["started"] = count["completed"]

    def _signal_to_any(self, trainer: Trainer) -> int:
        """Return the signal that any of the processes has received, or 0, on all of them after the same step."""
        if trainer.world_size == 1:
            return self._stop.received
        received = torch.tensor(self._stop.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _write(self, trainer: Trainer) -> None:
        # `last` comes second: it says that `best` has this score.
        if self._best_is_due:
            trainer.save_checkpoint(self.path("best"), weights_only=False)
        if self._best_is_due or self._last_is_due:
            trainer.save_checkpoint(self.path("last"), weights_only=False)
            self._saved_step = trainer.global_step
        self._best_is_due = self._last_is_due = False
