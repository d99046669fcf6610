"""What to type next, after a run has ended. A person can type each command as it is printed."""

import os
import shlex
import signal

from mnist_lightning.console import program
from mnist_lightning.runs import folders
from mnist_lightning.runs.cli import RunCLI
from mnist_lightning.runs.divergence import Diverged
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.saving import CheckpointWriter
from mnist_lightning.runs.signals import Stopped

HIGHEST_LR = 0.1  # the highest learning rate that is proposed: the recipes in configs/ use it


def after_a_signal(stopped: Stopped) -> str:
    """Return which signal stopped the run, and how to continue it."""
    return (
        f"\nStopped by {signal.Signals(stopped.signum).name}; the run is saved.\n"
        f"Continue:   {program()} fit --ckpt_path {shlex.quote(os.path.relpath(stopped.checkpoint))}"
    )


def after_divergence(error: Diverged, cli: RunCLI) -> str:
    """Return what happened, and how to continue."""
    if not error.trained:
        is_removed = isinstance(cli.trainer.logger, RunLogger) and not (cli.start and cli.start.run)
        removed = ", and the new run is removed" if is_removed else ""
        hint = "look for the reason in the network and in its images"
        if cli.start:
            hint = f"continue from an earlier checkpoint than {os.path.relpath(cli.start.path)}"
        return f"{error}.\nNothing was trained{removed}; {hint}"
    writer = _writer(cli)
    if writer is None:
        return f"{error}; try a smaller one"
    best, last = writer.path("best"), writer.path("last")
    if best.exists() or writer.saved_step < error.step:  # `last` is older than the first bad step
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
    return f"{error}.\n{what}: {program()} fit {origin} {shlex.quote(os.path.relpath(path))} {flag} {rate:g}"


def after_training(cli: RunCLI) -> str:
    """Return the result of a run, and commands that use it. Empty if there is no checkpoint."""
    writer = _writer(cli)
    if writer is None or not writer.path("last").exists():
        return ""
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
    curves = ""
    if isinstance(trainer.logger, RunLogger):
        curves = f"See curves: tensorboard --logdir {shlex.quote(os.path.relpath(trainer.logger.root_dir))}\n"
    return (
        f"\n{name.capitalize()} checkpoint{score}: {path}\n"
        f"Test it:    {program()} test --ckpt_path {file}{root}\n"
        f"Use it:     {program()} predict digit.png --ckpt_path {file}\n"
        f"Continue:   {program()} fit --ckpt_path {run}{longer}{root}\n{curves}"
    )


def _writer(cli: RunCLI) -> CheckpointWriter | None:
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, CheckpointWriter)), None)
