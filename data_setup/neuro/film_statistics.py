"""What the training TRs are like: all that predict-the-mean and guess-the-commonest know."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from oct_foundation.film import AUDIO, FilmShape, TargetStatistics

_COLUMNS = 4096  # at once: 756 TRs of them are 25 MB in float64


def training_statistics(targets: Mapping[str, np.ndarray], train: np.ndarray, shape: FilmShape) -> TargetStatistics:
    """targets: float [..., T, features] of video, text and fmri, an axis before T for subjects, and the codes of audio,
    int64 [T, codebooks * codes_per_tr]. train: the TRs that may be looked at. Sums are taken in float64.

    Raises ValueError for a target that does not vary over the training TRs: no share of its variance can be explained.
    """
    means, variances, stds = {}, {}, {}
    for name, values in targets.items():
        if name == AUDIO:
            continue
        mean, variance = _moments(values, train)
        if not variance.mean() > 0:
            raise ValueError(f"{name} does not vary over the {len(train)} training TRs: nothing of it can be learnt")
        means[name] = torch.from_numpy(mean.astype(np.float32))
        variances[name] = float(variance.mean())
        stds[name] = math.sqrt(variance.mean() + mean.var())  # within features, and between their means
    return TargetStatistics(
        mean=means,
        variance=variances,
        std=stds,
        unigram=torch.from_numpy(_unigram(targets[AUDIO][train], shape)),
        num_trs=len(train),
    )


def _moments(values: np.ndarray, trs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [features]: mean and variance (ddof 0) over the TRs, and over what stands before them."""
    width = values.shape[-1]
    mean, variance = np.empty(width), np.empty(width)
    for start in range(0, width, _COLUMNS):
        columns = values[..., trs, start : start + _COLUMNS].astype(np.float64)
        samples = columns.reshape(-1, columns.shape[-1])
        mean[start : start + _COLUMNS] = samples.mean(axis=0)
        variance[start : start + _COLUMNS] = samples.var(axis=0)
    return mean, variance


def _unigram(codes: np.ndarray, shape: FilmShape) -> np.ndarray:
    """float32 [codebooks, num_codes]: how frequent each code of a book is, one more than counted (Laplace), so that
    a code unseen in training costs log(n + num_codes) and not infinity.
    """
    by_book = codes.reshape(len(codes), shape.codebooks, shape.codes_per_tr)
    counts = np.stack(
        [np.bincount(by_book[:, book].ravel(), minlength=shape.num_codes) for book in range(shape.codebooks)]
    )
    return ((counts + 1) / (counts + 1).sum(axis=1, keepdims=True)).astype(np.float32)
