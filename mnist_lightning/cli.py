"""The command line: LightningCLI, and what it takes to train, find and test a run of MNIST with it."""

import argparse
import itertools
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning import checkpoint, console
from mnist_lightning.archive import ArchiveError
from mnist_lightning.checkpoint import CheckpointError, DurableCheckpointIO
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.console import PROGRAM
from mnist_lightning.data import DEFAULT_SEED, MNISTDataModule
from mnist_lightning.output import OutputError
from mnist_lightning.runs import folders, signals
from mnist_lightning.runs.figures import Pictures
from mnist_lightning.runs.folders import NoCheckpointError
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.recorder import RunRecorder
from mnist_lightning.runs.saving import CheckpointWriter
from mnist_lightning.runs.signals import Stopped
from mnist_lightning.trainer import DigitTrainer
from mnist_lightning.use import compare
from mnist_lightning.use.photos import PhotoError

READERS = ("predict", "export")  # verbs that use a network, and neither train nor measure it


def main(args: list[str] | None = None) -> None:
    """Run one verb: `fit`, `validate`, `test`, `predict`, `export` or `compare`.

    Args:
        args: what would follow `python -m mnist_lightning` on a command line; that of this process by default.

    Raises:
        SystemExit: the arguments, or the files that they name, can't be used. A message says why.
    """
    console.silence()
    try:
        with signals.exit_at_once():
            typed = sys.argv[1:] if args is None else args
            if typed[:1] == ["compare"]:  # it trains nothing: none of LightningCLI's flags would mean anything
                compare.compare(typed[1:])
            else:
                DigitCLI(args)  # LightningCLI warns if it is handed what is in `sys.argv` too
    except Stopped as stopped:
        if stopped.code:  # on one process of several
            path = shlex.quote(os.path.relpath(stopped.checkpoint))
            print(f"\nStopped by {signal.Signals(stopped.signum).name}; the run is saved.")
            print(f"Continue:   {PROGRAM} fit --ckpt_path {path}")
        raise
    except (
        ArchiveError,
        CheckpointError,
        NoCheckpointError,
        OutputError,
        PhotoError,
        MisconfigurationException,
    ) as error:
        console.fail(str(error))
    except OSError as error:
        if not console.is_full_disk(error):
            raise
        console.fail(f"{error.filename or 'a file of the run'} can't be written: {error.strerror}")


class DigitCLI(LightningCLI):
    """LightningCLI for `DigitClassifier` and `MNISTDataModule`."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            DigitClassifier,
            MNISTDataModule,
            trainer_class=DigitTrainer,
            save_config_callback=RunRecorder,
            # An epoch takes seconds: what a sanity check would find, the first validation finds.
            trainer_defaults={"max_epochs": 20, "num_sanity_val_steps": 0},
            seed_everything_default=DEFAULT_SEED,
            parser_class=console.Parser,
            parser_kwargs={"epilog": f"{PROGRAM} compare RUN_A RUN_B: {compare.DESCRIPTION}"},
            args=args,
            # DigitClassifier configures its own, with the number of steps at hand.
            auto_configure_optimizers=False,
            # `instantiate_classes` below does it.
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model.network": {"class_path": "mnist_lightning.networks.LeNet"}})
        parser.add_class_arguments(CheckpointWriter, "checkpoint")
        parser.add_argument("--pictures", type=bool, default=True, help="whether TensorBoard shows pictures, too")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint stores, or for `fit` the run's configuration, in place of the defaults.

        LightningCLI would let the checkpoint win over the command line (PL#20801).
        """
        args = completed(sys.argv[1:] if args is None else args)
        verb, name, logs = self._asked_for(parser, args)
        self.checkpoint: Path | None = None
        self.run: Path | None = None
        if name is None:
            return
        self.checkpoint = folders.find_checkpoint(name, logs) if name in ("best", "last") else Path(name)
        self.run = folders.of_checkpoint(self.checkpoint)
        content = self.stored = self._read(self.checkpoint, logs)
        try:
            model, data = content.get("hyper_parameters", {}), content.get("datamodule_hyper_parameters", {})
            stored = {f"model.{key}": value for key, value in model.items() if not key.startswith("_")}
            stored |= {f"data.{key}": value for key, value in data.items()}
            if (seed := content.get("MNISTDataModule", {}).get("seed")) is not None:
                stored["seed_everything"] = seed
            self._parser(verb).set_defaults(stored)
        except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint} (--ckpt_path) is not of this program: {error.args[0]}") from error
        if verb == "fit" and self.run:
            after_verb = args.index(verb) + 1
            args[after_verb:after_verb] = ["--config", str(self._configuration(self.run))]
        self.config = parser.parse_args(args)
        if verb == "fit" and seed not in (None, self.config.fit.seed_everything):
            parser.error(f"--seed_everything is {self.config.fit.seed_everything}; expected {seed}, as the run began")
        # Out of LightningCLI's sight, and of the run's record: started again from it, a run would resume.
        self.config[verb].ckpt_path = None

    def _asked_for(self, parser: LightningArgumentParser, args: list[str]) -> tuple[str, str | None, Path]:
        """Return the verb, what checkpoint it is to start from, and the folder of the runs."""
        # Ahead of all other flags, as those of the checkpoint's classes are not known yet.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for flag in (["--config", "-c"], ["--ckpt_path"], ["--trainer.default_root_dir"]):
            first.add_argument(*flag)
        typed = vars(first.parse_known_args(args)[0])
        verb = next((argument for argument in args if argument in self.subcommands()), None)
        if verb and "ckpt_path" in typed and "config" not in typed:
            name, root = typed["ckpt_path"], typed.get("trainer.default_root_dir")
        else:
            self.config = parser.parse_args(args)
            verb = str(self.config.subcommand)
            name, root = self.config[verb].ckpt_path, self.config[verb].trainer.default_root_dir
        if verb != "fit" and name is None:
            name = "best"  # nobody wants to know how random weights do
        return verb, name, self._logs(root)

    @staticmethod
    def _read(path: Path, logs: Path) -> dict[str, Any]:
        try:
            return checkpoint.read(path)
        except CheckpointError as error:
            for other in folders.next_best(path, logs) if path.is_file() else ():
                if checkpoint.is_whole(other):
                    raise CheckpointError(f"{error}\nThe next best is {os.path.relpath(other)}") from error
            raise

    @staticmethod
    def _configuration(run: Path) -> Path:
        path = folders.configurations(run)[-1]
        try:
            whole = isinstance(yaml.safe_load(path.read_text()), dict)
        except (OSError, ValueError, yaml.YAMLError):
            whole = False
        if not whole:
            raise CheckpointError(
                f"{path}, the newest configuration of the run, can't be read; without it the one before it counts, "
                "and a checkpoint that is copied out of the run's folder starts a new run"
            )
        return path

    def instantiate_classes(self) -> None:
        settings = self.config[self.subcommand].model.as_dict()
        try:
            checkpoint.check_settings(settings)
            super().instantiate_classes()
        except ValueError as error:  # an argument that one of our classes refuses
            self.parser.error(str(error))
        try:
            self.model.optimizer(self.model.parameters())  # shows what is wrong with it before anything is written
        except (TypeError, ValueError) as error:
            self.parser.error(f"--model.optimizer: {error}")
        # What Lightning would store for a model made by its CLI, were it not for the objects among the arguments:
        # `load_from_checkpoint` builds the model from it.
        self.model.save_hyperparameters({**settings, "_instantiator": "lightning.pytorch.cli.instantiate_module"})
        if self.checkpoint:
            checkpoint.check_network(self.checkpoint, self.stored, self.model)
            self.config_init[self.subcommand].ckpt_path = str(self.checkpoint)
            self.config_init[self.subcommand].weights_only = True

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the logger and the checkpoints of a run folder unless others are asked for."""
        config = self.config_init[self.subcommand].trainer
        if config.accelerator in ("gpu", "cuda", "mps") and not torch.accelerator.is_available():
            self.parser.error(
                f"--trainer.accelerator is {config.accelerator}, and torch finds none here; expected cpu or auto"
            )
        if self.subcommand in READERS:
            if config.devices not in ("auto", "1", 1):
                self.parser.error(f"--trainer.devices is {config.devices}; expected 1, as one process does it all")
            kwargs["devices"] = 1
            if config.enable_progress_bar is None:
                kwargs["enable_progress_bar"] = False
        if config.barebones:  # Lightning then refuses every logger, bar and checkpoint
            return super().instantiate_trainer(**kwargs)
        val_size, limit = self.datamodule.val_size, config.limit_val_batches
        validates = val_size > 0 and limit != 0
        if not validates and self.subcommand == "validate":
            self.parser.error(
                f"nothing to validate on: --data.val_size is {val_size}, --trainer.limit_val_batches is {limit}"
            )
        if not validates:
            kwargs["limit_val_batches"] = 0
        callbacks: list[Callback] = as_list(config.callbacks)
        # Named because Lightning takes rich's bar where rich is installed (PL#20896), which is slower; every step
        # on the bar costs time too.
        bar = kwargs.get("enable_progress_bar", config.enable_progress_bar)
        if bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=50))
        writes = config.enable_checkpointing is not False and config.logger is not False and not config.fast_dev_run
        if self.subcommand == "fit" and writes:
            callbacks.append(self.config_init.fit.checkpoint)
        plugins = as_list(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        if config.logger in (None, True):
            kwargs["logger"] = False
            if self.subcommand in ("fit", "test"):  # what `validate` finds, the curves of the run have
                kwargs["logger"] = logger = self._run_logger()
                if self.config_init[self.subcommand].pictures and not config.fast_dev_run:
                    callbacks.append(Pictures(logger))
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
            self.parser.error(f"--trainer: {error}")
        # First, where Lightning puts it last: when training ends, weight averaging replaces the weights by their
        # average, from which the run could not go on.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, CheckpointWriter))  # type: ignore[attr-defined]
        return trainer

    @staticmethod
    def _logs(root: str | None) -> Path:
        """Return the folder of the runs, below `--trainer.default_root_dir`."""
        return Path(root or "", "lightning_logs")

    def _run_logger(self) -> RunLogger:
        """Return the logger of a new run, of the run that goes on, or of the run that is tested."""
        folder = self.run or self._logs(self.config[self.subcommand].trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            flag = "--ckpt_path" if self.run else "--trainer.default_root_dir"
            self.parser.error(f"{flag}: no run can be written in {folder}: {error.strerror}")
        if not self.run:
            return RunLogger(folder)
        steps_done = self.stored["global_step"]
        if self.subcommand == "fit":
            return RunLogger(self.run.parent, folders.version(self.run), first_step=steps_done)
        # Counted from 0, as Lightning does for the curves.
        return RunLogger(self.run.parent, folders.version(self.run), test_step=max(0, steps_done - 1))

    def before_fit(self) -> None:
        if self.checkpoint is None:
            return
        if not self.stored.keys() >= {"loops", "optimizer_states", "lr_schedulers", "global_step"}:
            raise CheckpointError(f"{self.checkpoint} (--ckpt_path) holds weights alone; fit goes on from whole ones")
        # Lightning would say so too, with an empty run folder and exit code 0.
        for flag, done in (
            ("max_epochs", checkpoint.epochs_done(self.stored)),
            ("max_steps", self.stored["global_step"]),
        ):
            limit = getattr(self.trainer, flag)
            if limit != -1 and done >= limit:
                command = f"{PROGRAM} fit --ckpt_path {shlex.quote(str(self.checkpoint))} --trainer.{flag} {2 * done}"
                raise CheckpointError(
                    f"{self.checkpoint} (--ckpt_path) is of a finished run: its --trainer.{flag} {limit} are done.\n"
                    f"To go on: {command}"
                )

    @rank_zero_only
    def after_fit(self) -> None:
        """Say what came of the run, and what to type next."""
        writer = next((c for c in self.trainer.callbacks if isinstance(c, CheckpointWriter)), None)  # type: ignore[attr-defined]
        if writer is None:
            return
        name = "best" if writer.path("best").exists() else "last"
        score = "" if name == "last" or writer.best_score is None else f" with val/acc {writer.best_score:.4f}"
        settings = {
            "--data.root": (self.datamodule.root, "data"),
            "--trainer.default_root_dir": (self.config[self.subcommand].trainer.default_root_dir, None),
        }
        options = "".join(f" {flag} {shlex.quote(x)}" for flag, (x, default) in settings.items() if x != default)
        more = f" --trainer.max_epochs {2 * self.trainer.current_epoch}"
        print(
            f"\n{name.capitalize()} checkpoint{score}: {os.path.relpath(writer.path(name))}\n"
            f"Test it:    {PROGRAM} test --ckpt_path {name}{options}\n"
            f"Use it:     {PROGRAM} predict --ckpt_path {name} --data.images digit.png{options}\n"
            f"Train on:   {PROGRAM} fit --ckpt_path last{more}{options}"
        )
        if isinstance(self.trainer.logger, RunLogger):
            print(f"See curves: tensorboard --logdir {shlex.quote(os.path.relpath(self.trainer.logger.root_dir))}")


def completed(args: Sequence[str]) -> list[str]:
    """Return arguments as jsonargparse takes them, which wants one value for each flag made from a signature.

    `--data.images` may have several, as a shell makes of a glob without quotes; `--overwrite` needs none.
    """
    complete = list(args)
    if "--data.images" in args:
        first = args.index("--data.images") + 1
        names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), args[first:]))
        complete[first : first + len(names)] = [json.dumps(names)] if len(names) > 1 else names
    if "--overwrite" in complete:
        value = complete.index("--overwrite") + 1
        if not complete[value:] or complete[value].startswith("-"):
            complete.insert(value, "true")
    return complete


def as_list(value: Any) -> list[Any]:
    """Return an argument of the trainer's that may be given as nothing, as one thing or as several."""
    return value.copy() if isinstance(value, list) else [] if value is None else [value]
