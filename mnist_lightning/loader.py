"""Batches from memory: which images, in which order, from which position."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor


class EpochSampler:
    """Yields batches of indices. Their order follows from seed, epoch and rank alone.

    So a run can continue anywhere: set `epoch` and `start`, and the same batches follow. torch's
    `DistributedSampler` has no position, and it repeats images to give each process the same number.

    Args:
        indices: The images to choose from, int64 `(N,)`. The batches lie on the device of this tensor.
        batch_size: Images in each batch. The last batch may have fewer.
        shuffle: Whether each epoch has a new order. Every process then gets the same number of batches, and up to
            `world_size - 1` images are left out of an epoch. Without it, all processes together yield each index once.
        seed: Together with the epoch, this decides the order.
        rank: The number of this process, in `0..world_size - 1`.
        world_size: How many processes share the indices.

    Attributes:
        start: How many batches the next pass leaves out. The pass sets it back to 0.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass. Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this process."""
        return -(-len(self._shard(self.indices)) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield indices, int64 `(batch_size,)`. The last batch may be shorter."""
        order = self.indices
        if self.shuffle:
            # Each pair of seed and epoch has its own text. A sum would give (1, 2) and (2, 1) the same order.
            state = random.Random(f"{self.seed}, {self.epoch}").getrandbits(63)
            generator = torch.Generator().manual_seed(state)
            order = order[torch.randperm(len(order), generator=generator)]
        start, self.start = self.start, 0
        yield from self._shard(order).split(self.batch_size)[start:]

    def _shard(self, order: Tensor) -> Tensor:
        stop = len(order) - len(order) % self.world_size if self.shuffle else len(order)
        return order[self.rank : stop : self.world_size]


class TensorLoader:
    """Yields batches of a data set in memory, each by one index operation per tensor.

    torch's `DataLoader` would fetch the images one by one, and `images[indices]` takes seven times longer. In a
    distributed run, Lightning keeps this loader: the sampler divides the images.

    Args:
        images: uint8 `(N, 28, 28)`.
        labels: int64 `(N,)`.
        sampler: Chooses the images of each batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, sampler: EpochSampler) -> None:
        self.images = images
        self.labels = labels
        self.sampler = sampler  # Lightning tells it the epoch
        self.batch_sampler = None  # Lightning asks for it

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 `(B, 28, 28)`, and labels, int64 `(B,)`."""
        for indices in self.sampler:
            yield self.images.index_select(0, indices), self.labels.index_select(0, indices)
