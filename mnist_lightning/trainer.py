"""`DigitTrainer`: Lightning's Trainer, and what people do with a network that is trained."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mnist_lightning import checkpoint
from mnist_lightning.calibration import RISK
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.output import check_file, check_folder, written
from mnist_lightning.runs import folders
from mnist_lightning.use import export, photos
from mnist_lightning.use import predict as predictions
from mnist_lightning.use.photos import PhotoError

SHOWN = 10  # test images


class DigitTrainer(Trainer):
    """Lightning's Trainer, with a `predict` that prints what is read, and an `export`.

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
            model: the classifier.
            datamodule: holds the pictures, or else the test images.
            ckpt_path: best, last or a checkpoint file, whose weights are used.
            output: a .csv or .json file to write the same rows to.
            show: a folder to write a PNG file of each picture to, as the network sees it.
            overwrite: replace these if they exist.

        Raises:
            CheckpointError: the checkpoint can't be read.
            OutputError: a file can't be written.
            PhotoError: there are no pictures, or none that can be read.
        """
        if output:
            check_file(Path(output), "--output", predictions.SUFFIXES, overwrite)
        if show:
            check_folder(Path(show), "--show", overwrite)
        batches = super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        if not batches:  # `--trainer.limit_predict_batches 0`
            raise PhotoError("there is nothing to predict on: --trainer.limit_predict_batches leaves out all images")
        logits = torch.cat(cast(list[Tensor], batches))
        read = len(logits)  # `--trainer.limit_predict_batches` may have left some out
        images = datamodule.predict_dataloader().images[:read]
        own = datamodule.photos
        files = (
            [printable(path) for path in own.paths[:read]]
            if own
            else [f"test image {number}" for number in range(read)]
        )
        problems = own.problems[:read] if own else [""] * read
        rows = predictions.interpret(logits, model.calibration, files, problems)
        if output:
            with written(Path(output), "--output"):
                predictions.write(rows, Path(output))
        if show:
            with written(Path(show), "--show"):
                photos.write(images, files, problems, Path(show))

        print(predictions.table(rows if own else rows[:SHOWN]))
        if not own and read > SHOWN:
            print(f"... and {read - SHOWN:,} more, which --output predictions.csv writes to a file.")
        if not model.calibration:
            print("The checkpoint has no calibration: confidences are the softmax's, and nothing is unsure.")
        elif model.calibration.threshold > 1:
            print("unsure: the network was wrong too often on the validation images, however sure it was.")
        elif any(row.answer == "unsure" for row in rows):
            print(
                f"unsure: below {model.calibration.threshold:.2%}. Of what was above, at most one in {1 / RISK:,.0f} "
                f"was wrong on the {model.calibration.images:,} validation images."
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
            model: the classifier.
            datamodule: knows how images are normalised.
            output: a .pth file for the tutorial's code, .onnx for ONNX, or .pt2 for torch.export.
            ckpt_path: best, last or a checkpoint file, whose weights are used.
            overwrite: replace the file if it exists.

        Raises:
            CheckpointError: the checkpoint can't be read.
            OutputError: the file can't be written.
        """
        path = Path(output)
        description = export.description_of(path)
        check_file(path, "--output", export.FORMATS, overwrite)
        check_file(description, "the description of --output", [".json"], overwrite)
        source: dict[str, Any] = {}
        if ckpt_path:
            content = checkpoint.read(ckpt_path)
            model.load_state_dict(content["state_dict"])
            model.on_load_checkpoint(content)
            run = folders.of_checkpoint(Path(ckpt_path))
            source = {
                "run": os.path.relpath(run) if run else None,
                "checkpoint": os.path.relpath(ckpt_path),
                "step": content["global_step"],
            }
        with written(path, "--output"):
            export.write(model, datamodule, path, source)
        print(f"Written: {path}; {description} describes its inputs and outputs")


def printable(path: Path) -> str:
    """Return a path as text for people and files: its bytes can be any, which neither terminals nor CSV files take."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
