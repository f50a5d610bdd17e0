"""Which TRs of a film train and which validate, and which TR of the brain each is shown with."""

import math
from typing import Literal, NamedTuple

import numpy as np

Alignment = Literal["aligned", "shuffled"]
_ANSWER_S, _LEAST_TRS = 30.0, 20  # the blood's answer to a picture is over by then
# Of a split's length. Half would bring each pair of TRs together twice, and chance likeness would count double: in 25
# phantoms r of a model that cannot know anything spread by .032 with .5, by .016 with .382.
_SHIFT = 0.382


class FilmSplit(NamedTuple):
    """TRs in time order, int64; `gap` TRs lie between and belong to neither."""

    train: np.ndarray
    val: np.ndarray


def answer_trs(tr: float) -> int:
    """TRs of `tr` seconds after which the blood has answered: 30 s, and 20 TRs at least."""
    return max(_LEAST_TRS, math.ceil(_ANSWER_S / tr))


def split_trs(num_trs: int, train_split: float, gap_trs: int) -> FilmSplit:
    """The first `train_split` of the film trains, then a gap, the rest validates.

    Neighbouring TRs are nearly equal, and the brain answers for 30 s: without a gap, what was trained on would be seen
    again. Raises ValueError where a side stays empty.
    """
    num_train = round(num_trs * train_split)
    first_val = num_train + gap_trs
    if num_train < 1 or first_val >= num_trs:
        most = num_trs - num_train - 1
        remedy = f"set data.gap_trs to at most {most}" if num_train and most >= 0 else "change data.train_split"
        raise ValueError(
            f"{num_trs} TRs with data.train_split={train_split} and data.gap_trs={gap_trs} give {num_train} TRs to "
            f"train and {max(0, num_trs - first_val)} to validate, at least 1 each is needed: {remedy}"
        )
    return FilmSplit(np.arange(num_train), np.arange(first_val, num_trs))


def brain_order(num_trs: int, split: FilmSplit, alignment: Alignment, tr: float) -> np.ndarray:
    """int64 [T]: the TR of the brain that stands beside each TR of the film.

    shuffled, the negative control: within each split the brain is turned by .382 of the split's length, the end coming
    round to the start. Every TR of the brain is used once and stays among its neighbours, so its mean, variance and
    autocorrelation are kept (but for one seam), and no TR crosses from one split to the other. Blocks in another order
    would break the autocorrelation at each border. The splits differ in length, thus also in shift: what repeats in
    the film at the one lag does not help at the other. Raises ValueError where a shift is below `answer_trs`.
    """
    order, least = np.arange(num_trs), answer_trs(tr)
    if alignment == "aligned":
        return order
    for name, trs in (("training", split.train), ("validation", split.val)):
        shift = int(_SHIFT * len(trs))
        if shift < least:
            raise ValueError(
                f"data.alignment=shuffled turns the brain by {shift} of the {len(trs)} {name} TRs; below "
                f"{least} TRs that leaves some of its answer in place. Use a longer film"
            )
        order[trs] = np.roll(trs, shift)
    return order
