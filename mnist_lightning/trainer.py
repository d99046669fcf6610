"""`DigitTrainer`: Lightning's Trainer, and what people do with a network that is trained."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mnist_lightning import checkpoint, export, photos, predictions, runs
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.durable import OutputError, check_output
from mnist_lightning.photos import PhotoError

SHOWN = 10  # test images


class DigitTrainer(Trainer):
    """Lightning's Trainer, whose `predict` tells a person what it reads, and with `export`.

    Verbs of the command line are methods of the trainer, and their flags the arguments of these.
    """

    def predict(  # type: ignore[override]
        self,
        model: DigitClassifier,
        datamodule: MNISTDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
        show: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Read digits in pictures of one's own, or the test images, and print them.

        Args:
            model: reads them.
            datamodule: has them.
            ckpt_path: best, last or a file, of which the weights are.
            output: a .csv or .json file, for the same rows.
            show: a folder, for a PNG file of each picture as the network sees it.
            overwrite: whether these may replace what is there.

        Raises:
            OutputError: a file can't be written.
            PhotoError: there are no pictures, or none that can be read.
        """
        if output:
            check_output(Path(output), "--output", predictions.SUFFIXES, overwrite)
        if show:
            check_output(Path(show), "--show", (), overwrite)
        logits = super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        images = datamodule.predict_dataloader().images
        if datamodule.photos:
            files, problems = [str(path) for path in datamodule.photos.paths], datamodule.photos.problems
        else:
            files, problems = [f"test image {number}" for number in range(len(images))], [""] * len(images)
        rows = predictions.predictions(torch.cat(cast(list[Tensor], logits)), model.calibration, files, problems)
        with written_as_asked():
            if output:
                predictions.write(rows, Path(output))
            if show:
                photos.write(images, files, Path(show))

        print(predictions.table(rows if datamodule.photos else rows[:SHOWN]))
        if not datamodule.photos:
            print(f"... and {len(rows) - SHOWN:,} more, which --output predictions.csv writes to a file.")
        if not model.calibration:
            print("Its run had no validation: confidences are not calibrated, and nothing is unsure.")
        elif any(row.answer == "unsure" for row in rows):
            print(
                f"unsure: below {model.calibration.threshold:.1%}. Of what was above, at most one in 1,000 was wrong "
                f"on the {model.calibration.images:,} validation images."
            )
        if all(problems):
            raise PhotoError("there is no picture among these that can be read")

    def export(
        self,
        model: DigitClassifier,
        datamodule: MNISTDataModule,
        output: str,
        ckpt_path: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a network to a file that needs nothing of this program.

        Args:
            model: to be written.
            datamodule: knows how images are normalised.
            output: a .pth file for the tutorial's code, .onnx for ONNX, or .pt2 for torch.export.
            ckpt_path: best, last or a file, of which the weights are.
            overwrite: whether this may replace what is there.

        Raises:
            CheckpointError: the checkpoint can't be read.
            OutputError: the file can't be written.
        """
        path = Path(output)
        check_output(path, "--output", export.FORMATS, overwrite)
        check_output(export.description_of(path), "the description of --output", [".json"], overwrite)
        source: dict[str, Any] = {}
        if ckpt_path:
            content = checkpoint.read(ckpt_path)
            model.load_state_dict(content["state_dict"])
            model.on_load_checkpoint(content)
            run = runs.of_checkpoint(Path(ckpt_path))
            source = {
                "run": os.path.relpath(run) if run else None,
                "checkpoint": os.path.relpath(ckpt_path),
                "step": content["global_step"],
            }
        with written_as_asked():
            export.write(model, datamodule, path, source)
        print(f"Written: {path}, and what goes in and comes out in {export.description_of(path)}")


@contextmanager
def written_as_asked() -> Iterator[None]:
    """Let an error of the file system say which file can't be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{error.filename or 'a file'} can't be written: {error.strerror}") from error
