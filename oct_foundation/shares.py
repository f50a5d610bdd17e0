"""Tensors that are split over devices (DTensors of FSDP2): the share that lies here, and sums over all shares.

A tensor that is not split is its own and only share, so that one formula serves both.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def is_split(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a share of it."""
    return isinstance(tensor, DTensor)


def share(tensor: torch.Tensor) -> torch.Tensor:
    """What lies on this device, the same memory; possibly empty. Call under no_grad to write to it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shares(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The share of each."""
    return [share(tensor) for tensor in tensors]


def sum_over_shares(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Adds up `part` over the devices that hold shares of `whole`, bit-alike on all; `part` itself where none do.

    A collective: every rank calls it.
    """
    if not isinstance(whole, DTensor):
        return part
    total = part.clone()
    dist.all_reduce(total, group=whole.device_mesh.get_group())
    return total
