"""Cutting a volume into patches with few bytes on TPUs: XLA volume in, XLA patches out, an order of voxels of its own.

A TPU pads the fastest axis of an array to 128 lanes. The plain cut has 16 voxels there, and moves 8 times its bytes.
"""

import torch

from oct_foundation.geometry import PatchGrid


def cut_lateral_first(volume: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """[B, C, D, H, W] -> [B, N, w * C * d * h], voxels of a patch in the order (w, C, d, h); the dtype stays.

    First whole rows of W voxels are put beside one another, then C * d * h of them are transposed at once: 64 lanes at
    the patches of the presets. The barriers keep XLA from making one transposition of both, and from casting uint8 to
    bf16 before them: 76 MB a view at [64, 384, 384] instead of 271 to 541.
    """
    sides, patch = grid.grid, grid.patch_size
    num_volumes, num_channels = volume.shape[:2]
    rows = volume.reshape(num_volumes, num_channels, sides[0], patch[0], sides[1], patch[1], -1)
    bands = rows.permute(0, 2, 4, 1, 3, 5, 6).reshape(num_volumes * sides[0] * sides[1], -1, volume.shape[-1])
    columns = _fenced(bands).transpose(1, 2)
    return _fenced(columns.reshape(num_volumes, grid.num_patches, -1))


def kernel_lateral_first(kernel: torch.Tensor) -> torch.Tensor:
    """A Conv3d kernel [E, C, d, h, w] as the matrix [E, w * C * d * h] for such patches."""
    return kernel.permute(0, 4, 1, 2, 3).flatten(1)


def _fenced(array: torch.Tensor) -> torch.Tensor:
    """The array; in an XLA program behind a barrier that nothing is moved across."""
    if array.device.type == "xla":
        import torch_xla.core.xla_model as xm

        xm.optimization_barrier_([array])
    return array
