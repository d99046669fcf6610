"""MNIST with PyTorch Lightning: what a notebook needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_lightning.classifier import DigitClassifier
    from mnist_lightning.data import MNISTDataModule
    from mnist_lightning.networks import LeNet
    from mnist_lightning.runs.resume import ExactResume
    from mnist_lightning.use.reader import DigitReader

__all__ = ["DigitClassifier", "DigitReader", "ExactResume", "LeNet", "MNISTDataModule"]

MODULES = {
    "DigitClassifier": "classifier",
    "DigitReader": "use.reader",
    "ExactResume": "runs.resume",
    "LeNet": "networks",
    "MNISTDataModule": "data",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: reading a photo does not need the slow import of Lightning."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
