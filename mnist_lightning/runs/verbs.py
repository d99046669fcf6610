"""The verbs `fit`, `validate` and `test`."""

import atexit
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import distributed

from mnist_lightning.console import is_full_disk, silence
from mnist_lightning.errors import CheckpointError, OutputError, UserError, in_a_line
from mnist_lightning.files import no_empty_folders
from mnist_lightning.runs import advice
from mnist_lightning.runs.cli import RunCLI
from mnist_lightning.runs.divergence import Diverged
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.resume import ExactResume
from mnist_lightning.runs.signals import Stopped


def fit(args: list[str]) -> None:
    """Train a network, and print what to type next."""
    silence()
    cli = RunCLI("fit", args)
    if cli.start:
        for name in ("max_epochs", "max_steps"):
            cli.start.check_limit(name, getattr(cli.trainer, name))
        if cli.start.run and isinstance(cli.trainer.logger, RunLogger):
            cli.trainer.logger.lock()  # before Lightning starts other processes
    try:
        with errors_of_lightning(cli.trainer), no_empty_run(cli):
            cli.trainer.fit(cli.model, cli.datamodule, **cli.loading)
    except Stopped as stopped:
        print(advice.after_a_signal(stopped))
        raise
    except Diverged as error:
        if not error.trained and isinstance(cli.trainer.logger, RunLogger):
            cli.trainer.logger.remove_new_run()
        raise UserError(advice.after_divergence(error, cli)) from error
    if cli.trainer.is_global_zero:
        print(advice.after_training(cli), end="")


def validate(args: list[str]) -> None:
    """Measure a checkpoint on the validation images."""
    silence()
    cli = RunCLI("validate", args)
    with errors_of_lightning(cli.trainer):
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, **cli.loading)


def test(args: list[str]) -> None:
    """Measure a checkpoint on the test images."""
    silence()
    cli = RunCLI("test", args)
    with errors_of_lightning(cli.trainer):
        cli.trainer.test(cli.model, datamodule=cli.datamodule, **cli.loading)


@contextmanager
def no_empty_run(cli: RunCLI) -> Iterator[None]:
    """Remove the folder of a new run at the end, if the run has made no step and has no checkpoint."""
    steps_before = cli.start.content["global_step"] if cli.start else 0
    with no_empty_folders(cli.logs):
        try:
            yield
        finally:
            # Without checkpoints, as with `--trainer.enable_checkpointing false`, a run can still have curves.
            logger, no_step = cli.trainer.logger, cli.trainer.global_step <= steps_before
            if isinstance(logger, RunLogger) and no_step and not any(Path(logger.log_dir).glob("checkpoints/*.ckpt")):
                logger.remove_new_run()


@contextmanager
def errors_of_lightning(trainer: Trainer) -> Iterator[None]:
    """Turn an error of Lightning that a user can fix into a `UserError`.

    Args:
        trainer: The trainer that runs in this context.

    Raises:
        UserError: Settings contradict each other, the disk is full, or a checkpoint can't be restored.
    """
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        message = str(error)
        if isinstance(error, OSError) and is_full_disk(error):
            file = error.filename or "a file of the run"
            raise OutputError(f"{file} can't be written: {error.strerror}") from error
        if found := re.search(r"`val_check_interval` \((\d+)\) must be .* batches \((\d+)\)", message):
            raise UserError(
                f"--trainer.val_check_interval is {found[1]}; expected at most {found[2]}, the batches of an epoch. "
                "To count batches over several epochs, add --trainer.check_val_every_n_epoch null"
            ) from error
        if message.startswith("Early stopping conditioned on metric"):
            raise UserError(message) from error
        if isinstance(error, ValueError) and message.startswith("Tried to step"):
            raise UserError(f"the run is longer than its schedule: {in_a_line(error)}") from error
        # Lightning holds the checkpoint while it restores it. The optimizer uses the restored state one step later.
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        unproven = any(isinstance(callback, ExactResume) and callback.unproven for callback in callbacks)
        if not trainer._checkpoint_connector._loaded_checkpoint and not unproven:
            raise
        reason = in_a_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{trainer.ckpt_path} can't be restored: {reason}") from error


@atexit.register
def leave_process_group() -> None:
    """Leave the group of a distributed run, before Python frees its own objects.

    Lightning leaves it to the operating system, except for NCCL. The threads of Gloo then use objects of Python that
    are gone, and some processes end with SIGABRT after a good run (pytorch#179291).
    """
    gc.collect()  # the network under DDP also holds the group
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
