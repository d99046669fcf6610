import pytest
import torch
from torch import Tensor

from mnist_lightning.loader import EpochSampler

INDICES = torch.arange(100, 203)  # 103 of them


def order(epoch: int = 0, **arguments: int) -> Tensor:
    sampler = EpochSampler(INDICES, 10, shuffle=True, **arguments)
    sampler.set_epoch(epoch)
    return torch.cat(list(sampler))


def test_batches_are_index_tensors_and_the_last_may_be_shorter() -> None:
    batches = list(EpochSampler(INDICES, 10, shuffle=True))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert batches[0].dtype == torch.int64


def test_an_epoch_has_each_index_once_in_an_order_of_its_own() -> None:
    for epoch in range(3):
        assert torch.equal(order(epoch).sort().values, INDICES)
        assert not torch.equal(order(epoch), order(epoch + 1))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    assert torch.equal(order(4, seed=7), order(4, seed=7))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(order(4, seed=7), order(4, seed=7))
    assert torch.equal(torch.random.get_rng_state(), before)
    # Not of their sum.
    assert not torch.equal(order(4, seed=7), order(5, seed=6))


def test_a_pass_can_start_at_any_batch_and_the_next_is_whole_again() -> None:
    sampler = EpochSampler(INDICES, 10, shuffle=True)
    whole = list(sampler)
    sampler.start = 4
    assert torch.equal(torch.cat(list(sampler)), torch.cat(whole[4:]))
    assert torch.equal(torch.cat(list(sampler)), torch.cat(whole))
    assert len(sampler) == 11


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_shuffled_shards_are_disjoint_equally_long_and_reshuffled_together(world_size: int) -> None:
    shards = [[order(epoch, rank=rank, world_size=world_size) for epoch in (0, 1)] for rank in range(world_size)]
    for epoch in (0, 1):
        together = torch.cat([shard[epoch] for shard in shards])
        assert len(together.unique()) == len(together) == 103 - 103 % world_size
        assert len({len(shard[epoch]) for shard in shards}) == 1
    assert set(shards[0][0].tolist()) != set(shards[0][1].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_unshuffled_shards_hold_each_index_exactly_once(world_size: int) -> None:
    shards = [
        torch.cat(list(EpochSampler(INDICES, 10, shuffle=False, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(shards).sort().values, INDICES)
    if world_size == 1:
        assert torch.equal(shards[0], INDICES)
