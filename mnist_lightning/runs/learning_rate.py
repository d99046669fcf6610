"""`LearningRateFinder` on the command line: the search comes before the run, and the run receives its result."""

import logging
import tempfile
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.errors import UserError
from mnist_lightning.runs.arguments import as_list

FINDER = "lightning.pytorch.callbacks.LearningRateFinder"  # jsonargparse completes a shorter name


def take_finder(settings: Any, is_new: bool) -> dict[str, Any] | None:
    """Remove the `LearningRateFinder` from the settings of a run, and return its arguments. None if there is none.

    So the run does not search again if it continues or is repeated.

    Args:
        settings: The settings of the run.
        is_new: Whether the run does not continue from a checkpoint.

    Raises:
        UserError: A search is not possible here.
    """
    trainer, optimizer, schedule = settings.trainer, settings.model.optimizer, settings.model.lr_scheduler
    callbacks = as_list(trainer.callbacks)
    found = [callback for callback in callbacks if callback.class_path == FINDER]
    if not found:
        return None
    arguments: dict[str, Any] = found[-1].init_args.as_dict()
    try:
        LearningRateFinder(**arguments)
    except ValueError as error:
        raise UserError(f"--trainer.callbacks: LearningRateFinder: {error}") from error
    if not is_new:
        raise UserError("LearningRateFinder can't continue a run; leave it out, and the run keeps its learning rate")
    if "lr" not in optimizer.get("init_args", {}):
        raise UserError(f"LearningRateFinder needs an optimizer with an argument lr; {optimizer.class_path} has none")
    if schedule and "max_lr" in schedule.get("init_args", {}):
        raise UserError(
            f"LearningRateFinder finds the learning rate of the optimizer, and {schedule.class_path} replaces this "
            "rate; expected another schedule or none"
        )
    trainer.callbacks = [callback for callback in callbacks if callback not in found] or None
    return arguments


def find(
    model: DigitClassifier, data: MNISTDataModule, trainer: Callable[..., Trainer], arguments: dict[str, Any]
) -> float:
    """Try many learning rates, and return the one at which the loss falls fastest.

    Lightning's callback looks for `lr` in the model, and here the rate is an argument of the optimizer. The callback
    also changes the rate after the schedule was made, which would keep the old one.

    Args:
        model: The classifier, which is trained. Its optimizer must have an argument `lr`.
        data: The images.
        trainer: Makes the trainer of the run. Its arguments replace settings of the run.
        arguments: The arguments of the `LearningRateFinder`.

    Raises:
        UserError: The losses suggest no learning rate.
    """
    lightning = logging.getLogger("lightning.pytorch")  # it would tell of a run that stops, and of its checkpoint
    level, steps = lightning.level, arguments["num_training_steps"]
    options = {name: arguments[name] for name in ("min_lr", "max_lr", "mode", "early_stop_threshold")}
    lightning.setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            searching = trainer(
                default_root_dir=folder,  # Lightning keeps the first weights here
                callbacks=[],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                fast_dev_run=False,
                max_epochs=-1,
                max_steps=-1,
                max_time=None,
                limit_val_batches=0,
            )
            found = Tuner(searching).lr_find(model, datamodule=data, num_training=steps, update_attr=False, **options)
        rate = found.suggestion() if found else None
    finally:
        lightning.setLevel(level)
    if rate is None:
        raise UserError(f"LearningRateFinder found no learning rate in {steps} steps; expected more steps, about 100")
    return rate
