"""`RunLogger`: a run's curves in TensorBoard."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from mnist_lightning.files import written_whole
from mnist_lightning.runs.folders import create_run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, with one point for a step and the metrics of this project in HPARAMS.

    Args:
        logs: the folder of the runs.
        version: what the run is called there, by its number if it has one. None makes a new run.
        first_step: where a run goes on, counted from 0. What its curves have from there on makes room before the
            first point is drawn.
        test_step: the step that the tested checkpoint has reached. Lightning would draw `test/acc` at step 0, as it
            counts the steps of this process alone.
    """

    def __init__(
        self,
        logs: Path,
        version: int | str | None = None,
        *,
        first_step: int | None = None,
        test_step: int | None = None,
    ) -> None:
        # Lightning's metric for HPARAMS is one of its own, -1 throughout.
        super().__init__(save_dir=logs.parent, name=logs.name, version=version, default_hp_metric=False)
        self.first_step = first_step
        self.test_step = test_step
        self._is_new = version is None
        self._old_files = [] if first_step is None else list(Path(self.log_dir).glob("events.out.tfevents.*"))
        self._epochs_step: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """The writer of the curves. The folder of a new run is made along with it, and not before it is needed."""
        if self._is_new:
            self._is_new = False
            self._version = create_run(Path(self.root_dir))
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Draw scalars at a step. Lightning calls this up to three times for the last step of an epoch."""
        step = self._step(step)
        if "epoch" in metrics:
            if step == self._epochs_step or self.test_step is not None:
                metrics = {name: value for name, value in metrics.items() if name != "epoch"}
            self._epochs_step = step
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Draw pictures, uint8 `(C, height, width)`, at a step."""
        for name, image in images.items():
            self.experiment.add_image(name, image, self._step(step))

    def _step(self, step: int | None) -> int | None:
        """Return the step at which something is drawn, and make room for it."""
        while self._old_files:
            self._cut(self._old_files.pop())
        return step if self.test_step is None else self.test_step

    def _cut(self, path: Path) -> None:
        """Take out of a file of curves what will be drawn again.

        TensorBoard's own `purge_step` is heeded by one of its two loaders, and by few other readers.
        """
        # Imported late, here and below, as `validate` and `compare` draw no curves.
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = list(RawEventFileLoader(str(path)).Load())  # but for one that a kill has cut off
        events = [Event.FromString(record) for record in records]
        kept = [not event.HasField("summary") or event.step < self.first_step for event in events]
        if all(kept):
            return
        with written_whole(path) as partial, partial.open("wb") as file:
            writer = RecordWriter(file)
            for record in itertools.compress(records, kept):
                writer.write(record)

    @rank_zero_only
    def log_settings(self, settings: dict[str, bool | int | float | str]) -> None:
        """Fill TensorBoard's HPARAMS tab: the settings, and for each metric the last point of its curve.

        Only the metrics' names are written. `log_hyperparams` would also draw a point of its own on each curve.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = dict.fromkeys(["val/acc", "val/loss", "train/acc", "train/loss", "test/acc", "test/loss"], 0.0)
        for summary in hparams(settings, metrics):
            self.experiment.file_writer.add_summary(summary)
