"""`TrialRun`: a run of a sweep. It is `fit` without output, and stops if its `val/acc` is hopeless."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning.errors import ConfigurationError, UserError
from mnist_lightning.runs import folders
from mnist_lightning.runs.cli import RunCLI
from mnist_lightning.runs.figures import Figures
from mnist_lightning.runs.logger import RunLogger
from mnist_lightning.runs.progress import Bar, EpochLines, NetworkSummary
from mnist_lightning.runs.verbs import errors_of_lightning
from mnist_lightning.use.sweep.search import Search

IsHopeless = Callable[[float], bool]


class Scores(Callback):
    """Keeps the best `val/acc` of a run, and stops a hopeless run.

    Args:
        is_hopeless: Receives each `val/acc`, and returns whether the run should stop.
    """

    def __init__(self, is_hopeless: IsHopeless) -> None:
        self.is_hopeless, self.stopped = is_hopeless, False
        self.best: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        score = trainer.callback_metrics["val/acc"].item()
        self.best = score if self.best is None else max(self.best, score)
        if self.is_hopeless(score) and trainer.global_step < trainer.estimated_stepping_batches:
            self.stopped = trainer.should_stop = True  # the run ends as any other, so its curves are complete


class TrialRun(RunCLI):
    """A run without output and figures.

    Args:
        base: The configuration.
        settings: Flags of `fit` without dashes. They replace settings of the configuration.
        folder: The folder of the run.
        is_hopeless: As in `Scores`.

    Raises:
        UserError: The settings can't be used.
    """

    def __init__(
        self, base: Path, settings: dict[str, Any], folder: Path, is_hopeless: IsHopeless = lambda score: False
    ) -> None:
        self.folder, self.scores = folder, Scores(is_hopeless)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                super().__init__("fit", [f"--config={base}", *(f"--{key}={text}" for key, text in texts.items())])
        except SystemExit as stop:
            if stop.code not in (None, 0, 2):  # a signal
                raise
            message = said.getvalue().partition("error: ")[2].partition("\nSee ")[0]
            raise UserError(message or "a flag such as --help trains nothing; expected a setting") from stop

    def train(self) -> float:
        """Train, keep the best checkpoint alone, and return the best `val/acc`.

        Raises:
            UserError: The run can't be trained, has diverged, or has no validation.
        """
        with errors_of_lightning(self.trainer):
            self.trainer.fit(self.model, self.datamodule)
        (self.folder / "checkpoints/last.ckpt").unlink(missing_ok=True)
        if self.scores.best is None:
            raise UserError("the run ended before its first validation; see trainer.check_val_every_n_epoch")
        return self.scores.best

    def run_logger(self) -> RunLogger:
        return RunLogger(self.folder.parent, folders.version(self.folder))

    def callbacks(self, logger: Any) -> list[Callback]:
        output = (Bar, EpochLines, Figures, NetworkSummary)
        return [*(one for one in super().callbacks(logger) if not isinstance(one, output)), self.scores]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return super().instantiate_trainer(enable_progress_bar=False, **kwargs)


def check(search: Search, path: Path) -> dict[str, Any]:
    """Try values of each range with the parser and the classes of `fit`. This takes 0.1 s for each value.

    Returns:
        The settings of the base that lie in their ranges.

    Raises:
        ConfigurationError: A value can't be used. The message names the key.
    """

    def build(key: str, value: object, settings: dict[str, Any]) -> TrialRun:
        try:
            return TrialRun(search.base, settings, Path("version_0"))
        except UserError as error:
            raise ConfigurationError(f"{path}: {key} is {value}: {error}") from error

    run = build("base", search.base, {})
    own, settings = search.settings_of(run.config), dict[str, Any]()
    for key in search.search:
        for value in reversed(search.probes(key)):  # the first value stays while other keys are tried
            settings[key] = value
            run = build(key, value, settings)
    trainer = run.trainer
    for is_wrong, expected in (
        (run.start, "no ckpt_path: each trial is a new run"),
        (trainer.world_size > 1, "one device for each trial: trainer.devices: 1"),
        (not trainer.limit_val_batches, "validation images: data.val_size and trainer.limit_val_batches above 0"),
        (
            not isinstance(trainer.logger, RunLogger),
            "the usual logger: no trainer.logger, trainer.fast_dev_run or trainer.barebones",
        ),
    ):
        if is_wrong:
            raise ConfigurationError(f"{path}: base is {search.base}; expected {expected}")
    return own
