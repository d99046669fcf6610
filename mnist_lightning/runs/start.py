"""Where a run starts: the checkpoint that was asked for, and the configuration that comes with it."""

import argparse
import json
import os
import shlex
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Self

from mnist_lightning import checkpoint
from mnist_lightning.augmentation import Distortion
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.console import program
from mnist_lightning.data import DEFAULT_SEED, MNISTDataModule
from mnist_lightning.errors import CheckpointError, ConfigurationError, in_a_line
from mnist_lightning.runs import configuration, folders, resume
from mnist_lightning.settings import check_plain, settings_of


class Start(NamedTuple):
    """A checkpoint that a verb starts from.

    Attributes:
        path: The file.
        content: What it holds.
        run: The run folder of the file, None if it lies in none.
    """

    path: Path
    content: dict[str, Any]
    run: Path | None

    @classmethod
    def find(cls, name: str, logs: Path, prefer: str) -> Self:
        """Find and read a checkpoint. The arguments and errors are those of `find_checkpoint`."""
        path = folders.find_checkpoint(name, logs, prefer)
        return cls(path, checkpoint.read(path), folders.run_of(path))

    @property
    def seed(self) -> int | None:
        """The seed that the run began with, None if the checkpoint does not say."""
        state = self.content.get(resume.KEY)
        seed = state.get("seed") if isinstance(state, dict) else None
        return seed if isinstance(seed, int) else None

    def configuration_of_run(self) -> str:
        """Return the newest configuration file of the run. Outside a run, return the settings.

        Raises:
            CheckpointError: The file can't be read.
        """
        settings = self.settings()
        if not self.run:
            return settings
        path = folders.configurations(self.run)[-1]
        try:
            configuration.read(path)
        except ConfigurationError as error:
            raise CheckpointError(
                f"{path}, the newest configuration of the run, can't be read. Remove it to use the previous one, "
                "or copy the checkpoint out of the run folder to start a new run"
            ) from error
        return str(path)

    def settings(self) -> str:
        """Return the settings in the checkpoint, as JSON.

        Raises:
            CheckpointError: This program does not know the settings.
        """
        data = self.content.get("datamodule_hyper_parameters", {})
        check_plain([self.content.get("hyper_parameters", {}), data], self.path)
        groups = {"model": settings_of(self.content, self.path), "data": data}
        for (name, settings), kind in zip(groups.items(), (DigitClassifier, MNISTDataModule), strict=True):
            groups[name] = {str(key): value for key, value in settings.items() if not str(key).startswith("_")}
            unknown = groups[name].keys() - signature(kind).parameters
            if name == "data":  # a name such as `class_path` would make jsonargparse import a module
                distortion = data.get("distortion", {})
                known = signature(Distortion).parameters
                unknown |= {*distortion} - known.keys() if isinstance(distortion, dict) else {"distortion"}
            if unknown:
                names = in_a_line(", ".join(sorted(map(str, unknown))))
                raise CheckpointError(f"{self.path} is of another program or version: unknown settings {names}")
        return json.dumps({**groups, "seed_everything": DEFAULT_SEED if self.seed is None else self.seed})

    def check_limit(self, name: str, limit: int) -> None:
        """Refuse a finished run. Lightning would leave an empty run folder, and exit with 0.

        Args:
            name: `max_epochs` or `max_steps`.
            limit: Its value in the trainer, -1 for none.

        Raises:
            CheckpointError: The run is finished, or the checkpoint holds only weights.
        """
        if not self.content.keys() >= {"loops", "optimizer_states", "lr_schedulers", "global_step"}:
            raise CheckpointError(f"{self.path} holds only weights; expected a checkpoint of `fit`")
        try:
            done = resume.epochs_done(self.content) if name == "max_epochs" else self.content["global_step"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path} is damaged: it does not count epochs ({in_a_line(error)})") from error
        if limit != -1 and done >= limit:
            raise CheckpointError(
                f"{self.path} belongs to a finished run: {name} is {limit}.\n"
                f"To continue: {program()} fit --ckpt_path {shlex.quote(str(self.path))} --trainer.{name} {2 * done}"
            )


def asked_for(args: list[str]) -> tuple[str | None, str | None, Path | None]:
    """Return `--ckpt_path` and `--trainer.default_root_dir`, typed or in a YAML file, before the real parse.

    The checkpoint decides which configuration comes first in that parse. The third result is the run whose own
    configuration `--config` names, None if there is none.

    Raises:
        ConfigurationError: A YAML file can't be used.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flags in (("--ckpt_path",), ("--trainer.default_root_dir",), ("--config", "-c")):
        kind = partial(lambda flag, value: (flag, value), flags[0])
        first.add_argument(*flags, dest="typed", type=kind, action="append", nargs="?", default=[])
    found: dict[str, str] = {}
    run = None
    for flag, value in filter(None, first.parse_known_args(args)[0].typed):
        new = {flag: value}
        if flag == "--config":
            if not os.path.isfile(value):
                continue  # settings in place of a name, a pipe, or a mistake that the real parse finds
            settings, run = configuration.read(Path(value)), folders.run_configured_by(Path(value)) or run
            trainer = settings.get("trainer")
            root = trainer.get("default_root_dir") if isinstance(trainer, dict) else None
            new = {"--ckpt_path": settings.get("ckpt_path"), "--trainer.default_root_dir": root}
        found |= {name: text for name, text in new.items() if isinstance(text, str)}
    return found.get("--ckpt_path"), found.get("--trainer.default_root_dir"), run
