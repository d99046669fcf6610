"""`RunRecorder`: what a run records of its making."""

import shutil
from contextlib import nullcontext
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from mnist_lightning.files import written_whole
from mnist_lightning.runs.folders import next_configuration
from mnist_lightning.runs.logger import RunLogger


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
        # Lightning writes on the first process alone. A kill must not leave a part of what the run would go on with.
        with written_whole(path) if trainer.is_global_zero else nullcontext(path) as partial:
            self.config_filename, self.overwrite = partial.name, True
            super().setup(trainer, pl_module, "fit")
        last = path.with_name("checkpoints") / "last.ckpt"
        if trainer.is_global_zero and trainer.ckpt_path and last.exists() and not last.samefile(trainer.ckpt_path):
            with written_whole(last.with_stem(path.stem.replace("config", "last"))) as partial:
                shutil.copyfile(last, partial)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.logger, RunLogger):
            chosen = ("model.", "data.", "seed_everything", "trainer.max_epochs")
            trainer.logger.log_settings(
                {
                    key: value if isinstance(value, bool | int | float) else str(value)
                    for key, value in self.config.items()
                    if key.startswith(chosen) and key not in ("data.root", "data.images")
                }
            )
