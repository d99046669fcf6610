"""What a run records of itself: its configuration, and its curves in TensorBoard."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, with one point for a step and the metrics of this project in HPARAMS.

    Args:
        test_step: the step that the tested checkpoint has reached. Lightning would draw `test/acc` at step 0, as it
            counts the steps of this process alone.
        kwargs: those of `TensorBoardLogger`.
    """

    def __init__(self, *, test_step: int | None = None, **kwargs: Any) -> None:
        # Lightning's metric for HPARAMS is one of its own, -1 throughout.
        super().__init__(**kwargs, default_hp_metric=False)
        self.test_step = test_step
        self._drawn_step: int | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Draw scalars at a step. Lightning calls this up to three times for the last step of an epoch."""
        if self.test_step is not None:
            step = self.test_step
        if step == self._drawn_step or self.test_step is not None:
            metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        self._drawn_step = step
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_settings(self, settings: dict[str, bool | int | float | str]) -> None:
        """Fill TensorBoard's HPARAMS tab: the settings, and for each metric the last point of its curve.

        Only the metrics' names are written. `log_hyperparams` would also draw a point of its own on each curve.
        """
        metrics = dict.fromkeys(["val/acc", "val/loss", "train/acc", "train/loss", "test/acc", "test/loss"], 0.0)
        for summary in hparams(settings, metrics):
            self.experiment.file_writer.add_summary(summary)


class RunRecorder(SaveConfigCallback):
    """Records what a run was made of: `config.yaml` in its folder, and TensorBoard's HPARAMS tab."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # `test` writes into the folder of the run that it tests, whose record stands.
        if stage == "fit" and trainer.logger:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, RunLogger):
            chosen = ("model.", "data.batch_size", "data.val_size", "seed_everything", "trainer.max_epochs")
            trainer.logger.log_settings(
                {
                    key: value if isinstance(value, bool | int | float) else str(value)
                    for key, value in self.config.items()
                    if key.startswith(chosen)
                }
            )
