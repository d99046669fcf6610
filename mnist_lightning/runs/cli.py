"""`RunCLI`: LightningCLI for `fit`, `validate` and `test`, with runs as folders."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

import mnist_lightning.networks  # noqa: F401  jsonargparse then knows the networks by their short names
from mnist_lightning import checkpoint
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.console import program
from mnist_lightning.data import DEFAULT_SEED, MNISTDataModule
from mnist_lightning.errors import first_cause
from mnist_lightning.runs import folders
from mnist_lightning.runs.arguments import CKPT_PATH, DESCRIPTIONS, HELP, OWNERS, SHOWN, HelpAll, RunParser, as_list
from mnist_lightning.runs.calibrator import Calibrator
from mnist_lightning.runs.divergence import Divergence
from mnist_lightning.runs.figures import Figures
from mnist_lightning.runs.learning_rate import find, take_finder
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.progress import Bar, EpochLines, NetworkSummary
from mnist_lightning.runs.recorder import RunRecorder
from mnist_lightning.runs.rehearsal import check_split, rehearse
from mnist_lightning.runs.resume import ExactResume
from mnist_lightning.runs.saving import CheckpointWriter, DurableCheckpointIO
from mnist_lightning.runs.start import Start, asked_for
from mnist_lightning.settings import INSTANTIATOR, check_settings


class RunCLI(LightningCLI):
    """Builds the data, the classifier and the trainer of one verb from its arguments.

    LightningCLI's own subcommands would offer flags that Lightning ignores, and build the parsers of all verbs.

    Args:
        verb: `fit`, `validate` or `test`.
        args: The arguments after the verb.

    Attributes:
        start: The checkpoint to start from, None for a new run.
    """

    def __init__(self, verb: str, args: list[str]) -> None:
        self.verb = verb
        self.start: Start | None = None
        super().__init__(
            DigitClassifier,
            MNISTDataModule,
            save_config_callback=RunRecorder,
            # A sanity check would find what the first validation finds a few seconds later.
            trainer_defaults={"max_epochs": 20, "num_sanity_val_steps": 0},
            seed_everything_default=DEFAULT_SEED,
            parser_class=RunParser,
            parser_kwargs={"prog": f"{program()} {verb}", "description": DESCRIPTIONS[verb], "allow_abbrev": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,  # DigitClassifier knows the number of steps, LightningCLI does not
            load_from_checkpoint_support=False,  # `instantiate_classes` stores the settings
        )

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of the trainer's methods: the checkpoint, read safely."""
        return {"ckpt_path": self.start.path if self.start else None, "weights_only": True}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model.network": {"class_path": "mnist_lightning.networks.LeNet"}})
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=CKPT_PATH[self.verb])
        parser.add_class_arguments(CheckpointWriter, "checkpoint")
        parser.add_argument("--figures", type=bool, default=True, help="Whether TensorBoard also shows figures.")
        parser.add_argument("--stop_at_nan", type=bool, default=True, help="Whether a NaN or infinite loss ends `fit`.")
        parser.add_argument("--help_all", action=HelpAll)
        parser.shown = SHOWN[self.verb]  # type: ignore[attr-defined]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse once. What was typed replaces settings of the checkpoint.

        LightningCLI would let the checkpoint win over the command line (PL#20801).
        """
        name, root, run = asked_for(args)
        self.logs = Path(root or "", "lightning_logs")
        is_fit = self.verb == "fit"
        if name is None and not is_fit:
            name = "best"  # never random weights
        if name is not None and not HELP & {*args}:
            if run and name in ("best", "last"):  # the configuration of a run stands for its own checkpoints
                self.start = Start.find(os.path.relpath(run), self.logs, prefer=name)
            else:
                self.start = Start.find(name, self.logs, prefer="last" if is_fit else "best")
            if run and self.start.run not in (run, None) and not is_fit:
                parser.error(
                    f"--config is of {os.path.relpath(run)}, and {self.start.path} is of another run; leave --config "
                    "out: a checkpoint brings its own settings"
                )
            args = ["--config", self.start.configuration_of_run() if is_fit else self.start.settings(), *args]
        self.config = parser.parse_args(args)
        for group in ("checkpoint", *OWNERS):
            if not isinstance(value := self.config.get(group), Namespace):
                found = "empty" if value is None else value
                parser.error(f"--{group} is {found}; expected settings below it, or no such line")
        if self.config.ckpt_path not in (None, name):
            parser.error(f"--ckpt_path {self.config.ckpt_path} is not in a file; type it as a flag of its own")
        self.logs = Path(self.config.trainer.default_root_dir or "", "lightning_logs")  # also from `--trainer FILE`
        seed = self.config.seed_everything
        if type(seed) is not int or not 0 <= seed < 2**32:  # `true` would be 0, and `false` can't be repeated
            parser.error(f"--seed_everything is {str(seed).lower()}; expected 0..{2**32 - 1}")
        if is_fit and self.start and self.start.seed not in (None, seed):
            parser.error(f"--seed_everything is {seed}; expected {self.start.seed}, the seed of the run")
        if self.start and self.verb != "test":
            stored = self.start.content.get("datamodule_hyper_parameters", {})
            check_split(self.config.data.val_size, stored.get("val_size"))
        self.config.ckpt_path = None  # is not recorded: a repeated run starts from the beginning

    def instantiate_classes(self) -> None:
        """Build everything. If there is a `LearningRateFinder`, first build everything for its search."""
        if self.verb == "fit" and (arguments := take_finder(self.config, is_new=self.start is None)):
            with isolate_rng():  # the run equals one for which the same learning rate is typed
                self._build()
                rate = find(self.model, self.datamodule, super().instantiate_trainer, arguments)
            self.config.model.optimizer.init_args.lr = rate
            rank_zero_only(print)(f"LearningRateFinder chose --model.optimizer.lr {rate:.4g}")
        self._build()

    def _build(self) -> None:
        settings = self.config.model.as_dict()
        check_settings(settings)
        try:
            super().instantiate_classes()
        except (ImportError, ValueError) as error:  # a logger is not installed, or a class refuses its arguments
            # jsonargparse adds a page about each type that it has tried. An error of the user's network has no page.
            if not (classes := re.findall(r"class_path='[\w.]*?(\w+)'", str(error))):
                raise
            self.parser.error(f"{', '.join(classes)}: {first_cause(error)}")
        try:
            self.model.optimizer(self.model.parameters())  # finds wrong settings before anything is written
        except (TypeError, ValueError) as error:
            self.parser.error(f"--model.optimizer: {error}")
        # Plain data, from which `load_from_checkpoint` builds the same objects.
        self.model.save_hyperparameters({**settings, "_instantiator": INSTANTIATOR})
        data = {key: value for key, value in self.config.data.as_dict().items() if key != "root"}
        self.datamodule.save_hyperparameters({**data, "_instantiator": INSTANTIATOR})
        if self.start:
            checkpoint.load_weights(self.model, self.start.content["state_dict"], self.start.path)
        if self.verb == "fit":
            rehearse(self.model, self.trainer, settings["lr_scheduler"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the callbacks and the logger of a run unless the user has others."""
        config = self.config_init.trainer
        if config.accelerator in ("gpu", "cuda", "mps") and not torch.accelerator.is_available():
            self.parser.error(
                f"--trainer.accelerator is {config.accelerator}, but torch finds none here; expected cpu or auto"
            )
        if config.barebones:  # Lightning then refuses loggers, bars and checkpoints
            return super().instantiate_trainer(**kwargs)
        val_size, limit = self.datamodule.val_size, config.limit_val_batches
        if not val_size or limit == 0:
            if self.verb == "validate":
                self.parser.error(
                    f"there are no validation images: --data.val_size is {val_size}, "
                    f"and --trainer.limit_val_batches is {limit}"
                )
            kwargs["limit_val_batches"] = 0
        kwargs["enable_model_summary"] = False  # `NetworkSummary` takes its place
        if config.logger in (None, True):
            # `validate` draws nothing: the curves of the run already have this result.
            kwargs["logger"] = False if self.verb == "validate" else self.run_logger()
        callbacks = self.callbacks(kwargs.get("logger", config.logger))
        if not any(isinstance(plugin, CheckpointIO) for plugin in as_list(config.plugins)):
            kwargs["plugins"] = [*as_list(config.plugins), DurableCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
            self.parser.error(f"--trainer: {error}")
        # `CheckpointWriter` must come first, and Lightning puts it last. At the end of training, weight averaging
        # replaces the weights by their average, and a run can't continue from an average.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, CheckpointWriter))  # type: ignore[attr-defined]
        return trainer

    def callbacks(self, logger: Any) -> list[Callback]:
        """Return the user's callbacks, and ours that the user does not replace."""
        config, callbacks = self.config_init.trainer, as_list(self.config_init.trainer.callbacks)

        def add(callback: Callback, kind: type) -> None:
            if not any(isinstance(other, kind) for other in callbacks):
                callbacks.append(callback)

        if config.enable_progress_bar is not False:
            add(Bar(), ProgressBar)
        if isinstance(logger, RunLogger) and self.config_init.figures and not config.fast_dev_run:
            add(Figures(logger), Figures)
        if self.verb == "fit":
            add(ExactResume(), ExactResume)
            add(Calibrator(), Calibrator)
            add(EpochLines(), EpochLines)
            add(Divergence(self.config_init.stop_at_nan), Divergence)
            if config.enable_model_summary is not False:
                add(NetworkSummary(), ModelSummary)
            if logger is not False:
                add(LearningRateMonitor("step"), LearningRateMonitor)
                if config.enable_checkpointing is not False and not config.fast_dev_run:
                    add(self.config_init.checkpoint, CheckpointWriter)
        return callbacks

    def run_logger(self) -> RunLogger:
        """Return the logger of a new run, of the run that continues, or of the run that is tested."""
        run = self.start.run if self.start else None
        folder = run or self.logs
        try:
            # The folder itself may not exist yet, and stays so until the run starts.
            tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.parents) if path.exists())).close()
        except OSError as error:
            flag = "--ckpt_path" if run else "--trainer.default_root_dir"
            self.parser.error(f"{flag}: no run can be written to {folder}: {error.strerror}")
        if not self.start or not run:
            return RunLogger(folder)
        # Steps are counted from 0, as in the curves.
        test_step = None if self.verb == "fit" else max(0, self.start.content["global_step"] - 1)
        return RunLogger(run.parent, folders.version(run), test_step=test_step)
