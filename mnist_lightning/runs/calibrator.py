"""`Calibrator`: measures after each validation how far the network's confidence can be trusted."""

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import CatMetric

from mnist_lightning.calibration import KEY, Calibration, calibrate
from mnist_lightning.classifier import Batch


class Calibrator(Callback):
    """Keeps the calibration of the last validation, and stores it in checkpoints for `DigitReader`.

    Attributes:
        calibration: None before the first validation, and if the network's logits were not finite.
    """

    def __init__(self) -> None:
        self.calibration: Calibration | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logits, self._labels = (CatMetric(nan_strategy="disable").to(pl_module.device) for _ in range(2))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._logits.update(outputs)
        self._labels.update(batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logits, labels = self._logits.compute(), self._labels.compute()  # of all processes
        if not trainer.sanity_checking:
            self.calibration = calibrate(logits, labels.long(), trainer.global_step)  # CatMetric returns floats

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.calibration:
            checkpoint[KEY] = asdict(self.calibration)  # plain numbers, for torch's safe loader

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.calibration = Calibration.stored(checkpoint.get(KEY))
