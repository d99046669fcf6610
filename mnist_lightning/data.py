"""`MNISTDataModule`: splits, loaders, and what happens to a batch on its device."""

import math
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mnist_lightning import archive
from mnist_lightning.augmentation import distort
from mnist_lightning.checkpoint import CheckpointError
from mnist_lightning.loader import EpochSampler
from mnist_lightning.use import photos
from mnist_lightning.use.photos import Photos

DEFAULT_SEED = 42


class TensorLoader:
    """Batches of an in-memory data set, each fetched by one index operation on each tensor.

    Where torch's `DataLoader` would be asked for an image at a time, or need a sampler dressed up as a batch, this
    asks for whole batches. Lightning leaves it alone in a distributed run: the sampler shards.
    """

    def __init__(self, images: Tensor, labels: Tensor, sampler: EpochSampler) -> None:
        self.images = images
        self.labels = labels
        # Named as in torch's `DataLoader(batch_size=None)`: Lightning tells `sampler` the epoch, and asks for both.
        self.sampler = sampler
        self.batch_sampler = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 `(B, 28, 28)` and labels int64 `(B,)`."""
        for indices in self.sampler:
            yield self.images[indices], self.labels[indices]


class MNISTDataModule(LightningDataModule):
    """MNIST in memory: 55,000 images to train on, 5,000 to validate with, the official 10,000 to test with.

    A batch travels as uint8 images `(B, 28, 28)` and int64 labels `(B,)`, and becomes float32 `(B, 1, 28, 28)`,
    normalised, on its device. The order of the training images follows from the seed of `seed_everything`,
    42 without one, and so do the global random states, of Python, NumPy and torch, at the start of each training step.

    Args:
        root: holds the archives in `MNIST/raw`; those missing are downloaded there (`archive.py`).
        batch_size: images in a batch, at least 1.
        val_size: images kept from training for validation, in 0..59,999, the same share of each digit. 0 trains on
            all 60,000 and validates nothing.
        mean: subtracted from pixels in 0..1. With the default `std`, pixels come to be in -1..1.
        std: what is left is divided by it; more than 0.
        rotation: training images are turned at random, by up to so many degrees (`augmentation.py`, also for the rest),
        scale: and made wider or narrower, taller or flatter; 0.1 is by up to a factor of 1.1,
        shear: and slanted, by up to so many pixels from one row to the next,
        translation: and moved, by up to so many pixels along each axis,
        elastic: and bent; the standard deviation of the displacements, in pixels.
        fade: all of this weakens evenly from the first training step to the last that `max_epochs` and `max_steps`
            allow, by this share of it, in 0..1.
        images: pictures to predict on: files, folders or globs (`photos.py`). The test images without them.

    Attributes:
        photos: what was read of the pictures to predict on, once `predict` has begun.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_size: int = 5_000,
        mean: float = 0.5,
        std: float = 0.5,
        rotation: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        translation: float = 0.0,
        elastic: float = 0.0,
        fade: float = 0.0,
        images: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size (--data.batch_size) is {batch_size}; expected at least 1")
        if not 0 <= val_size < archive.TRAIN_SIZE:
            raise ValueError(f"val_size (--data.val_size) is {val_size}; expected 0..{archive.TRAIN_SIZE - 1}")
        if not std > 0:  # not a number is not either
            raise ValueError(f"std (--data.std) is {std}; expected more than 0")
        names = [images] if isinstance(images, str) else images
        if names is not None and not (names and all(names)):
            raise ValueError("images (--data.images) is empty; expected names of files, folders or globs")
        distortion = {
            "rotation": rotation,
            "scale": scale,
            "shear": shear,
            "translation": translation,
            "elastic": elastic,
        }
        for name, value in distortion.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} (--data.{name}) is {value}; expected 0 or more, and finite")
        if not 0 <= fade <= 1:
            raise ValueError(f"fade (--data.fade) is {fade}; expected 0..1")
        # Where the archives and pictures lie is a matter of the machine, not of what was learned from them.
        self.save_hyperparameters(ignore=["root", "images"])
        self.root = root
        self.batch_size = batch_size
        self.val_size = val_size
        self.mean = mean
        self.std = std
        self.distortion = distortion
        self.fade = fade
        self.picture_names = names
        self.photos: Photos | None = None

    def prepare_data(self) -> None:
        if not (self.picture_names and self.trainer and self.trainer.state.fn == TrainerFn.PREDICTING):
            archive.prepare(self.root)

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate"):
            images, labels = archive.read(self.root, "train")
            train, val = split(labels, self.val_size)
            self._train_loader = self._loader(images, labels, train, shuffle=True)
            self._val_loader = self._loader(images, labels, val)
        elif stage == "predict" and self.picture_names:
            self.photos = photos.read(self.picture_names)
            labels = torch.full([len(self.photos.images)], -1)  # nobody knows them
            self._predict_loader = self._loader(self.photos.images, labels, torch.arange(len(labels)))
        else:
            images, labels = archive.read(self.root, "test")
            self._test_loader = self._predict_loader = self._loader(images, labels, torch.arange(len(labels)))

    def train_dataloader(self) -> TensorLoader:
        return self._train_loader

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._val_loader if self.val_size else []

    def test_dataloader(self) -> TensorLoader:
        return self._test_loader

    def predict_dataloader(self) -> TensorLoader:
        return self._predict_loader

    def _loader(self, images: Tensor, labels: Tensor, indices: Tensor, shuffle: bool = False) -> TensorLoader:
        sampler = EpochSampler(
            indices,
            self.batch_size,
            shuffle=shuffle,
            # Where `seed_everything` leaves its seed, for Lightning's own samplers too, on every process.
            seed=int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED)),
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return TensorLoader(images, labels, sampler)

    def on_before_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make all that a training step draws, for augmentation or dropout, a function of seed, epoch, step and rank.

        As with the order of the images, there is no random state then that a resumed run would have to restore. This
        hook is the first of a step, before the one in which a data module augments.
        """
        if self.trainer and self.trainer.training:
            step = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            sampler = self._train_loader.sampler
            random.seed(f"{sampler.seed}, {sampler.epoch}, {step}, {sampler.rank}")
            np.random.seed(random.getrandbits(32))
            # `torch.manual_seed` takes 0.2 ms: it prepares devices that may not be there.
            torch.default_generator.manual_seed(seed := random.getrandbits(63))
            if (device := self.trainer.strategy.root_device).type != "cpu":
                torch.get_device_module(device).manual_seed(seed)
        return batch

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make uint8 `(B, 28, 28)` float32 `(B, 1, 28, 28)`, normalised, on the device where the batch is.

        Images to train on are distorted, if that is asked for.
        """
        images, labels = batch
        # In the order, and so to the bit, of torchvision's ToTensor and Normalize. The memory format is the network's.
        pixels = images.unsqueeze(1).to(torch.float32, memory_format=torch.channels_last).div_(255)
        pixels = pixels.sub_(self.mean).div_(self.std)
        if self.trainer and self.trainer.training and any(self.distortion.values()):
            # Of a run without an end, no share is ever done.
            done = self.trainer.global_step / self.trainer.estimated_stepping_batches
            pixels = distort(pixels, **{name: most * (1 - self.fade * done) for name, most in self.distortion.items()})
        if self.trainer:  # `--trainer.precision bf16-true`: Lightning has converted the batch before it was float
            pixels = self.trainer.precision_plugin.convert_input(pixels)
        return pixels, labels

    def state_dict(self) -> dict[str, Any]:
        """Return where in the order of the training images this run is, and what that order depends on."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return {}
        # Lightning's count: one of our own would be a batch ahead after an exception in a training step.
        loop: Any = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed
        epochs = loop.epoch_progress.current
        finished = done >= self.trainer.num_training_batches or epochs.processed == epochs.started
        return self._order() | {"batches_done": 0 if finished else done}

    def _order(self) -> dict[str, Any]:
        sampler = self._train_loader.sampler
        return {
            "seed": sampler.seed,
            "images": len(sampler.indices),
            "batch_size": sampler.batch_size,
            "processes": sampler.world_size,
            "limit_train_batches": self.trainer.limit_train_batches if self.trainer else None,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches if self.trainer else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the same order, behind the batches that are done. Lightning restores the epoch itself.

        Raises:
            CheckpointError: the checkpoint is from within an epoch, which here would have another order.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._train_loader.sampler.seed = state["seed"]
        for name, here in self._order().items():
            if state["batches_done"] and state[name] != here:
                raise CheckpointError(
                    f"the checkpoint is from within an epoch, begun with {name} {state[name]}; "
                    f"expected to end with the same, and got {here}"
                )
        self._train_loader.sampler.start = state["batches_done"]
        # Lightning looks for the position in the loader's own state, which it drops where a schedule asks for the
        # number of steps (PL#20550); the data module's it keeps.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")


def split(labels: Tensor, val_size: int) -> tuple[Tensor, Tensor]:
    """Split a data set in two, with the same share of each label in both.

    Args:
        labels: int64 `(N,)`.
        val_size: images in the second part, in `0..N - 1`.

    Returns:
        Indices of the first part, int64 `(N - val_size,)`, and of the second, int64 `(val_size,)`, each ascending.
        The same on every call, whatever the run's seed: runs can be compared on one validation split.
    """
    size = len(labels)
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    # At even distances through the labels in order, each label gets its share, give or take one image.
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[torch.arange(val_size) * size // max(val_size, 1)] = True
    return by_label[~chosen].sort().values, by_label[chosen].sort().values
