from collections.abc import Callable

import pytest

from pretraining.preflight.suggest import MAX_BATCH, MAX_COMPILED, largest_that_fits

USABLE = 30_000


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
