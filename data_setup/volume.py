"""A verified scan, whatever format it came in: what every reader returns and everything after it may rely on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Laterality = Literal["R", "L"]
Spacing = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Stored integers `voxels` [D, H, W] of `bits_stored` bits, `spacing_mm` [D, H, W] with None where unknown.

    laterality: R = right eye (OD), L = left (OS). volumetric: frames are parallel planes; None = the file cannot
    tell. vendor, model and protocol as the file spells them.
    """

    voxels: np.ndarray
    bits_stored: int
    spacing_mm: Spacing
    laterality: Laterality | None
    vendor: str | None
    model: str | None
    protocol: str | None
    volumetric: bool | None


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader admits: other SOP classes, scans that are no stack of planes, burned-in text; the byte budget."""

    any_sop_class: bool = False
    include_nonvolumetric: bool = False
    allow_burned_in: bool = False
    max_bytes: int = 1 << 30
