"""`compare`: which test images only one of two networks reads right, and whether the difference is significant."""

import math

from torch import Tensor

from mnist_lightning import archive
from mnist_lightning.console import Parser
from mnist_lightning.use.reader import DigitReader

LISTED = 10  # images of each network


def compare(args: list[str]) -> None:
    """Compare two networks on the test images, and print the result.

    Raises:
        UserError: A checkpoint or the test images can't be read.
    """
    parser = Parser("compare", "Compare two networks on the test images, with McNemar's exact test.")
    for name in ("A", "B"):
        parser.add_argument(name, help="best, last, a run folder, version_N or a checkpoint file.")
    parser.add_argument("--data.root", dest="root", default="data", help="Folder of the test images. Default: data")
    options = parser.parse_args(args)
    readers = {"A": DigitReader.load(options.A), "B": DigitReader.load(options.B)}
    archive.prepare(options.root)
    images, labels = archive.read(options.root, "test")
    digits = {name: reader.probabilities(images).argmax(1) for name, reader in readers.items()}
    for name, reader in readers.items():
        right = (digits[name] == labels).float().mean()
        print(f"{name} reads {right:.2%} of the test images right: {reader.source['checkpoint']}")
    print(report(digits["A"], digits["B"], labels))


def report(a: Tensor, b: Tensor, labels: Tensor) -> str:
    """Describe where one network is right and the other is wrong.

    Args:
        a: Digits that A reads, int64 `(N,)`.
        b: Digits that B reads in the same images, int64 `(N,)`.
        labels: int64 `(N,)`.
    """
    right_a, right_b = a == labels, b == labels
    only_a, only_b = right_a & ~right_b, right_b & ~right_a
    p = mcnemar(int(only_a.sum()), int(only_b.sum()))
    shown = f"p = {p:.3g}" if p else "p < 1e-300"
    return "\n".join(
        [
            f"Both are right on {(right_a & right_b).sum():,} images, and wrong on {(~right_a & ~right_b).sum():,}.",
            "Images that only one reads right: number (label, answer of the other):",
            f"A, {only_a.sum():,}: {_listed(only_a, labels, b)}",
            f"B, {only_b.sum():,}: {_listed(only_b, labels, a)}",
            f"McNemar's exact test: {shown}. The difference between these two checkpoints is "
            f"{'significant' if p < 0.05 else 'not significant'} at the level 0.05.",
        ]
    )


def _listed(chosen: Tensor, labels: Tensor, answers: Tensor) -> str:
    """List the first images of a mask, bool `(N,)`."""
    numbers = chosen.nonzero().flatten().tolist()
    listed = [f"{number} ({labels[number]}, {answers[number]})" for number in numbers[:LISTED]]
    return ", ".join(listed + ["..."] * (len(numbers) > LISTED)) or "none"


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947), in 0..1.

    If both networks are equally good, each image that only one reads right is the toss of a coin. SciPy's `binomtest`
    would do the same, but an installed SciPy makes each start slower: torchmetrics imports it.

    Args:
        only_a: How many images only A reads right.
        only_b: How many images only B reads right.
    """
    tosses = only_a + only_b
    tail = sum(math.comb(tosses, heads) for heads in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**tosses)
