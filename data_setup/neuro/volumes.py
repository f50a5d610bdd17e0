"""A T1 or dMRI file of any size -> float32 [1, S, S, S]: canonical axes, cubic voxels, mean 0 and deviation 1."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from data_setup.neuro.cube import to_cube, z_scored
from data_setup.neuro.diffusion import Rule4D, read_gradients, reduced
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.nifti import SPACING_RANGE_MM, NiftiFile, check_spacing, open_nifti

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VolumeSettings:
    """size: voxels a side. spacing_mm: of the cube's voxels, null: the longest side fills the cube.

    impossible_spacing: `refuse` a file whose voxel size no scanner makes, or `warn` and take the size of its other
    axes. rule_4d: what becomes of a diffusion series, null: it is refused. flip_probability: of a left-right mirror
    in training; 0 where an answer tells left from right.
    """

    size: int = 128
    spacing_mm: float | None = None
    impossible_spacing: Literal["refuse", "warn"] = "refuse"
    rule_4d: Rule4D | None = None
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"size of a brain volume must be at least 2 voxels; found {self.size}")
        low, high = SPACING_RANGE_MM
        if self.spacing_mm is not None and not low <= self.spacing_mm <= high:
            raise ValueError(f"spacing_mm must be null or from {low:g} to {high:g} mm; found {self.spacing_mm}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be from 0 to 1; found {self.flip_probability}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (1, size, size, size)."""
        return (1, *(self.size,) * 3)


def check_volume(path: Path, settings: VolumeSettings) -> tuple[str, ...]:
    """All that can be told without a voxel; returns what was odd. Raises NeuroFileError."""
    file, notes = _checked(path, settings)
    if len(file.shape) == 4 and settings.rule_4d in ("mean_b0", "fa"):
        read_gradients(path, file.shape[3])
    return (*file.notes, *notes)


def read_volume(path: Path, settings: VolumeSettings) -> torch.Tensor:
    """float32 [1, S, S, S], axes left to right, back to front, feet to head; raises NeuroFileError."""
    file, notes = _checked(path, settings)
    for note in notes:
        log.warning("a brain volume has %s", note)
    stored = file.voxels() if len(file.shape) == 3 else reduced(file, path, settings.rule_4d)
    volume, spacing_mm = file.canonical(stored)
    cube = to_cube(volume, spacing_mm, settings.size, settings.spacing_mm)
    return normalised(cube)


def normalised(cube: np.ndarray) -> torch.Tensor:
    """[S, S, S] -> float32 [1, S, S, S] of mean 0 and deviation 1; raises NeuroFileError(constant)."""
    if float(cube.min()) == float(cube.max()):
        raise NeuroFileError(NeuroReason.CONSTANT, f"every voxel is {float(cube.min()):g}")
    return torch.from_numpy(z_scored(cube))[None]


def _checked(path: Path, settings: VolumeSettings) -> tuple[NiftiFile, tuple[str, ...]]:
    """The file with a spacing that can be worked with, and a note where it had to be guessed."""
    file = open_nifti(path)
    if len(file.shape) == 4 and settings.rule_4d is None:
        raise NeuroFileError(NeuroReason.NO_RULE_FOR_4D, f"a series of shape {file.shape}")
    if settings.impossible_spacing == "refuse":
        check_spacing(file)
        return file, ()
    low, high = SPACING_RANGE_MM
    possible = [length for length in file.spacing_mm if low <= length <= high]
    if len(possible) == 3:
        return file, ()
    guess = median(possible) if possible else 1.0
    x, y, z = (length if low <= length <= high else guess for length in file.spacing_mm)
    found = " x ".join(f"{length:g}" for length in file.spacing_mm)
    note = f"an impossible voxel size of {found} mm: taken as {x:g} x {y:g} x {z:g}"
    return replace(file, spacing_mm=(x, y, z)), (note,)
