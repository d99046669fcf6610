"""The verbs `fit`, `validate` and `test`."""

import atexit
import gc
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from mnist_lightning.console import is_full_disk, program, silence
from mnist_lightning.errors import OutputError, UserError
from mnist_lightning.files import no_empty_folders
from mnist_lightning.runs import folders
from mnist_lightning.runs.cli import RunCLI
from mnist_lightning.runs.divergence import Diverged
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.saving import CheckpointWriter
from mnist_lightning.runs.signals import Stopped

HIGHEST_LR = 0.1  # the highest learning rate that is proposed: the recipes in configs/ use it


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
        with errors_of_lightning(), no_empty_run(cli):
            cli.trainer.fit(cli.model, cli.datamodule, **cli.loading)
    except Stopped as stopped:
        path = shlex.quote(os.path.relpath(stopped.checkpoint))
        print(f"\nStopped by {signal.Signals(stopped.signum).name}; the run is saved.")
        print(f"Continue:   {program()} fit --ckpt_path {path}")
        raise
    except Diverged as error:
        raise UserError(f"{error}{what_to_do_about(error, cli)}") from error
    say_what_to_do_next(cli)


def validate(args: list[str]) -> None:
    """Measure a checkpoint on the validation images."""
    silence()
    cli = RunCLI("validate", args)
    with errors_of_lightning():
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, **cli.loading)


def test(args: list[str]) -> None:
    """Measure a checkpoint on the test images."""
    silence()
    cli = RunCLI("test", args)
    with errors_of_lightning():
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
            if isinstance(cli.trainer.logger, RunLogger) and cli.trainer.global_step <= steps_before:
                cli.trainer.logger.remove_unused()


@contextmanager
def errors_of_lightning() -> Iterator[None]:
    """Turn an error of Lightning that a user can fix into a `UserError`.

    Raises:
        UserError: Settings contradict each other, or the disk is full.
    """
    atexit.register(leave_process_group)
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except (RuntimeError, ValueError) as error:
        message = str(error)
        if found := re.search(r"`val_check_interval` \((\d+)\) must be .* batches \((\d+)\)", message):
            raise UserError(
                f"--trainer.val_check_interval is {found[1]}; expected at most {found[2]}, the batches of an epoch. "
                "To count batches over several epochs, add --trainer.check_val_every_n_epoch null"
            ) from error
        if not message.startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(message) from error
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise OutputError(f"{error.filename or 'a file of the run'} can't be written: {error.strerror}") from error


def leave_process_group() -> None:
    """Leave the group of a distributed run, before Python frees its own objects.

    Lightning leaves it to the operating system, except for NCCL. The threads of Gloo then use objects of Python that
    are gone, and some processes end with SIGABRT after a good run (pytorch#179291).
    """
    gc.collect()  # the network under DDP also holds the group
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def what_to_do_about(error: Diverged, cli: RunCLI) -> str:
    """Return how to continue after a run has diverged. A new run without a step is removed."""
    if not error.trained:
        removed = ""
        if isinstance(cli.trainer.logger, RunLogger) and not (cli.start and cli.start.run):
            shutil.rmtree(cli.trainer.logger.log_dir, ignore_errors=True)
            removed = ", and the new run is removed"
        advice = "look for the reason in the network and in its images"
        if cli.start:
            advice = f"continue from an earlier checkpoint than {os.path.relpath(cli.start.path)}"
        return f".\nNothing was trained{removed}; {advice}"
    writer = _writer(cli)
    if writer is None:
        return "; try a smaller one"
    best, last = writer.path("best"), writer.path("last")
    if best.exists() or writer.saved_step < error.step:  # a finite loss came after `last`
        what, origin, path = "Continue", "--ckpt_path", best if best.exists() else last
    else:
        what, origin = "No checkpoint is good. Start again", "--config"
        path = folders.configurations(last.parents[1])[-1]
    settings, flag = cli.config.model.as_dict(), "--model.optimizer.lr"
    rate = settings["optimizer"]["init_args"].get("lr")
    schedule = (settings["lr_scheduler"] or {}).get("init_args", {})
    if schedule.get("max_lr"):  # `OneCycleLR` replaces the optimizer's own rate
        flag, rate = "--model.lr_scheduler.max_lr", schedule["max_lr"]
    rate = min(rate / 10, HIGHEST_LR) if isinstance(rate, int | float) else HIGHEST_LR
    return f".\n{what}: {program()} fit {origin} {shlex.quote(os.path.relpath(path))} {flag} {rate:g}"


@rank_zero_only
def say_what_to_do_next(cli: RunCLI) -> None:
    """Print the result of a run, and commands that use it."""
    writer = _writer(cli)
    if writer is None or not writer.path("last").exists():  # for example, with `--trainer.max_epochs 0`
        return
    name = "best" if writer.path("best").exists() else "last"
    score = "" if name == "last" or writer.best_score is None else f" with val/acc {writer.best_score:.4f}"
    path = os.path.relpath(writer.path(name))
    run, file = shlex.quote(os.path.dirname(os.path.dirname(path))), shlex.quote(path)
    trainer = cli.trainer
    if 0 < trainer.max_steps <= trainer.global_step:
        longer = f" --trainer.max_steps {2 * trainer.global_step}"
    else:
        longer = f" --trainer.max_epochs {2 * max(1, trainer.current_epoch)}"
    if cli.config.trainer.max_time:
        longer += " --trainer.max_time null"
    root = "" if cli.datamodule.root == "data" else f" --data.root {shlex.quote(cli.datamodule.root)}"
    print(
        f"\n{name.capitalize()} checkpoint{score}: {path}\n"
        f"Test it:    {program()} test --ckpt_path {file}{root}\n"
        f"Use it:     {program()} predict digit.png --ckpt_path {file}\n"
        f"Continue:   {program()} fit --ckpt_path {run}{longer}{root}"
    )
    if isinstance(cli.trainer.logger, RunLogger):
        print(f"See curves: tensorboard --logdir {shlex.quote(os.path.relpath(cli.trainer.logger.root_dir))}")


def _writer(cli: RunCLI) -> CheckpointWriter | None:
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, CheckpointWriter)), None)
