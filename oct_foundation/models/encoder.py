"""Volume -> features of its patches: the network that is pretrained, and, as an EMA copy, the teacher.

Masked patches are left out before the first layer: what the context encoder must not see is not even embedded.
"""

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.geometry import PatchGrid
from oct_foundation.models.attention import compute_dtype, gather_tokens
from oct_foundation.models.blocks import LAYER_NORM_EPS, build_blocks, initialize
from oct_foundation.models.positions import RopeLayout, RotaryPositions, SinCosPositions
from oct_foundation.models.remat import run_block
from oct_foundation.models.xla_attention import runs_on_tpu
from oct_foundation.models.xla_patches import cut_lateral_first, kernel_lateral_first

# 8-bit OCT voxels are standardised on the device: moving uint8 costs a quarter of moving floats. Constants, not
# statistics of a volume, so that brightness stays information; four Spectralis scans have mean .15-.27, std .21-.25.
VOXEL_MEAN = 0.2
VOXEL_STD = 0.23


def standardize(voxels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 (v / 255 - VOXEL_MEAN) / VOXEL_STD, any shape; floats count as standardised and pass."""
    if voxels.dtype != torch.uint8:
        return voxels
    return voxels.float() * (1 / (255 * VOXEL_STD)) - VOXEL_MEAN / VOXEL_STD


class PatchEmbed(nn.Module):
    """A linear map of each patch's voxels, kept as the Conv3d kernel [E, C, d, h, w] that it equals.

    Cutting first and multiplying then (instead of convolving) allows to drop patches in between.
    """

    def __init__(self, grid: PatchGrid, in_channels: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv3d(in_channels, width, kernel_size=grid.patch_size, stride=grid.patch_size)

    def patches(self, volume: torch.Tensor) -> torch.Tensor:
        """[B, C, D, H, W] -> [B, N, C * d * h * w], voxels in the order of the kernel; the dtype stays."""
        grid, patch = self.grid.grid, self.grid.patch_size
        num_volumes, num_channels = volume.shape[:2]
        cut = volume.reshape(num_volumes, num_channels, grid[0], patch[0], grid[1], patch[1], grid[2], patch[2])
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(num_volumes, self.grid.num_patches, -1)

    def forward(self, volume: torch.Tensor, idx: torch.Tensor | None) -> torch.Tensor:
        """volume: uint8 or float [B, C, D, H, W]; idx: int64 [B, n], None for all. Returns float [B, n, E]."""
        if runs_on_tpu(volume.device):
            patches, kernel = cut_lateral_first(volume, self.grid), kernel_lateral_first(self.proj.weight)
        else:
            patches, kernel = self.patches(volume), self.proj.weight.flatten(1)
        if idx is not None:
            patches = gather_tokens(patches, idx)
        return F.linear(standardize(patches), kernel, self.proj.bias)


class Encoder(nn.Module):
    """A pre-norm vision transformer over the patches of a volume, all of them or a subset."""

    def __init__(
        self,
        grid: PatchGrid,
        *,
        in_channels: int,
        width: int,
        depth: int,
        num_heads: int,
        rope_layout: RopeLayout | None,
    ) -> None:
        """rope_layout: None for sin-cos positions, added to the embedded patches."""
        super().__init__()
        self.patch_embed = PatchEmbed(grid, in_channels, width)
        self.sincos = SinCosPositions(grid.grid, width) if rope_layout is None else None
        self.rotary = None if rope_layout is None else RotaryPositions(grid.grid, width // num_heads, rope_layout)
        self.blocks = build_blocks(width, depth, num_heads)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        initialize(self, self.blocks)

    def forward(
        self, volume: torch.Tensor, idx: torch.Tensor | None = None, asked: torch.Tensor | None = None
    ) -> torch.Tensor:
        """volume: uint8 or float [B, C, D, H, W]; idx: int64 [B, n], the visible patches, None for all N.

        asked: int64 [B, m], places among the visible patches whose features somebody reads, None for all.
        Returns float [B, n or m, E].
        """
        tokens = self.patch_embed(volume, idx).float()  # the residual stream is fp32 under autocast, too
        if self.sincos is not None:
            tokens = tokens + self.sincos(idx)
        rotation = None if self.rotary is None else self.rotary(idx, compute_dtype(tokens))
        *inner, last = self.blocks
        for block in inner:
            tokens = run_block(block, tokens, rotation)
        return self.norm(run_block(last, tokens, rotation, asked))
