import functools
import operator

import pytest
import torch

from data_setup.epoch_order import Shuffled
from data_setup.sampler import SampleKey, ShardedBatchSampler


def permutation(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    return Shuffled(num_samples, seed).order(epoch)


# (world size, micro-batch, accumulation) with a global batch of 8
LAYOUTS = [(1, 8, 1), (1, 1, 8), (2, 4, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1)]


def sampler(layout=(1, 8, 1), rank=0, num_samples=50, drop_last=True, seed=3) -> ShardedBatchSampler:
    world_size, micro, accumulation = layout
    return ShardedBatchSampler(
        order=Shuffled(num_samples, seed), rank=rank, world_size=world_size,
        micro_batch_size=micro, grad_accum_steps=accumulation, drop_last=drop_last,
    )  # fmt: skip


def per_update(layout, start, num_steps) -> list[list[SampleKey]]:
    """What all ranks together train on in each update."""
    updates: list[list[SampleKey]] = [[] for _ in range(num_steps)]
    for rank in range(layout[0]):
        for number, micro_batch in enumerate(sampler(layout, rank).micro_batches(start, num_steps)):
            assert len(micro_batch) == layout[1]
            updates[number // layout[2]] += micro_batch
    return updates


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_each_update_on_the_same_samples(layout):
    expected = [sorted(update) for update in per_update((1, 8, 1), 0, 14)]  # two epochs and more
    assert [sorted(update) for update in per_update(layout, 0, 14)] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_resumed_at_any_step_sees_what_was_left(layout):
    whole = per_update(layout, 0, 14)
    for start in (1, 5, 6, 7, 13):
        assert per_update(layout, start, 14 - start) == whole[start:]


def test_an_epoch_holds_every_sample_at_most_once_and_orders_differ():
    first, second = (functools.reduce(operator.iadd, per_update((2, 4, 1), epoch * 6, 6), []) for epoch in (0, 1))
    assert {key.epoch for key in first} == {0}
    assert len({key.index for key in first}) == len(first) == 48
    assert [key.index for key in first] != [key.index for key in second]


def test_without_drop_last_the_tail_is_filled_from_the_start():
    keep = sampler(num_samples=10, drop_last=False)
    assert keep.steps_per_epoch == 2
    order = permutation(10, 3, 0).tolist()
    assert [key.index for key in keep.global_batch_at(1)] == [*order[8:], *order[:6]]
    assert sampler(num_samples=10).steps_per_epoch == 1


def test_the_order_is_a_fixed_function_of_seed_and_epoch():
    assert permutation(6, 0, 0).tolist() == permutation(6, 0, 0).tolist()
    assert sorted(permutation(100, 1, 2).tolist()) == list(range(100))
    torch.manual_seed(1)
    drawn = permutation(100, 1, 2)
    torch.manual_seed(2)
    assert torch.equal(drawn, permutation(100, 1, 2)), "it must not depend on torch's global generator"


def test_too_few_samples_are_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"5 training samples .* global batch of 8.*at most 5.*drop_last=false"):
        sampler(num_samples=5)
    assert sampler(num_samples=5, drop_last=False).steps_per_epoch == 1


def test_the_fingerprint_changes_with_seed_and_size():
    assert len({sampler().order_hash(), sampler(seed=4).order_hash(), sampler(num_samples=51).order_hash()}) == 3
    assert sampler((8, 1, 1), rank=5).order_hash() == sampler().order_hash()
