"""Which kinds an update holds, on which rank: laws that hold for every layout, and the same set for all."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_setup.neuro.modality_sampler import (
    AlignedSampler,
    Layout,
    SamplingSettings,
    build_sampler,
    evaluation_batches,
)

KINDS = ["T1"] * 30 + ["rsfMRI"] * 20 + ["dMRI"] * 10
WEIGHTS = {"T1": 2.0, "rsfMRI": 1.0, "T1+dMRI": 1.0}
UNKNOWN = SamplingSettings(mode="weighted", weights={"CT": 1})
LAYOUTS = [(1, 8, 1), (2, 4, 1), (2, 2, 2), (4, 2, 1)]  # world size, micro-batch, accumulation


def aligned(layout=(2, 4, 1), rank=0, weights=WEIGHTS, seed=0, kinds=KINDS) -> AlignedSampler:
    world_size, micro, accumulation = layout
    return AlignedSampler(kinds, weights, Layout(rank, world_size, micro, accumulation), seed=seed)


@given(st.sampled_from(LAYOUTS), st.integers(0, 5), st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_all_ranks_and_micro_steps_of_an_update_hold_the_same_kinds_in_the_same_rows(
    layout, seed: int, step: int
) -> None:
    found = set()
    for rank in range(layout[0]):
        batches = list(aligned(layout, rank, seed=seed).micro_batches(step, 1))
        assert len(batches) == layout[2]
        found |= {tuple(KINDS[key.index] for key in batch) for batch in batches}
    assert len(found) == 1
    chosen = aligned(layout, seed=seed).set_at(step)
    assert Counter(*found) == aligned(layout).rows_of(chosen)
    assert sum(aligned(layout).rows_of(chosen).values()) == layout[1]


def test_a_set_always_has_the_same_rows() -> None:
    sampler = aligned((1, 5, 1))
    rows = {
        sampler.set_at(step): tuple(KINDS[key.index] for key in sampler.global_batch_at(step)) for step in range(200)
    }
    for step in range(200, 400):
        assert tuple(KINDS[key.index] for key in sampler.global_batch_at(step)) == rows[sampler.set_at(step)]
    assert Counter(rows["T1", "dMRI"]) == {"T1": 3, "dMRI": 2}


def test_sets_come_by_weight() -> None:
    sampler = aligned()
    seen = Counter("+".join(sampler.set_at(step)) for step in range(4000))
    assert seen["T1"] / 4000 == pytest.approx(0.5, abs=0.03)  # 3.8 standard errors
    assert seen["T1+dMRI"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_without_weights_every_kind_comes_as_often_as_it_has_samples() -> None:
    sampler = aligned(weights={})
    seen = Counter(sampler.set_at(step) for step in range(4000))
    assert seen[("T1",)] / 4000 == pytest.approx(0.5, abs=0.03)
    assert seen[("dMRI",)] / 4000 == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("start", [1015, 3060])
def test_no_sample_of_a_kind_comes_twice_before_all_have_come(layout, start: int) -> None:
    streams: dict[str, list[int]] = {kind: [] for kind in set(KINDS)}
    samplers = [aligned(layout, rank) for rank in range(layout[0])]
    for step in range(start, start + 25):  # across a border of drawn blocks
        for key in samplers[0].global_batch_at(step):
            streams[KINDS[key.index]].append((key.epoch, key.index))
    for kind, keys in streams.items():
        assert len(set(keys)) == len(keys)
        assert keys == sorted(keys, key=lambda key: key[0])
        whole = [
            epoch for epoch in {key[0] for key in keys} if sum(key[0] == epoch for key in keys) == KINDS.count(kind)
        ]
        for epoch in whole:
            assert {index for found, index in keys if found == epoch} == {i for i, k in enumerate(KINDS) if k == kind}
    assert sum(map(len, streams.values())) == 25 * 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_share_an_update_without_overlap_and_resume_where_they_were(layout) -> None:
    samplers = [aligned(layout, rank) for rank in range(layout[0])]
    for step in (0, 7, 1023, 1024):
        parts = [key for sampler in samplers for batch in sampler.micro_batches(step, 1) for key in batch]
        assert sorted(parts) == sorted(samplers[0].global_batch_at(step))
    whole = list(samplers[-1].micro_batches(0, 30))
    assert list(aligned(layout, layout[0] - 1).micro_batches(11, 19)) == whole[11 * layout[2] :]


def test_the_set_does_not_depend_on_the_layout() -> None:
    sets = [[aligned(layout).set_at(step) for step in range(50)] for layout in LAYOUTS]
    assert all(found == sets[0] for found in sets)
    hashes = {aligned(rank=rank).order_hash() for rank in range(2)} | {aligned().order_hash()}
    assert len(hashes) == 1
    assert len({aligned(seed=1).order_hash(), aligned(weights={"T1": 1.0}).order_hash(), *hashes}) == 3


def test_mixed_visits_every_sample_once_and_ranks_differ() -> None:
    def sampler(rank):
        return build_sampler(KINDS, SamplingSettings(), Layout(rank, 2, 3, 1), seed=4)

    seen = [[key.index for batch in sampler(rank).micro_batches(0, 10) for key in batch] for rank in range(2)]
    assert sorted(seen[0] + seen[1]) == list(range(60)), "the original gave every rank the same samples"


def test_weighted_draws_kinds_in_their_shares() -> None:
    chosen = SamplingSettings(mode="weighted", weights={"T1": 1, "dMRI": 2})
    sampler = build_sampler(KINDS, chosen, Layout(0, 1, 6, 1), seed=0)
    seen = Counter(KINDS[key.index] for step in range(10) for key in sampler.global_batch_at(step))
    assert seen == {"T1": 20, "dMRI": 40}
    even = build_sampler(KINDS, SamplingSettings(mode="weighted"), Layout(0, 1, 6, 1), seed=0)
    assert set(Counter(KINDS[key.index] for step in range(10) for key in even.global_batch_at(step)).values()) == {20}


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: SamplingSettings(weights={"T1": 1}), "mode is mixed"),
        (lambda: SamplingSettings(mode="aligned", weights={"T1+T1": 1}), "twice"),
        (lambda: SamplingSettings(mode="aligned", weights={"T1": -1}), "0 or more"),
        (lambda: SamplingSettings(mode="aligned", weights={"T1": 0}), "all be 0"),
        (lambda: aligned(weights={"CT": 1}), r"names CT.*dMRI, rsfMRI, T1|names CT.*T1, dMRI, rsfMRI"),
        (lambda: aligned((1, 2, 1), weights={"T1+dMRI+rsfMRI": 1}), "3 kinds.*per_core_batch_size is 2"),
        (lambda: aligned(kinds=[]), "no training sample"),
        (lambda: build_sampler(KINDS, UNKNOWN, Layout(0, 1, 1, 1), seed=0), "CT"),
        (lambda: build_sampler(KINDS[:3], SamplingSettings(), Layout(0, 2, 2, 1), seed=0), "do not fill"),
    ],
)
def test_what_cannot_be_drawn_is_named(action, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        action()


@given(st.lists(st.sampled_from(["T1", "dMRI", "text"]), max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_evaluation_counts_each_sample_once_in_batches_of_one_shape(kinds, world_size: int, size: int) -> None:
    ranks = [evaluation_batches(kinds, Layout(rank, world_size, size, 1)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    counted = [index for batches in ranks for batch in batches for index in batch.indices[: batch.num_real]]
    assert sorted(counted) == list(range(len(kinds)))
    for at_once in zip(*ranks, strict=True):
        assert len({kinds[index] for batch in at_once for index in batch.indices}) == 1
        assert {len(batch.indices) for batch in at_once} == {size}
