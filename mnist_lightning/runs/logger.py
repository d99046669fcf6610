"""`RunLogger`: the curves of a run in TensorBoard."""

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from mnist_lightning.files import written_whole
from mnist_lightning.runs.folders import create_run, lock

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = ["val/acc", "val/loss", "train/acc", "train/loss", "test/acc", "test/loss"]  # in TensorBoard's HPARAMS tab


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, for runs that continue. While a run is trained, it is locked.

    Args:
        logs: The folder of the runs.
        version: The number of an existing run, or the name of its folder. None makes a new run.
        test_step: The step of the tested checkpoint. Lightning would draw `test/acc` at step 0, because it counts the
            steps of this process alone.

    Attributes:
        first_step: The step that a run continues from, counted from 0. Old points at or after this step are
            removed before the first new point is drawn.
    """

    def __init__(self, logs: Path, version: int | str | None = None, *, test_step: int | None = None) -> None:
        # Lightning's own metric for the HPARAMS tab is always -1.
        super().__init__(save_dir=logs.parent, name=logs.name, version=version, default_hp_metric=False)
        self.first_step = 0
        self.test_step = test_step
        self._is_new = version is None
        self._is_made = False
        self._old_files: list[Path] = []
        self._last_epoch_step: int | None = None
        self._lock: FileLock | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """TensorBoard's writer. The folder of a new run is made together with it, not earlier."""
        if self._is_new and not self._is_made:
            self._is_made = True
            self._version = create_run(Path(self.root_dir))
        if self._lock is None and self.test_step is None:
            self.lock()
        return super().experiment

    @rank_zero_only
    def lock(self) -> None:
        """Lock the run. Its checkpoint and curves must be read later: another process may just have written them.

        Raises:
            UserError: Another process trains the run.
        """
        run = Path(self.log_dir)
        self._lock = lock(run)
        self._old_files = list(run.glob("events.out.tfevents.*"))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Draw one point of each curve at a step. `epoch` is drawn once, although Lightning passes it up to 3 times."""
        step = self._step(step)
        if "epoch" in metrics:
            if step == self._last_epoch_step or self.test_step is not None:
                metrics = {name: value for name, value in metrics.items() if name != "epoch"}
            self._last_epoch_step = step
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Show figures, uint8 `(C, height, width)`, at a step."""
        for name, image in images.items():
            self.experiment.add_image(name, image, self._step(step))

    @rank_zero_only
    def log_settings(self, settings: dict[str, bool | int | float | str]) -> None:
        """Fill TensorBoard's HPARAMS tab with settings. The tab shows the last point of each curve beside them.

        `log_hyperparams` of the base class would also add a point to each curve.
        """
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(settings, dict.fromkeys(METRICS, 0.0)):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Write the points that are still in memory. The base class would also write `hparams.yaml`."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file of curves, and release the run."""
        super().finalize(status)
        if self._lock:
            self._lock.release()

    @rank_zero_only
    def remove_new_run(self) -> None:
        """Remove the folder of the run, if this process has made it."""
        if self._is_made:
            shutil.rmtree(self.log_dir, ignore_errors=True)

    def _step(self, step: int | None) -> int | None:
        """Return the step to draw at. The first call removes old points."""
        while self._old_files:
            self._remove_later_points(self._old_files.pop())
        return step if self.test_step is None else self.test_step

    def _remove_later_points(self, path: Path) -> None:
        """Remove the points from `first_step` on from a file of curves.

        TensorBoard's own `purge_step` is ignored by one of its two loaders, and by most other readers.
        """
        # Imported here, because a run that draws nothing does not need TensorBoard.
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = list(RawEventFileLoader(str(path)).Load())  # leaves out a record that a kill has cut off
        events = [Event.FromString(record) for record in records]
        kept = [not event.HasField("summary") or event.step < self.first_step for event in events]
        if all(kept):
            return
        with written_whole(path) as partial, partial.open("wb") as file:
            writer = RecordWriter(file)
            for record in itertools.compress(records, kept):
                writer.write(record)
