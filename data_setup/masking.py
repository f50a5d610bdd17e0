"""Which patches are hidden and to be predicted, which are seen: as many of each in every sample.

Fixed counts are what keeps a run on XLA at one compiled program. Peers cut the lists of a batch to its shortest, from
the front, which starves the last B-scans; here surplus patches are dropped at random, from nowhere in particular.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from oct_foundation.geometry import PatchGrid

MaskStrategy = Literal["random", "tube", "multiblock"]
ASPECT_RATIOS = (0.75, 1.5)  # height over width of a block, as in V-JEPA


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """ratio of hidden patches; block_fraction: share of the H x W plane that one block of `multiblock` covers.

    random: patches one by one. tube: (h, w) columns over all B-scans. multiblock: rectangles over all B-scans.
    On OCT a random mask leaves 94 % of hidden patches beside a visible one, blocks 19 %: the harder task.
    """

    strategy: MaskStrategy = "random"
    ratio: float = 0.6
    block_fraction: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio must lie between 0 and 1 (0.6: 60 % hidden); found {self.ratio}")
        if not 0 < self.block_fraction < 1:
            raise ValueError(f"mask.block_fraction must lie between 0 and 1; found {self.block_fraction}")


class Mask(NamedTuple):
    """mask: bool [N], True where hidden; context_idx int64 [Nc] and target_idx int64 [Nt], sorted and disjoint."""

    mask: np.ndarray
    context_idx: np.ndarray
    target_idx: np.ndarray


class MaskGenerator:
    """Draws masks over `grid`; every one hides `num_target` patches and shows `num_context`.

    Raises ValueError where the grid is too coarse for the ratio: at least one patch of each kind must remain.
    """

    def __init__(self, grid: PatchGrid, settings: MaskSettings) -> None:
        self.grid, self.settings = grid, settings
        depth, height, width = grid.grid
        columns = height * width
        match settings.strategy:
            case "random":
                self.num_target = round(settings.ratio * grid.num_patches)
                self.num_context = grid.num_patches - self.num_target
            case "tube":
                self.num_target = round(settings.ratio * columns) * depth
                self.num_context = grid.num_patches - self.num_target
            case "multiblock":
                self.num_target = round(settings.ratio * grid.num_patches)
                lowest, highest = (self._block_rows(aspect) for aspect in ASPECT_RATIOS)
                largest = max(rows * self._block_columns(rows) for rows in range(lowest, highest + 1)) * depth
                # Blocks are drawn until enough is hidden: the last one may overshoot by all of itself but one patch.
                self.num_context = grid.num_patches - self.num_target + 1 - largest
        if self.num_target < 1 or self.num_context < 1:
            raise ValueError(
                f"mask.ratio={settings.ratio} with strategy {settings.strategy} on a grid of {list(grid.grid)} patches "
                f"leaves {self.num_target} to predict and {self.num_context} to see; at least 1 of each is needed: "
                f"choose a ratio nearer to 0.5, smaller patches or a larger image"
                + (" or a smaller mask.block_fraction" if settings.strategy == "multiblock" else "")
            )

    def draw(self, rng: np.random.Generator) -> Mask:
        """One mask."""
        num_patches = self.grid.num_patches
        depth, height, width = self.grid.grid
        match self.settings.strategy:
            case "random":
                order = rng.permutation(num_patches)
                hidden, seen = order[: self.num_target], order[self.num_target :]
            case "tube":
                plane = np.zeros(height * width, bool)
                plane[rng.permutation(height * width)[: self.num_target // depth]] = True
                flat = np.tile(plane, depth)
                hidden, seen = np.flatnonzero(flat), np.flatnonzero(~flat)
            case "multiblock":
                flat = self._blocks(rng).ravel()
                # Trimmed at random. What is trimmed goes nowhere: as context it would show the inside of a block.
                hidden = rng.permutation(np.flatnonzero(flat))[: self.num_target]
                seen = rng.permutation(np.flatnonzero(~flat))[: self.num_context]
        mask = np.zeros(num_patches, bool)
        mask[hidden] = True
        return Mask(mask, np.sort(seen).astype(np.int64), np.flatnonzero(mask).astype(np.int64))

    @property
    def _block_area(self) -> float:
        """Patches of the plane that a block should cover."""
        return self.settings.block_fraction * self.grid.grid[1] * self.grid.grid[2]

    def _block_rows(self, aspect: float) -> int:
        """Height in patches of a block of the wanted share and aspect ratio."""
        return min(max(round(math.sqrt(self._block_area * aspect)), 1), self.grid.grid[1])

    def _block_columns(self, rows: int) -> int:
        """Width in patches of a block of that height."""
        return min(max(round(self._block_area / rows), 1), self.grid.grid[2])

    def _blocks(self, rng: np.random.Generator) -> np.ndarray:
        """Bool [D, H, W]: the union of blocks over all B-scans, at least `num_target` patches.

        A block that leaves the plane on one side comes in on the other. Blocks that must stay inside hide the centre
        far more often than the corners (0.91 against 0.03): here every patch has the same chance, by symmetry.
        """
        depth, height, width = self.grid.grid
        plane = np.zeros((height, width), bool)
        while plane.sum() * depth < self.num_target:
            rows = self._block_rows(rng.uniform(*ASPECT_RATIOS))
            columns = self._block_columns(rows)
            top, left = rng.integers(height), rng.integers(width)
            plane[np.ix_((top + np.arange(rows)) % height, (left + np.arange(columns)) % width)] = True
        return np.broadcast_to(plane, self.grid.grid)
