from collections.abc import Callable
from pathlib import Path

import pytest

from oct_foundation.models.remat import Remat
from pretraining.preflight.suggest import (
    MAX_BATCH,
    MAX_COMPILED,
    largest_that_fits,
    remat_that_fits,
)
from pretraining.preflight.trace import load_without_data
from pretraining.tasks.build import build_objective

USABLE = 30_000
CONFIGS = Path(__file__).parents[2] / "configs"


def linear(base: int, slope: float, refused_from: int = MAX_BATCH + 1) -> Callable[[int], int | None]:
    return lambda batch: None if batch >= refused_from else int(base + slope * batch)


@pytest.mark.parametrize(("base", "slope"), [(500, 2000), (500, 3700), (0, 14_000), (100, 29_900), (500, 230.5)])
def test_a_line_is_found_with_its_first_batch_that_does_not_fit(base: int, slope: float):
    largest, tried = largest_that_fits(linear(base, slope), USABLE, max_measured=MAX_COMPILED)
    assert largest == int((USABLE - base) / slope)
    assert largest + 1 in tried
    assert len(tried) <= MAX_COMPILED


def test_a_line_that_bends_upwards_is_found_too():
    def bent(batch: int) -> int:
        return 500 + 2000 * batch + 60 * batch**2

    largest, tried = largest_that_fits(bent, USABLE, max_measured=8)
    assert bent(largest) <= USABLE < bent(largest + 1)
    assert all(total == bent(batch) for batch, total in tried.items())


def test_a_compiler_that_refuses_is_a_batch_that_does_not_fit():
    largest, tried = largest_that_fits(linear(500, 2000, refused_from=9), USABLE, max_measured=8)
    assert largest == 8
    assert tried[9] is None


def test_nothing_fits():
    assert largest_that_fits(linear(40_000, 1), USABLE, max_measured=6) == (0, {1: 40_001})


def test_it_stops_after_so_many():
    largest, tried = largest_that_fits(lambda batch: int(1000 * batch**0.5), USABLE, max_measured=4)
    assert len(tried) == 4
    assert largest in tried


class Step:
    """A law of what a step takes: weights, and activations by the batch, the fewer the more is recomputed.

    asked: what was measured, in its order.
    """

    def __init__(self, base: int, slope: int) -> None:
        self.base, self.slope = base, slope
        self.asked: list[tuple[int, Remat]] = []

    def __call__(self, batch: int, remat: Remat) -> int:
        self.asked.append((batch, remat))
        return self.base + self.slope * batch * {"none": 10, "alternate": 6, "all": 2}[remat] // 10

    def choice(self, wanted: int) -> tuple[Remat | None, int]:
        """As `suggest` asks; `asked` then holds what was measured for remat only."""
        _, tried = largest_that_fits(lambda batch: self(batch, "none"), USABLE, max_measured=MAX_COMPILED)
        self.asked.clear()
        setting, batch, sizes = remat_that_fits(self, USABLE, wanted=wanted, tried=tried)
        assert list(sizes) == [setting for asked, setting in self.asked if asked == batch]
        return setting, batch


@pytest.mark.parametrize(
    ("slope", "wanted", "expected", "asked"),
    [
        (2000, 8, ("none", 8), []),
        (2000, 14, ("none", 14), []),  # 29,000 of 30,000: the largest
        (2000, 15, ("alternate", 15), [(15, "alternate")]),
        (2000, 25, ("all", 25), [(25, "alternate"), (25, "all")]),
        (2000, 80, (None, 80), [(80, "alternate"), (80, "all")]),
        (40_000, 1, ("alternate", 1), [(1, "alternate")]),
        (40_000, 8, ("alternate", 1), [(8, "alternate"), (8, "all"), (1, "alternate")]),
        (200_000, 1, (None, 1), [(1, "alternate"), (1, "all")]),
    ],
)
def test_the_cheapest_remat_is_chosen_and_only_what_is_needed_is_compiled(
    slope: int, wanted: int, expected: tuple[Remat | None, int], asked: list[tuple[int, Remat]]
):
    step = Step(1000, slope)
    assert step.choice(wanted) == expected
    assert step.asked == asked


def test_a_batch_that_the_search_has_left_open_is_asked_about_without_remat_first():
    step = Step(1000, 2000)
    assert remat_that_fits(step, USABLE, wanted=9, tried={4: 9_000, 12: None}) == ("none", 9, {"none": 19_000})
    assert step.asked == [(9, "none")]


def test_what_remat_costs_is_the_forward_of_trained_blocks_once_more():
    config = load_without_data(CONFIGS / "pretrain_vjepa_multi_domain.yaml", [])
    # By hand: vit_small has 12 blocks of width 384 on 3,686 of 9,216 tokens, and 4 in the predictor on all of them.
    context = 12 * (24 * 3686 * 384**2 + 4 * 3686**2 * 384)
    whole = 24 * 9216 * 384**2 + 4 * 9216**2 * 384
    step = 12 * whole + 3 * (context + 4 * whole)
    objective = build_objective(config)
    assert objective.sample_flops() == pytest.approx(step)
    assert objective.remat_flops("none") == 0
    assert objective.remat_flops("all") == pytest.approx(context + 4 * whole)
    assert objective.remat_flops("alternate") == pytest.approx((context + 4 * whole) / 2)
