"""Where a token sits in the patch grid [D, H, W]: sin-cos tables to add, or 3-D rotary tables to turn q and k with.

Both are fp32 constants of the grid, made once on the host. A forward gathers the rows of its tokens once and hands
them to all its blocks. The width is split into three equal even parts for D, H, W; what is left over carries none.
"""

from math import prod
from typing import Literal, NamedTuple

import torch
from torch import nn

Grid = tuple[int, ...]  # of a volume [D, H, W]; a fourth axis, where there is one, is time
RopeLayout = Literal["interleaved", "vjepa2"]

# Wavelengths from 2 pi to 2 pi * 10000 patches: the constant of arXiv 1706.03762 and of V-JEPA 2.
THETA = 10000.0


def axis_width(width: int, num_axes: int = 3) -> int:
    """Channels for each axis: the largest even number that fits `num_axes` times into `width`.

    Raises ValueError when no channel would carry a position: below 6 for three axes.
    """
    least = 2 * num_axes
    if width < least:
        raise ValueError(
            f"width {width} is too small for {num_axes}-D positions; at least {least} are needed (sine and cosine x "
            f"{num_axes})"
        )
    return 2 * (width // least)


def axis_angles(grid: Grid, width: int) -> list[torch.Tensor]:
    """Angles p * THETA^(-i / n) of every token for each axis, n = axis_width / 2: float32 [N, n] each.

    Computed in float64, since the positions of a bfloat16 table are off by up to 0.03 rad at p = 23.
    """
    num_frequencies = axis_width(width, len(grid)) // 2
    exponents = torch.arange(num_frequencies, dtype=torch.float64) / num_frequencies
    axes = (torch.arange(side, dtype=torch.float64) for side in grid)
    positions = torch.cartesian_prod(*axes).reshape(prod(grid), len(grid))  # raster order, as PatchGrid.coordinates
    return [torch.outer(positions[:, axis], THETA**-exponents).float() for axis in range(len(grid))]


def sincos_table(grid: Grid, width: int) -> torch.Tensor:
    """What to add to the tokens: float32 [N, width] as [sin d, cos d, sin h, cos h, sin w, cos w, zeros]."""
    parts = [wave(angles) for angles in axis_angles(grid, width) for wave in (torch.sin, torch.cos)]
    table = torch.cat(parts, dim=1)
    return nn.functional.pad(table, (0, width - table.shape[1]))


class Rotation(NamedTuple):
    """Factors for the tokens of one forward, float [B or 1, n, 1, 1, head_dim]; `sin` is negative in even channels."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_tables(grid: Grid, head_dim: int, layout: RopeLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of every token: two float32 [N, head_dim].

    Channels (2i, 2i + 1) form a pair. `interleaved` gives both members the same angle: a rotation (arXiv 2104.09864).
    `vjepa2` lays the angles of an axis out as [a0 .. an, a0 .. an], so a pair gets two different ones: not a
    rotation, but what V-JEPA 2 was trained with; for its weights and for parity only.
    """
    match layout:
        case "interleaved":
            angles = [a.repeat_interleave(2, dim=1) for a in axis_angles(grid, head_dim)]
        case "vjepa2":
            angles = [a.repeat(1, 2) for a in axis_angles(grid, head_dim)]
    table = torch.cat(angles, dim=1)
    table = nn.functional.pad(table, (0, head_dim - table.shape[1]))  # angle 0: left as they are
    sign = torch.tensor([-1.0, 1.0]).repeat(head_dim // 2)
    return table.cos(), table.sin() * sign


def rotate(channels: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turns the channel pairs of queries and keys: float [B, n, 2, heads, head_dim] -> the same shape.

    (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin), with the sign already in the table.
    """
    even, odd = channels.unflatten(-1, (-1, 2)).unbind(-1)
    swapped = torch.stack((odd, even), dim=-1).flatten(-2)  # on CPU a third faster than flip, forward and backward
    return torch.addcmul(channels * rotation.cos, swapped, rotation.sin)


class SinCosPositions(nn.Module):
    """The sin-cos rows of the tokens; the table is a constant, rebuilt with the model and never saved."""

    table: torch.Tensor

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.register_buffer("table", sincos_table(grid, width), persistent=False)

    def forward(self, idx: torch.Tensor | None) -> torch.Tensor:
        """idx: int64 [B, n], None for all tokens. Returns float32 [B, n, width], or [1, N, width]."""
        return select_rows(self.table, idx)


class RotaryPositions(nn.Module):
    """The rotation of the tokens for every block of a forward; constant tables, never saved."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, grid: Grid, head_dim: int, layout: RopeLayout) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of channels: the head width {head_dim} must be even")
        cos, sin = rotary_tables(grid, head_dim, layout)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, idx: torch.Tensor | None, dtype: torch.dtype) -> Rotation:
        """idx: int64 [B, n], None for all tokens; angles stay exact, only their sines and cosines become `dtype`."""
        cos, sin = (select_rows(table.to(dtype), idx)[:, :, None, None] for table in (self.cos, self.sin))
        return Rotation(cos, sin)


def select_rows(table: torch.Tensor, idx: torch.Tensor | None) -> torch.Tensor:
    """Rows of a table [N, C] at int64 [B, n]: [B, n, C]; all of them as [1, N, C] when `idx` is None."""
    if idx is None:
        return table.unsqueeze(0)
    return table.index_select(0, idx.flatten()).view(*idx.shape, -1)
