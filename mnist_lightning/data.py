"""`MNISTDataModule`: the splits, their loaders, and what happens to a batch on its device."""

import os
import random

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor

from mnist_lightning import archive
from mnist_lightning.augmentation import Distortion
from mnist_lightning.errors import SettingError
from mnist_lightning.loader import EpochSampler, TensorLoader
from mnist_lightning.normalization import normalize

DEFAULT_SEED = 42
NO_DISTORTION = Distortion()


class MNISTDataModule(LightningDataModule):
    """MNIST in memory: 55,000 images for training, 5,000 for validation, and the official 10,000 for testing.

    A batch leaves the loader as uint8 images `(B, 28, 28)` and int64 labels `(B,)`. On its device, the images become
    float32 `(B, 1, 28, 28)`, normalized. The order of the training images and their distortions follow from the seed
    of `seed_everything`, and from 42 if there is none.

    Args:
        root: Folder that holds the archives in `MNIST/raw`. Missing archives are downloaded to it.
        batch_size: Images in a batch, at least 1.
        val_size: Images kept from training for validation, in 0..59,999, with the same share of each digit. With 0,
            all 60,000 images are for training.
        mean: The number to subtract from pixels in 0..1.
        std: The divisor of pixels minus `mean`, more than 0. With the default mean and std, pixels end up in -1..1.
        distortion: How strongly training images are distorted at random.
        fade: The share of the distortion that is gone at the last training step, in 0..1. It fades evenly. If the
            number of steps is unlimited, nothing fades.
        resident: Whether all images are kept on the run's device. Then no batch is copied to it.

    Raises:
        SettingError: An argument is outside its range.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 5_000,
        mean: float = 0.5,
        std: float = 0.5,
        distortion: Distortion = NO_DISTORTION,
        fade: float = 0.0,
        resident: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise SettingError("batch_size", batch_size, "at least 1")
        if not 0 <= val_size < archive.TRAIN_SIZE:
            raise SettingError("val_size", val_size, f"0..{archive.TRAIN_SIZE - 1}")
        if not std > 0:  # also refuses NaN
            raise SettingError("std", std, "more than 0")
        if not 0 <= fade <= 1:
            raise SettingError("fade", fade, "0..1")
        # Not `root` and `resident`: they depend on the machine. Not `distortion`: torch's safe loader refuses objects.
        self.save_hyperparameters(ignore=["root", "resident", "distortion"])
        self.root = root
        self.batch_size = batch_size
        self.val_size = val_size
        self.mean = mean
        self.std = std
        self.distortion = distortion
        self.fade = fade
        self.resident = resident

    def prepare_data(self) -> None:
        archive.prepare(self.root)

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device if self.trainer and self.resident else torch.device("cpu")
        if stage in ("fit", "validate"):
            images, labels = archive.read(self.root, "train")
            parts = (images, labels, *split(labels, self.val_size))
            images, labels, train, val = (part.to(device) for part in parts)
            self._train_loader = self._loader(images, labels, train, shuffle=True)
            self._val_loader = self._loader(images, labels, val)
        else:
            images, labels = (part.to(device) for part in archive.read(self.root, "test"))
            self._test_loader = self._loader(images, labels, torch.arange(len(labels), device=device))

    def train_dataloader(self) -> TensorLoader:
        return self._train_loader

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._val_loader if self.val_size else []

    def test_dataloader(self) -> TensorLoader:
        return self._test_loader

    def _loader(self, images: Tensor, labels: Tensor, indices: Tensor, shuffle: bool = False) -> TensorLoader:
        seed = int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED))  # `seed_everything` leaves it there in each process
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(indices, self.batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        return TensorLoader(images, labels, sampler)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn uint8 images `(B, 28, 28)` into float32 `(B, 1, 28, 28)`: normalized, and distorted for training."""
        images, labels = batch
        pixels = normalize(images, self.mean, self.std)
        if self.trainer and self.trainer.training and self.distortion:
            done = self.trainer.global_step / self.trainer.estimated_stepping_batches  # the share of all steps
            pixels = self.distortion.weaker(self.fade * done)(pixels, self._generator(pixels.device))
        if self.trainer:  # for `--trainer.precision bf16-true`: Lightning's own conversion ran earlier, on uint8
            pixels = self.trainer.precision_plugin.convert_input(pixels)
        return pixels, labels

    def _generator(self, device: torch.device) -> Generator:
        """Return random numbers for the next training batch. They follow from seed, epoch, batch and rank."""
        assert self.trainer
        sampler, batch = self._train_loader.sampler, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        seed = random.Random(f"{sampler.seed}, {sampler.epoch}, {batch}, {sampler.rank}").getrandbits(63)
        return Generator(device).manual_seed(seed)


def split(labels: Tensor, val_size: int) -> tuple[Tensor, Tensor]:
    """Split a data set in two, with the same share of each label in both.

    The split does not depend on the seed of a run, so that all runs can be compared on one validation split.

    Args:
        labels: int64 `(N,)`.
        val_size: Images in the second part, in `0..N - 1`.

    Returns:
        Indices of the first part, int64 `(N - val_size,)`, and of the second part, int64 `(val_size,)`, both ascending.
    """
    size = len(labels)
    shuffled = torch.randperm(size, generator=Generator().manual_seed(0))
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    # In label order, evenly spaced images have the same share of each label, rounded to whole images.
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[torch.arange(val_size) * size // max(val_size, 1)] = True
    return by_label[~chosen].sort().values, by_label[chosen].sort().values
