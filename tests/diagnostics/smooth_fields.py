"""Series with known truth: fields that are smooth in time, and a prediction that shares a known part of the truth."""

import numpy as np
from scipy.signal import lfilter

from oct_foundation.diagnostics.skill import Series


def smooth_field(num_trs: int, num_voxels: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) of variance 1, [n, V]; voxels are independent."""
    white = rng.standard_normal((num_trs + 1, num_voxels))
    return lfilter([np.sqrt(1 - rho**2)], [1.0, -rho], white[1:], axis=0, zi=rho * white[:1])[0]


def known_series(num_trs: int, *, r: float, size: float, rho: float = 0.5, seed: int = 0, **facts) -> Series:
    """Truth of variance 1 and a prediction of deviation `size` that correlates with it by r, 20 voxels."""
    rng = np.random.default_rng(seed)
    signal, error, own = (smooth_field(num_trs, 20, rho, rng) for _ in range(3))
    truth = np.sqrt(r) * signal + np.sqrt(1 - r) * error
    prediction = size * (np.sqrt(r) * signal + np.sqrt(1 - r) * own)
    known = {"truth": truth, "prediction": prediction, "mean": np.zeros(20), "variance": 1.0}
    return Series(**{**known, "complete": True, "leak_free": True, **facts})
