"""How late and how smeared the blood answers to what is seen: features at the film's pace -> at the brain's pace.

For float features only: a code is a category, and a mean of categories is none.
"""

import numpy as np
from scipy.stats import gamma

_LENGTH_S = 32.0
_COLUMNS = 2048  # at once: 946 TRs of them are 8 MB, where all of a film's are 1.6 GB


def glover_kernel(tr: float) -> np.ndarray:
    """float64 [taps]: the response at 0, tr, 2 tr ... 32 s, its sum 1, so that a still picture keeps its brightness.

    Formula: Glover 1999 (NeuroImage 9:416), with the figures of nilearn's glover_hrf: gamma densities of 6 s and 12 s,
    dispersion .9, undershoot .48. With a peak of 1 instead, whites would become 1.99 at a TR of 1.5 s.
    """
    times_s = np.arange(0, _LENGTH_S, tr)
    rise = gamma.pdf(times_s, 6 / 0.9, scale=0.9)
    undershoot = gamma.pdf(times_s, 12 / 0.9, scale=0.9)
    kernel = rise - 0.48 * undershoot
    return kernel / kernel.sum()


def convolved(features: np.ndarray, kernel: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """features: real [T, F]; returns `dtype` [T, F], row t from rows up to t and none after it.

    Before the film there is its first row, not 0: a film does not rise from black. The undershoot carries values out
    of their range: pictures of 0 to 1 become -.56 to 1.56 at worst.
    """
    num_trs, width = features.shape
    before = len(kernel) - 1
    result = np.empty((num_trs, width), dtype)
    for start in range(0, width, _COLUMNS):
        columns = features[:, start : start + _COLUMNS].astype(np.float32)
        padded = np.concatenate([np.repeat(columns[:1], before, axis=0), columns])
        total = np.zeros_like(columns)
        for lag, weight in enumerate(kernel):
            total += np.float32(weight) * padded[before - lag : before - lag + num_trs]
        result[:, start : start + _COLUMNS] = total
    return result
