"""Random numbers as a function of what they are for: (seed, epoch, index, purpose), and of nothing else.

So a mask or an augmentation survives a resume, another number of loader workers and another number of devices.
"""

from enum import IntEnum

import numpy as np

_LIMIT = 2**32  # wider numbers are split by SeedSequence: [2^32 + 5, 7] would equal [5, 1, 7]


class Purpose(IntEnum):
    """What the numbers are for. Never 0: SeedSequence cannot tell a trailing zero from nothing."""

    MASK = 1
    VIEWS = 2
    VALIDATION_MASK = 3
    PHANTOM = 4
    POSITIONS = 5
    LIDAR_VIEW = 6


def sample_rng(seed: int, epoch: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one sample for one purpose; raises ValueError for numbers outside [0, 2^32)."""
    words = (seed, epoch, index, int(purpose))
    if not all(0 <= word < _LIMIT for word in words):
        raise ValueError(f"seed, epoch and index must be in [0, 2^32); found {words[:3]}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
