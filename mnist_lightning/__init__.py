"""MNIST with PyTorch Lightning: all that a notebook needs."""

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import MNISTDataModule
from mnist_lightning.networks import LeNet

__all__ = ["DigitClassifier", "LeNet", "MNISTDataModule"]
