"""`RunRecorder`: what a run records of its making."""

import os
import shutil
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mnist_lightning.checkpoint import PARTIAL
from mnist_lightning.logger import RunLogger
from mnist_lightning.runs import next_configuration


class RunRecorder(SaveConfigCallback):
    """Writes a run's configuration, `config.yaml` in its folder, and TensorBoard's HPARAMS tab.

    A run that goes on adds a `config_2.yaml` and so on, where Lightning would fail, or overwrite the first. One that
    goes back, to another checkpoint than its last, keeps that as `last_2.ckpt`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: what the run goes on from may turn out not to fit. `test` writes nothing at all."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.logger or not trainer.log_dir:
            return
        path = next_configuration(Path(trainer.log_dir))
        # A kill must not leave a part of it under its name, as the run goes on with it.
        self.config_filename, self.overwrite = path.name + PARTIAL, True
        super().setup(trainer, pl_module, "fit")
        if trainer.is_global_zero:
            os.replace(path.with_name(self.config_filename), path)
            last = path.with_name("checkpoints") / "last.ckpt"
            if trainer.ckpt_path and last.exists() and not last.samefile(trainer.ckpt_path):
                shutil.copy2(last, last.with_stem(path.stem.replace("config", "last")))

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
