"""Compares two runs on the test images: which ones only one of them reads right, and McNemar's test."""

import math
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mnist_lightning import archive, checkpoint, console
from mnist_lightning.checkpoint import CheckpointError
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.runs import folders

LISTED = 10  # images, for each run


DESCRIPTION = "compare two runs on the test images, and test whether the difference is significant"


def compare(args: list[str]) -> None:
    """Compare two runs, and print the result.

    Args:
        args: what would follow `python -m mnist_lightning compare` on a command line.

    Raises:
        ArchiveError: the test set can't be read.
        CheckpointError: a checkpoint can't be read, or another program wrote it.
        NoCheckpointError: a run has none.
        SystemExit: the arguments can't be used.
    """
    parser = console.Parser(prog=f"{console.PROGRAM} compare", description=DESCRIPTION)
    for name in ("RUN_A", "RUN_B"):
        parser.add_argument(name, help="a run folder, for its checkpoints/best.ckpt, or a checkpoint file")
    parser.add_argument("--data.root", default="data", help="holds the archives in `MNIST/raw`")
    options = parser.parse_args(args)
    root = options["data.root"]
    path_a, path_b = (folders.checkpoint_at(Path(options[name])) for name in ("RUN_A", "RUN_B"))
    check(path_a, "RUN_A")
    check(path_b, "RUN_B")
    a, b = read_digits(path_a, root), read_digits(path_b, root)
    labels = archive.read(root, "test")[1]
    for name, digits, path in (("A", a, path_a), ("B", b, path_b)):
        print(f"{name} reads {(digits == labels).float().mean():.2%} of the test images right: {path}")
    print(report(a, b, labels))


def check(path: Path, name: str) -> None:
    """Make sure that a checkpoint says how to build its network, and how its images are normalised.

    Args:
        path: a file.
        name: the argument that named it.

    Raises:
        CheckpointError: it doesn't, as those of a notebook, or it can't be read.
    """
    try:
        content = checkpoint.read(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("--ckpt_path", name)) from error
    if "network" not in content.get("hyper_parameters", {}) or "datamodule_hyper_parameters" not in content:
        raise CheckpointError(f"{path} ({name}) does not say how its network is built; expected a checkpoint of `fit`")


def read_digits(path: Path, root: str) -> Tensor:
    """Return what a checkpoint takes the test images for, int64 `(10_000,)`.

    Raises:
        ArchiveError: the test set can't be read.
        CheckpointError: the checkpoint can't be read, or another program wrote it.
    """
    try:
        model = DigitClassifier.load_from_checkpoint(path)
        data = MNISTDataModule.load_from_checkpoint(path, root=root, weights_only=True)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not of this program: {reason}") from error
    trainer = Trainer(devices=1, logger=False, enable_progress_bar=False)
    logits = cast(list[Tensor], trainer.predict(model, data))
    return torch.cat(logits).argmax(1)


def report(a: Tensor, b: Tensor, labels: Tensor) -> str:
    """Say where one is right and the other wrong, and what McNemar's test makes of it.

    Args:
        a: digits int64 `(N,)`.
        b: digits int64 `(N,)`, of the same images.
        labels: int64 `(N,)`.
    """
    right_a, right_b = a == labels, b == labels
    only_a, only_b = right_a & ~right_b, right_b & ~right_a
    p = mcnemar(int(only_a.sum()), int(only_b.sum()))
    return "\n".join(
        [
            f"Both are right on {(right_a & right_b).sum():,}, both wrong on {(~right_a & ~right_b).sum():,}.",
            "Images that only one reads right, by their number in the test set (label, the other's answer):",
            f"A, {only_a.sum():,}: {_mistakes(only_a, labels, b)}",
            f"B, {only_b.sum():,}: {_mistakes(only_b, labels, a)}",
            f"McNemar's exact test: p = {p:.3g}; between these two checkpoints the difference is "
            f"{'significant' if p < 0.05 else 'not significant'} at the level 0.05.",
        ]
    )


def _mistakes(images: Tensor, labels: Tensor, answers: Tensor) -> str:
    """List the first of those chosen by a mask, bool `(N,)`."""
    indices = images.nonzero().flatten().tolist()
    listed = [f"{index} ({labels[index]}, {answers[index]})" for index in indices[:LISTED]]
    return ", ".join(listed + ["..."] * (len(indices) > LISTED)) or "none"


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947), in 0..1.

    If neither is better, each image that only one reads right is a toss of a coin. Written out, as SciPy's `binomtest`
    would add a dependency of 100 MB, which torchmetrics then imports at every start.

    Args:
        only_a: images that A alone reads right.
        only_b: images that B alone reads right.
    """
    tosses = only_a + only_b
    tail = sum(math.comb(tosses, heads) for heads in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**tosses)
