"""The command line: LightningCLI, and what it takes to train, find and test a run of MNIST with it."""

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning import checkpoint, console, runs
from mnist_lightning.archive import ArchiveError
from mnist_lightning.checkpoint import CheckpointError
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.console import PROGRAM
from mnist_lightning.data import DEFAULT_SEED, MNISTDataModule
from mnist_lightning.logger import RunLogger, RunRecorder
from mnist_lightning.runs import NoCheckpointError


def main(args: list[str] | None = None) -> None:
    """Run one verb: `fit`, `validate` or `test`.

    Args:
        args: what would follow `python -m mnist_lightning` on a command line; that of this process by default.

    Raises:
        SystemExit: the arguments, or the files that they name, can't be used. A message says why.
    """
    console.silence()
    try:
        DigitCLI(args)
    except (ArchiveError, CheckpointError, NoCheckpointError, MisconfigurationException) as error:
        console.fail(str(error))


class DigitCLI(LightningCLI):
    """LightningCLI for `DigitClassifier` and `MNISTDataModule`."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            DigitClassifier,
            MNISTDataModule,
            save_config_callback=RunRecorder,
            # An epoch takes seconds: what a sanity check would find, the first validation finds.
            trainer_defaults={"max_epochs": 20, "num_sanity_val_steps": 0},
            seed_everything_default=DEFAULT_SEED,
            parser_class=console.Parser,
            args=args,
            # DigitClassifier configures its own, with the number of steps at hand.
            auto_configure_optimizers=False,
            # `instantiate_classes` below does it.
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # There is nothing to predict: the test set has its labels, and pictures of one's own are not read.
        return {verb: skip for verb, skip in LightningCLI.subcommands().items() if verb != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model.network": {"class_path": "mnist_lightning.networks.LeNet"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with what the checkpoint stores in place of the defaults.

        LightningCLI would let the checkpoint win over the command line (PL#20801).
        """
        self.config = parser.parse_args(args)
        verb = self.config.subcommand
        name = self.config[verb].ckpt_path
        if verb != "fit" and name is None:
            name = "best"  # nobody wants to know how random weights do
        self.checkpoint: Path | None = None
        if name is None:
            return
        self.checkpoint = (
            runs.find_checkpoint(name, self._logs(self.config)) if name in ("best", "last") else Path(name)
        )
        content = self.stored = checkpoint.read(self.checkpoint)
        try:
            model, data = content.get("hyper_parameters", {}), content.get("datamodule_hyper_parameters", {})
            stored = {f"model.{key}": value for key, value in model.items() if not key.startswith("_")}
            self._parser(verb).set_defaults(stored | {f"data.{key}": value for key, value in data.items()})
        except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint} (--ckpt_path) is not of this program: {error.args[0]}") from error
        self.config = parser.parse_args(args)
        # Out of LightningCLI's sight, and of the run's record: started again from it, a run would resume.
        self.config[verb].ckpt_path = None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # an argument that DigitClassifier or MNISTDataModule refuses
            self.parser.error(str(error))
        try:
            self.model.optimizer(self.model.parameters())  # shows what is wrong with it before anything is written
        except (TypeError, ValueError) as error:
            self.parser.error(f"--model.optimizer: {error}")
        # What Lightning would store for a model made by its CLI, were it not for the objects among the arguments:
        # `load_from_checkpoint` builds the model from it.
        config = self.config[self.subcommand].model.as_dict()
        self.model.save_hyperparameters({**config, "_instantiator": "lightning.pytorch.cli.instantiate_module"})
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
        single = isinstance(config.callbacks, Callback)  # the form without brackets
        callbacks: list[Callback] = [config.callbacks] if single else [*(config.callbacks or [])]
        # Named because Lightning takes rich's bar where rich is installed (PL#20896), which is slower; every step
        # on the bar costs time too.
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=50))
        if self.subcommand == "fit" and config.enable_checkpointing is not False and config.logger is not False:
            callbacks += checkpoint.writers(validates)
        if config.logger in (None, True):
            # What `validate` finds, the curves of the run have.
            kwargs["logger"] = False if self.subcommand == "validate" else self._run_logger()
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
            self.parser.error(f"--trainer: {error}")

    @staticmethod
    def _logs(config: Namespace) -> Path:
        """Return the folder of the runs."""
        return Path(config[config.subcommand].trainer.default_root_dir or "", "lightning_logs")

    def _run_logger(self) -> RunLogger:
        """Return the logger of a new run, or of the run that is tested."""
        if self.subcommand == "test" and self.checkpoint and (run := runs.of_checkpoint(self.checkpoint)):
            return RunLogger(
                save_dir=run.parent.parent,
                name=run.parent.name,
                version=run.name,
                test_step=self.stored["global_step"] - 1,  # counted from 0, as Lightning does for the curves
            )
        logs = self._logs(self.config)
        try:
            logs.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=logs).close()
        except OSError as error:
            self.parser.error(f"--trainer.default_root_dir: no run can be written in {logs}: {error.strerror}")
        return RunLogger(save_dir=logs.parent, name=logs.name)

    def before_fit(self) -> None:
        if self.checkpoint is None:
            return
        if not self.stored.keys() >= {"loops", "optimizer_states", "lr_schedulers"}:
            raise CheckpointError(f"{self.checkpoint} (--ckpt_path) holds weights alone; fit goes on from whole ones")
        # Lightning would say so too, with an empty run folder and exit code 0.
        limit = cast(int, self.trainer.max_epochs)
        if limit != -1 and checkpoint.epochs_done(self.stored) >= limit:
            raise CheckpointError(
                f"{self.checkpoint} (--ckpt_path) has all of its --trainer.max_epochs {limit} behind it; "
                "to go on, give it more"
            )

    @rank_zero_only
    def after_fit(self) -> None:
        """Say what came of the run, and what to type next."""
        saved = {c.filename: c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)}
        names = [name for name in ("best", "last") if name in saved and saved[name].best_model_path]
        if not names:
            return
        chosen = saved[names[0]]
        score = f" with val/acc {chosen.best_model_score:.4f}" if chosen.monitor == "val/acc" else ""
        settings = {
            "--data.root": (self.datamodule.root, "data"),
            "--trainer.default_root_dir": (self.config[self.subcommand].trainer.default_root_dir, None),
        }
        options = "".join(f" {flag} {shlex.quote(x)}" for flag, (x, default) in settings.items() if x != default)
        more = f" --trainer.max_epochs {2 * self.trainer.current_epoch}"
        print(
            f"\n{names[0].capitalize()} checkpoint{score}: {os.path.relpath(chosen.best_model_path)}\n"
            f"Test it:    {PROGRAM} test --ckpt_path {names[0]}{options}\n"
            f"Train on:   {PROGRAM} fit --ckpt_path last{more}{options}"
        )
        if isinstance(self.trainer.logger, RunLogger):
            print(f"See curves: tensorboard --logdir {shlex.quote(os.path.relpath(self.trainer.logger.root_dir))}")
