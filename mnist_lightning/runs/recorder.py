"""`RunRecorder`: writes down how a run was configured, and how far it has come."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.files import remove_partial, written_whole
from mnist_lightning.runs.folders import next_configuration, update_status
from mnist_lightning.runs.logger import RunLogger

# The settings in TensorBoard's HPARAMS tab: all that change what a network learns.
SHOWN = (
    "model.",
    "data.",
    "seed_everything",
    *(f"trainer.{name}" for name in ("max_", "accumulate_grad_batches", "gradient_clip", "precision")),
)


class RunRecorder(SaveConfigCallback):
    """Writes `config.yaml` and `status.json` to the run folder, and the settings to TensorBoard's HPARAMS tab.

    If a run continues, its configuration becomes `config_2.yaml` and so on. Lightning would refuse to continue, or
    overwrite `config.yaml`. If a run continues from another checkpoint, `last.ckpt` is kept as `last_2.ckpt`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: the checkpoint may not fit, and `test` writes no configuration."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration just before the first step: one that can't be used would count as the newest."""
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.first_step = trainer.global_step
        self._write_configuration(trainer, pl_module)
        network = cast(DigitClassifier, pl_module).network
        self._update(trainer, network=type(network).__name__, epochs=trainer.current_epoch)

    def _write_configuration(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.logger or not trainer.log_dir:
            return
        run = Path(trainer.log_dir)  # the same on all processes
        if trainer.is_global_zero:
            remove_partial(run)
        path = next_configuration(run)
        # Lightning writes on rank 0 alone. A kill must not leave half a configuration, which a resume would use.
        with written_whole(path) if trainer.is_global_zero else nullcontext(path) as partial:
            self.config_filename, self.overwrite = partial.name, True
            super().setup(trainer, pl_module, "fit")
        last = path.with_name("checkpoints") / "last.ckpt"
        if trainer.is_global_zero and trainer.ckpt_path and last.exists() and not last.samefile(trainer.ckpt_path):
            with written_whole(last.with_stem(path.stem.replace("config", "last"))) as partial:
                shutil.copyfile(last, partial)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.log_settings(
                {
                    key: value if isinstance(value, bool | int | float) else str(value)
                    for key, value in self.config.items()
                    if key.startswith(SHOWN) and key != "data.root"
                }
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = getattr(trainer.checkpoint_callback, "best_score", None)
        self._update(trainer, epochs=trainer.current_epoch + 1, best_val_acc=best)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, test_acc=trainer.callback_metrics["test/acc"].item())

    def _update(self, trainer: Trainer, **values: object) -> None:
        if trainer.is_global_zero and isinstance(trainer.logger, RunLogger):
            update_status(Path(trainer.logger.log_dir), **values)
