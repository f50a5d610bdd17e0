"""CPU and CUDA with weights, gradients and moments in shares, one per rank: FSDP2 (arXiv 2304.11277).

For models that do not fit one device. A unit's weights are whole while it computes, and in shares before and after.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from oct_foundation.runtime.native import NativeRuntime


class ShardedRuntime(NativeRuntime):
    """One of at least two ranks."""

    caches_casts = False  # cached, all weights of a forward would stay in bfloat16 until its end

    def place(self, model: nn.Module) -> nn.Module:
        """Shares of rank 0's weights on this rank's device, the buffers whole.

        Each child is a root of its own, since readings and validation call children by themselves.
        """
        mesh = init_device_mesh(self.kind, (self.world_size,))
        for buffer in model.buffers():
            self._take_from_rank_0(buffer)
        for unit in units(model):
            for parameter in unit.parameters():
                if not isinstance(parameter, DTensor):  # those of units inside are in shares already
                    self._take_from_rank_0(parameter)
            # Always back to shares: the optimizer and the teacher's average work on shares after any forward.
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        if isinstance(model, FSDPModule):
            # FSDP takes what is called first for the root. A child that comes before its model would bar it.
            fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
        return model

    def _take_from_rank_0(self, tensor: torch.Tensor) -> None:
        """Moves it to the device, with rank 0's values: FSDP would cut each rank's own."""
        tensor.data = tensor.data.to(self.device)
        dist.broadcast(tensor.data, src=0)

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """The model itself: its units gather weights, and scatter the mean of the gradients."""
        return model

    def whole(self, state: Any) -> Any:
        """Gathers one tensor at a time; rank 0 keeps it."""
        match state:
            case torch.Tensor():
                full = state.full_tensor() if isinstance(state, DTensor) else state.clone()
                return full.cpu() if self.rank == 0 else None
            case dict():
                return {key: self.whole(value) for key, value in state.items()}
            case list() | tuple():
                return [self.whole(value) for value in state]
            case _:
                return state

    def load(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """Every rank has the whole of `value`, and cuts its share without a word to the others."""
        if isinstance(target, DTensor):
            value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None).to_local()
            target = target.to_local()
        target.copy_(value)

    def accumulation(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients of the rank's own add up, whole, without any exchange."""
        return _without_gradient_exchange(model)

    def describe(self) -> str:
        """As a rank alone, and the number of shares."""
        return f"{super().describe()}, model in {self.world_size} shares"


def units(model: nn.Module) -> list[nn.Module]:
    """What FSDP gathers and drops as one, inner units before outer ones.

    Each element of a ModuleList (the blocks of a transformer), each child of the model, and the model itself where it
    owns parameters directly.
    """
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    chosen = {id(module) for module in (*blocks, *model.children())}
    inner_first = [module for module in reversed(list(model.modules())) if id(module) in chosen]
    found = [module for module in inner_first if _can_be_unit(module)]
    covered = {id(parameter) for unit in found for parameter in unit.parameters()}
    return found if all(id(parameter) in covered for parameter in model.parameters()) else [*found, model]


def _can_be_unit(module: nn.Module) -> bool:
    """Whether it has parameters and is called: containers are not, and FSDP works around calls."""
    is_container = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)
    return not is_container and any(True for _ in module.parameters())


@contextmanager
def _without_gradient_exchange(model: nn.Module) -> Iterator[None]:
    roots = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for root in roots:
        root.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for root in roots:
            root.set_requires_gradient_sync(True, recurse=False)
