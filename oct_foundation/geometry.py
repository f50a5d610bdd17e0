"""Voxels <-> patch tokens: the one place where image size, patch size and token order are defined.

Shape letters used in every docstring of the project:
B volumes of a batch; D B-scans (slow axis), H depth (rows), W lateral (columns): always in this order;
N patch tokens of a volume, in raster order: token = (d * grid_h + h) * grid_w + w;
Nc context (visible) tokens, Nt target (masked) tokens; E encoder width, P predictor width.
"""

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """How a volume of `image_size` [D, H, W] voxels is cut into patches of `patch_size` [d, h, w] voxels.

    Raises ValueError when a size is not positive or an image side is no multiple of its patch side.
    """

    image_size: tuple[int, int, int]
    patch_size: tuple[int, int, int]

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            sides = tuple(int(side) for side in getattr(self, name))
            object.__setattr__(self, name, sides)
            if len(sides) != 3 or min(sides) < 1:
                raise ValueError(f"{name} must be three positive numbers [D, H, W]; found {list(sides)}")
        for axis, image, patch in zip("DHW", self.image_size, self.patch_size, strict=True):
            if image % patch:
                lower = image // patch * patch
                near = [size for size in (lower, lower + patch) if size > 0]
                raise ValueError(
                    f"image_size {list(self.image_size)} does not divide into patches {list(self.patch_size)}: "
                    f"axis {axis} has {image} voxels, patch side {patch}; nearest allowed: {near}"
                )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along [D, H, W]."""
        d, h, w = (image // patch for image, patch in zip(self.image_size, self.patch_size, strict=True))
        return d, h, w

    @property
    def num_patches(self) -> int:
        """N, the number of tokens of a volume."""
        return prod(self.grid)

    def coordinates(self) -> np.ndarray:
        """Grid position (d, h, w) of every token in raster order: int64 [N, 3]."""
        return np.indices(self.grid).reshape(3, -1).T.astype(np.int64)
