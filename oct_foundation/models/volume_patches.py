"""Volumes of one modality -> tokens of the shared vision tower, and tokens -> a fixed number of image tokens.

Each modality has an embedding of its own: T1 and dMRI cut 3-D patches, rsfMRI 4-D ones [h, w, d, t]. A volume that does
not divide into patches is refused, never cut: 128 / 18 would silently lose 2 voxels of each axis.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.models.positions import sincos_table


@dataclass(frozen=True, kw_only=True)
class PatchLayout:
    """How a volume becomes tokens. shape: channels, then 3 or 4 sides; patch_size: a side of a patch for each axis.

    pool: how many neighbouring patches along each axis are averaged into one image token of the language model; None
    keeps every patch. Raises ValueError, with sizes that fit, when a side does not divide.
    """

    shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    pool: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for key in ("shape", "patch_size", "pool"):
            if (sides := getattr(self, key)) is not None:
                object.__setattr__(self, key, tuple(int(side) for side in sides))
        if len(self.shape) not in (4, 5) or min(self.shape) < 1:
            raise ValueError(f"shape must be channels and 3 or 4 sides, all positive; found {list(self.shape)}")
        _check_division("patch_size", self.patch_size, self.shape[1:], "voxels or frames")
        if self.pool is not None:
            _check_division("pool", self.pool, self.grid, "patches")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(side // patch for side, patch in zip(self.shape[1:], self.patch_size, strict=True))

    @property
    def num_patches(self) -> int:
        """N, the tokens of a volume in the vision tower."""
        return prod(self.grid)

    @property
    def num_image_tokens(self) -> int:
        """The places of a volume in the text."""
        return self.num_patches // prod(self.pool or (1,))


class VolumeEmbedding(nn.Module):
    """`proj` of each patch plus `positional_embeddings` of its place, sines at first: all that one modality owns.

    `proj` is a Conv3d for three axes, kept for its name and kernel [E, C, h, w, d]; for four axes, which no
    convolution of torch has, a Linear on the flattened patch (16 x 16 x 16 x 5 = 20,480 inputs).
    """

    proj: nn.Conv3d | nn.Linear

    def __init__(self, layout: PatchLayout, width: int) -> None:
        super().__init__()
        self.layout = layout
        channels, patch = layout.shape[0], layout.patch_size
        if len(patch) == 3:
            self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)
        else:
            self.proj = nn.Linear(channels * prod(patch), width)
        # From .02 at random, what a patch shows drowns where it lies: "which side?" was not learned in 600 updates.
        self.positional_embeddings = nn.Parameter(sincos_table(layout.grid, width).unsqueeze(0))

    def forward(self, volume: torch.Tensor | None) -> torch.Tensor:
        """volume: float [n, *shape]. Returns float32 [n, N, E]. Raises ValueError for another shape.

        None gives one token of a patch of zeros, [1, 1, E]: it reaches every parameter and costs next to nothing.
        """
        if volume is None:
            weight = self.proj.weight
            return self._embed(weight.new_zeros(1, 1, weight[0].numel())) + self.positional_embeddings[:, :1]
        if tuple(volume.shape[1:]) != self.layout.shape:
            raise ValueError(f"volumes must be {list(self.layout.shape)}; found {list(volume.shape[1:])}")
        return self._embed(cut_patches(volume, self.layout.patch_size)) + self.positional_embeddings

    def _embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Flattened patches float [n, N, C * prod(patch)] -> float32 [n, N, E]; a product equals the convolution."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias).float()


def cut_patches(volume: torch.Tensor, patch_size: tuple[int, ...]) -> torch.Tensor:
    """[n, C, *sides] -> [n, N, C * prod(patch_size)]: patches in raster order, values in the order of a kernel."""
    num_volumes, num_axes = volume.shape[0], len(patch_size)
    split = [part for side, patch in zip(volume.shape[2:], patch_size, strict=True) for part in (side // patch, patch)]
    cut = volume.reshape(*volume.shape[:2], *split)
    places = [2 + 2 * axis for axis in range(num_axes)]
    inside = [place + 1 for place in places]
    return cut.permute(0, *places, 1, *inside).reshape(num_volumes, prod(split[::2]), -1)


def pool_tokens(tokens: torch.Tensor, layout: PatchLayout) -> torch.Tensor:
    """Mean over neighbouring patches: float [n, N, E] -> [n, num_image_tokens, E], in raster order."""
    if layout.pool is None:
        return tokens
    num_volumes, _, width = tokens.shape
    grid = [part for side, pool in zip(layout.grid, layout.pool, strict=True) for part in (side // pool, pool)]
    inside = tuple(2 + 2 * axis for axis in range(len(layout.grid)))
    return tokens.reshape(num_volumes, *grid, width).mean(inside).reshape(num_volumes, -1, width)


def _check_division(key: str, parts: tuple[int, ...], sides: tuple[int, ...], unit: str) -> None:
    """Raises ValueError unless each of `parts` divides its side."""
    if len(parts) != len(sides) or min(parts) < 1:
        raise ValueError(f"{key} must be {len(sides)} positive numbers, one per axis; found {list(parts)}")
    for axis, (side, part) in enumerate(zip(sides, parts, strict=True)):
        if side % part:
            divisors = [number for number in range(1, side + 1) if side % number == 0]
            lower, upper = max(d for d in divisors if d < part), min((d for d in divisors if d > part), default=side)
            sizes = [size for size in (side // part * part, side // part * part + part) if size]
            raise ValueError(
                f"{key} {list(parts)} does not divide {list(sides)}: axis {axis} has {side} {unit}, {key} {part}; "
                f"nearest {key} that fits: {lower} or {upper}, nearest sizes for {part}: {' or '.join(map(str, sizes))}"
            )
