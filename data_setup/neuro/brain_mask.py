"""Which voxels are brain: those that vary in time, by the vote of all subjects.

One mask for all, so that voxel 7 is the same place in every brain; and thus one grid for all.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.neuro.extras import extra

MASK_TRS = 200
_QUANTILE = 0.1


def varying(voxels: np.ndarray) -> np.ndarray:
    """Mask, bool [X, Y, Z], of a series [X, Y, Z, n]: std over time above the 10th percentile of those not 0."""
    stds = np.stack([slab.std(axis=-1, dtype=np.float64) for slab in voxels])  # by slabs: a series is large in float64
    moving = stds > 0
    if not moving.any():
        return moving
    return stds > np.quantile(stds[moving], _QUANTILE)


def vote(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Mask, bool [X, Y, Z]: what at least half of the subjects, rounded up, call brain. Raises ValueError for none."""
    ballots = list(masks)
    elected = np.sum(ballots, axis=0) >= math.ceil(len(ballots) / 2)
    if not elected.any():
        raise ValueError(f"no voxel varies in half of the {len(ballots)} subjects: are the runs blank, or not aligned?")
    return elected


def save_mask(mask: np.ndarray, affine: np.ndarray, path: Path) -> Any:
    """Writes bool [X, Y, Z] as .nii.gz, whole or not at all; returns the image."""
    import nibabel

    image = nibabel.Nifti1Image(mask.astype(np.uint8), affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    nibabel.save(image, temporary)
    os.replace(temporary, path)
    return image


def masked(voxels: np.ndarray, mask: Any) -> np.ndarray:
    """float32 [T, voxels of the mask] of a series float32 [X, Y, Z, T] on the mask's grid.

    nilearn's masker would resample a series of another grid without a word: the caller has compared them.
    """
    import nibabel

    masker = extra("nilearn.maskers").NiftiMasker(mask_img=mask, standardize=None)
    series = masker.fit().transform(nibabel.Nifti1Image(voxels, mask.affine))
    return np.ascontiguousarray(series, np.float32)
