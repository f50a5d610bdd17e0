"""Train, gap and validation; the negative control keeps what a brain is like and loses what it looks at."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import lfilter

from data_setup.neuro.film_settings import FilmDataSettings
from data_setup.neuro.film_split import answer_trs, brain_order, split_trs


@pytest.mark.parametrize(
    ("num_trs", "share", "gap", "train", "val"),
    [(946, 0.8, 20, 757, 169), (100, 0.5, 0, 50, 50), (10, 0.8, 1, 8, 1), (10, 0.8, 0, 8, 2)],
)
def test_a_gap_lies_between_what_trains_and_what_validates(num_trs, share, gap, train, val) -> None:
    split = split_trs(num_trs, share, gap)
    assert (len(split.train), len(split.val)) == (train, val)
    assert split.train.tolist() == list(range(train))
    assert split.val.tolist() == list(range(num_trs - val, num_trs))
    assert split.val[0] - split.train[-1] == gap + 1


@pytest.mark.parametrize(
    ("num_trs", "share", "gap", "remedy"),
    [
        (10, 0.8, 20, "gap_trs to at most 1"),
        (10, 0.8, 2, "gap_trs to at most 1"),
        (10, 0.99, 0, "train_split"),
        (10, 0.01, 0, "train_split"),
    ],
)
def test_an_empty_side_is_refused_with_what_would_fit(num_trs, share, gap, remedy) -> None:
    with pytest.raises(ValueError, match=remedy):
        split_trs(num_trs, share, gap)


def test_true_alignment_is_the_order_of_time() -> None:
    split = split_trs(200, 0.6, 20)
    assert brain_order(200, split, "aligned", 1.5).tolist() == list(range(200))


def test_shuffled_moves_every_brain_far_away_and_never_across_the_split() -> None:
    split = split_trs(400, 0.7, 20)
    order = brain_order(400, split, "shuffled", 1.5)
    assert sorted(order.tolist()) == list(range(400))
    for trs in split:
        assert sorted(order[trs].tolist()) == trs.tolist()
        moved = np.abs(order[trs] - trs)
        assert moved.min() >= int(0.38 * len(trs)) >= 20
        assert (np.diff(order[trs]) == 1).sum() == len(trs) - 2  # neighbours stay neighbours but for one seam
        partners = {frozenset(pair) for pair in zip(trs.tolist(), order[trs].tolist(), strict=True)}
        assert len(partners) == len(trs), "no two TRs meet twice"
    lags = [int(order[trs[0]] - trs[0]) for trs in split]
    assert lags[0] != lags[1], "what repeats at one lag does not help at the other"


def test_shuffled_keeps_the_autocorrelation_and_loses_the_film() -> None:
    rng = np.random.default_rng(0)
    smooth = lfilter([1.0], [1.0, -0.9], rng.normal(size=(1000, 60)), axis=0)
    split = split_trs(1000, 0.8, 0)
    turned = smooth[brain_order(1000, split, "shuffled", 1.5)]
    for trs in split:
        before, after = smooth[trs], turned[trs]
        np.testing.assert_allclose(after.std(axis=0), before.std(axis=0))
        assert _mean_r(after[1:], after[:-1]) == pytest.approx(_mean_r(before[1:], before[:-1]), abs=0.02)
        assert abs(_mean_r(before, after)) < 0.15  # -.1 is what subtracting the means of 200 TRs leaves


def _mean_r(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation over time, mean over columns."""
    first, second = ((one - one.mean(axis=0)) / one.std(axis=0) for one in (first, second))
    return float((first * second).mean())


def test_a_short_film_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match=r"by 19 of the 52 validation TRs.*longer film"):
        brain_order(152, split_trs(152, 100 / 152, 0), "shuffled", 1.5)
    order = brain_order(300, split_trs(300, 0.7, 0), "shuffled", 1.5)
    assert sorted(order) == list(range(300))
    with pytest.raises(ValueError, match="below 42 TRs"):  # 30 s of a fast scanner
        brain_order(300, split_trs(300, 0.7, 0), "shuffled", 0.72)


@pytest.mark.parametrize(("tr", "trs"), [(1.5, 20), (0.72, 42), (2.0, 20), (3.0, 20)])
def test_the_gap_lasts_as_long_as_the_blood_answers(tr: float, trs: int) -> None:
    assert answer_trs(tr) == trs
    settings = FilmDataSettings(tr=tr)
    split = settings.split(1000)
    assert split.val[0] - split.train[-1] == trs + 1
    assert replace(settings, gap_trs=5).split(1000).val[0] == 805
