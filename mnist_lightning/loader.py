"""Which images, in which order, from which position."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor


class EpochSampler:
    """Batches of indices whose order is a pure function of (seed, epoch, rank).

    Nothing random is drawn from a state that a resumed run would have to restore: set the epoch and `start`, and
    what follows is what an uninterrupted run would have seen. torch's `DistributedSampler` does neither this (it
    has no position) nor count each image once: it pads the shards to equal lengths.

    Args:
        indices: the images to draw from, int64 `(N,)`.
        batch_size: images in each batch; the last one may hold fewer.
        shuffle: a new order for each epoch, the images that fall to a rank included. Every rank then has the
            same number of batches: up to `world_size - 1` images sit an epoch out. Without it every index comes
            exactly once, over all ranks, in the order given.
        seed: with the epoch, what the order depends on.
        rank: this process, in `0..world_size - 1`.
        world_size: processes that share the indices.

    Attributes:
        start: batches to leave out of the next pass, taken back to 0 by it.
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
        """Batches of a whole epoch on this rank."""
        return -(-len(self._shard(self.indices)) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield int64 index tensors `(batch_size,)`; the last may be shorter."""
        order = self.indices
        if self.shuffle:
            # Seeded by text, so that (seed, epoch) pairs don't meet as they do in `seed + epoch`.
            state = random.Random(f"{self.seed}, {self.epoch}").getrandbits(63)
            generator = torch.Generator().manual_seed(state)
            order = order[torch.randperm(len(order), generator=generator)]
        start, self.start = self.start, 0
        yield from self._shard(order).split(self.batch_size)[start:]

    def _shard(self, order: Tensor) -> Tensor:
        stop = len(order) - len(order) % self.world_size if self.shuffle else len(order)
        return order[self.rank : stop : self.world_size]
