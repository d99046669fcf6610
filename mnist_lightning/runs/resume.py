"""`ExactResume`: a run that continues from a checkpoint goes on as if it had never stopped."""

import random
import warnings
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities import apply_to_collection
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import CheckpointError
from mnist_lightning.loader import EpochSampler
from mnist_lightning.runs import training_state
from mnist_lightning.settings import check_plain

KEY = "ExactResume"  # the key of its state in a checkpoint


class ExactResume(Callback):
    """Makes a continued run equal to an uninterrupted one, bit for bit on a CPU.

    If `max_steps` or `max_time` ended the run within an epoch, the rest of that epoch is left out.

    The command line attaches it. In a notebook, write `Trainer(callbacks=[ExactResume()])`. It needs a
    `DigitClassifier` and an `MNISTDataModule`. Lightning alone restores weights, optimizer and counters. This callback
    adds what Lightning leaves out:

    - the position within the epoch, so that no image is repeated or left out
    - the images that `train/acc` has counted so far in the epoch
    - the random numbers of a step, such as those of dropout: it seeds each step
    - new settings of the optimizer and the schedule, which Lightning overwrites with the checkpoint's
    - the right counters for a checkpoint that is written between two steps

    Everything random in a step then follows from seed, epoch, batch and rank. If your own data module draws random
    numbers, seed them as `MNISTDataModule._generator` does: the hooks of a data module run before this callback.

    Attributes:
        unproven: Whether a checkpoint was restored, and no training step has succeeded since.
    """

    def __init__(self) -> None:
        self.unproven = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, DigitClassifier) or not isinstance(trainer.datamodule, MNISTDataModule):  # type: ignore[attr-defined]
            raise TypeError("ExactResume needs a DigitClassifier and an MNISTDataModule")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore position, accuracy and settings.

        Raises:
            CheckpointError: The checkpoint is damaged, or lies within an epoch whose images this run would order
                differently.
        """
        # Lightning calls `on_load_checkpoint` only if the checkpoint has states of callbacks. It restores the optimizer
        # from this object, after this hook.
        checkpoint = trainer._checkpoint_connector._loaded_checkpoint
        if not checkpoint:
            return
        self.unproven = True
        model = cast(DigitClassifier, pl_module)
        if state := checkpoint.get(KEY):  # a checkpoint that was written without this callback has none
            self._restore_position(trainer, state)
            if trainer.is_global_zero:  # the counts of all processes
                for name in model.train_accuracy.metric_state:
                    getattr(model.train_accuracy, name).copy_(state["train_accuracy"][name])
        self._keep_new_settings(trainer, model, checkpoint)
        training_state.check(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning treats the first epoch after a resume as a repetition, and skips the step of `ReduceLROnPlateau`
        # in it. With `max_steps`, it also mistakes the start of an epoch for its end, and counts the epoch twice.
        loop = trainer.fit_loop
        loop._restarting = False
        if loop.epoch_progress.current.ready == loop.epoch_progress.current.completed:
            loop.epoch_loop._restarting = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all global random states for this step."""
        sampler = _sampler(trainer)
        random.seed(f"{sampler.seed}, {sampler.epoch}, {batch_idx}, {sampler.rank}")
        np.random.seed(random.getrandbits(32))
        # `torch.manual_seed` would take 0.2 ms, as it prepares devices that may not exist.
        torch.default_generator.manual_seed(seed := random.getrandbits(63))
        if (device := trainer.strategy.root_device).type != "cpu":
            torch.get_device_module(device).manual_seed(seed)

    def on_train_batch_end(self, *_: Any) -> None:
        self.unproven = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        accuracy = cast(DigitClassifier, pl_module).train_accuracy
        with accuracy.sync_context():  # over all processes
            counts = apply_to_collection(accuracy.metric_state, Tensor, Tensor.clone)
        checkpoint[KEY] = {**_order(trainer), "batches_done": _batches_done(trainer), "train_accuracy": counts}
        _count_back(checkpoint["loops"]["fit_loop"])
        # A notebook's learning rate may come from NumPy, and torch's safe loader refuses NumPy's numbers.
        checkpoint.update(apply_to_collection(checkpoint, np.generic, np.generic.item))

    def _restore_position(self, trainer: Trainer, state: dict[str, Any]) -> None:
        check_plain({name: value for name, value in state.items() if name != "train_accuracy"}, "the checkpoint")
        sampler = _sampler(trainer)
        sampler.seed = state["seed"]
        for name, here in _order(trainer).items():
            if state["batches_done"] and state[name] != here:
                raise CheckpointError(
                    f"the checkpoint lies within an epoch that has {name} {state[name]}; "
                    f"expected the same until the epoch ends, and found {here}"
                )
        sampler.start = state["batches_done"]
        if not 0 <= sampler.start < len(sampler):
            raise CheckpointError(f"the checkpoint says that {sampler.start} of {len(sampler)} batches are done")
        # Lightning expects the position in the state of the loader, and drops that state if a schedule asks for the
        # number of steps (PL#20550).
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def _keep_new_settings(self, trainer: Trainer, model: DigitClassifier, checkpoint: dict[str, Any]) -> None:
        """Put this run's settings of optimizer and schedule into the checkpoint, if they differ.

        torch restores all settings together with the state: a new learning rate would be overwritten without a
        message.
        """
        old, new = checkpoint.get("hyper_parameters", {}), model.hparams
        if "optimizer" not in new:  # a notebook's model: its objects can't be compared
            return
        optimizer = trainer.optimizers[0]
        scheduler = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
        same_settings = all(old.get(key) == new[key] for key in ("optimizer", "lr_scheduler", "lr_interval"))
        total_steps = getattr(scheduler, "total_steps", None)
        same_length = all(state.get("total_steps") == total_steps for state in checkpoint["lr_schedulers"])
        if same_settings and same_length:
            return
        # `ReduceLROnPlateau` starts from the beginning, as its position depends on past metrics.
        if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
            optimizer.step()  # changes nothing without gradients, and prevents torch's warning about the order of steps
            try:
                for _ in range(checkpoint["global_step"] if model.lr_interval == "step" else epochs_done(checkpoint)):
                    scheduler.step()
            except ValueError as error:
                raise CheckpointError(f"the run is longer than its new schedule: {error}") from error
        settings = optimizer.state_dict()
        if old.get("optimizer", {}).get("class_path") == new["optimizer"]["class_path"]:
            settings["state"] = checkpoint["optimizer_states"][0]["state"]  # the momentum
        checkpoint["optimizer_states"] = [settings]
        checkpoint["lr_schedulers"] = [scheduler.state_dict()] if scheduler else []


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of finished epochs in a checkpoint of `fit`."""
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    # Lightning's ModelCheckpoint writes after the last batch, before the epoch counts as completed.
    at_its_end = loops["epoch_loop.batch_progress"]["is_last_batch"] and epochs["started"] > epochs["completed"]
    return int(epochs["completed"] + at_its_end)


def _sampler(trainer: Trainer) -> EpochSampler:
    """Return the sampler of the training images. It exists after the data module's `setup`."""
    return trainer.datamodule.train_dataloader().sampler  # type: ignore[attr-defined]


def _order(trainer: Trainer) -> dict[str, Any]:
    """Return everything that the order of the training images depends on."""
    sampler = _sampler(trainer)
    return {
        "seed": sampler.seed,
        "images": len(sampler.indices),
        "batch_size": sampler.batch_size,
        "processes": sampler.world_size,
        "limit_train_batches": trainer.limit_train_batches,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def _batches_done(trainer: Trainer) -> int:
    """Return how many batches of the current epoch are done, 0 at its end."""
    # Use Lightning's count: our own would be one too high after an exception in a training step.
    loop: Any = trainer.fit_loop
    done = loop.epoch_loop.batch_progress.current.processed
    epochs = loop.epoch_progress.current
    finished = done >= trainer.num_training_batches or epochs.processed == epochs.started
    return 0 if finished else done


def _count_back(loops: dict[str, Any]) -> None:
    """Take back the batch that Lightning counts as ready but that has not started.

    Lightning can't restart from a checkpoint that is written before a batch. This function makes the checkpoint look
    as if it was written after the previous batch or epoch.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    if batches["current"]["ready"] == batches["current"]["started"]:
        return
    batches["is_last_batch"] = False
    for count in (batches["total"], batches["current"]):
        count["ready"] = count["started"]
    if batches["current"]["ready"] > 0:
        # As in `on_train_batch_end`, before Lightning counts the batch and its step as completed.
        for count in (batches["total"], batches["current"]):
            count["completed"] -= 1
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    else:
        # The state before `on_train_epoch_start`: the epoch does not count as started.
        for count in (epochs["total"], epochs["current"]):
            count["ready"] = count["started"] = count["completed"]
