"""XLA with the model split over all devices of the run: one process per host, one program for the whole slice.

What enters are whole weights and each host's share of the batch; the compiler puts all-gathers and reduce-scatters in
between (arXiv 2105.04663), so that weights, gradients and moments take 1/n of the memory of each of n devices.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import nn

from oct_foundation.runtime.base import B, step_seed
from oct_foundation.runtime.xla import XlaRuntime

AXIS = "fsdp"
PartitionSpec = tuple[str | None, ...]
# Where a piece of a tensor lies in it, as slices, and its values on the host.
Piece = tuple[list[slice], torch.Tensor]


class SpmdRuntime(XlaRuntime):
    """One process and all devices of its host; the first in its process to touch XLA."""

    def __init__(self) -> None:
        self._open()
        self._join(xr.process_index(), xr.process_count(), cores=xr.addressable_runtime_device_count())

    def _open(self) -> None:
        """From here on this process drives its devices as one, `device`; `mesh` is a row of those of all processes."""
        xr.use_spmd()
        self.num_shares = xr.global_runtime_device_count()
        self.device = torch_xla.device()
        self._state: list[torch.Tensor] = []
        self.mesh = xs.Mesh(list(range(self.num_shares)), (self.num_shares,), (AXIS,))
        xs.set_global_mesh(self.mesh)  # for the attention kernels, which no compiler can split

    def place(self, model: nn.Module) -> nn.Module:
        """Every weight split over the devices; the outputs of linear layers stay split by samples."""
        if self.world_size > 1:  # a device gets its share of what its own host has: all hosts must have the same
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)
        model = model.to(self.device)
        self._split_state([*model.parameters(), *model.buffers()])
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(self._keep_split_by_samples)
        return model

    def replicate(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, find_unused: bool = False) -> nn.Module:
        """Moments are split as their weights are."""
        self._split_moments(optimizer)
        torch_xla.sync()
        return model

    def whole(self, state: Any) -> Any:
        """Over the host: pieces are copied off the devices and meet on rank 0, without a program or device memory."""
        xm.wait_device_ops()
        return self._whole(state)

    def load(self, target: torch.Tensor, value: torch.Tensor) -> None:
        """Each device is sent its share only; the next `end_step` puts it in place."""
        sharding = xs.ShardingSpec(self.mesh, partition(target.shape, self.num_shares))
        (share,) = xm.send_cpu_data_to_device([value.to(target.dtype)], self.device, sharding)
        target.copy_(share)

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The loss is a mean over all samples of all devices: its gradients need no reduction, only their place."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._split(parameter.grad)
        optimizer.step()

    def end_step(self) -> None:
        """Runs the recorded program, with the new state where the old one was."""
        self._keep_state_split()
        super().end_step()

    def seed_step(self, seed: int, step: int) -> None:
        """The same number on all hosts: what all devices drop out is one draw of one program."""
        xm.set_rng_state(step_seed(seed, step, 0), self.device)

    def memory_bytes(self) -> int | None:
        """torch_xla does not tell it of devices that it drives as one."""
        return None

    def describe(self) -> str:
        """Hardware, devices and hosts."""
        return f"XLA on {xr.device_type()} (sharded over {self.num_shares} devices of {self.world_size} hosts)"

    def _send(self, batch: B) -> B:
        """Samples split over this host's devices: [B, ...] of this host -> [B * hosts, ...] of all."""
        return batch.map(self._send_rows)

    def _send_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Each row on one device. Rows that do not divide go to every device, where there is one host only."""
        if len(tensor) % self.cores == 0:
            sharding = xs.ShardingSpec(self.mesh, by_samples(tensor.ndim), minibatch=True)
            (sent,) = xm.send_cpu_data_to_device([tensor], self.device, sharding)
            return sent
        if self.world_size == 1:
            return tensor.to(self.device)
        raise ValueError(f"{len(tensor)} rows of a batch cannot be split over the {self.cores} devices of a host")

    def _split_moments(self, optimizer: torch.optim.Optimizer) -> None:
        self._split_state([moment for state in optimizer.state.values() for moment in state.values()])

    def _split_state(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            self._split(tensor)
        self._state += tensors

    def _keep_state_split(self) -> None:
        """A tensor that was overwritten may have lost its mark, and the compiler would choose where to put it."""
        for tensor in self._state:
            if not torch_xla._XLAC._get_xla_sharding_spec(tensor):
                self._split(tensor)

    def _split(self, tensor: torch.Tensor) -> None:
        """torch_xla's own function, less its wrapper of the tensor: a step marks a thousand of them."""
        torch_xla._XLAC._xla_mark_sharding(tensor, self.mesh.get_op_sharding(partition(tensor.shape, self.num_shares)))

    def _keep_split_by_samples(self, _layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Without it the compiler may leave weights split, and gather the larger activations for them."""
        if output.shape[0] % self.num_shares:
            return output
        return xs.mark_sharding_with_gradients(output, self.mesh, by_samples(output.ndim))

    def _whole(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._whole(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._whole(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        pieces = _pieces(value) if value.device.type == "xla" else [([], value)]
        if self.world_size > 1:
            pieces = self._collect(pieces)
        return joined(pieces, value.shape) if self.rank == 0 else None

    def _collect(self, pieces: list[Piece]) -> list[Piece]:
        """Those of all ranks on rank 0, its own elsewhere."""
        everyone: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(pieces, everyone)
        return pieces if everyone is None else [piece for part in everyone for piece in part]


def split_dimension(shape: Sequence[int], num_shares: int) -> int | None:
    """The largest dimension that divides into so many shares, the first of equals; None where none does."""
    fitting = [number for number, side in enumerate(shape) if side and side % num_shares == 0]
    return max(fitting, key=lambda number: shape[number], default=None)


def partition(shape: Sequence[int], num_shares: int) -> PartitionSpec:
    """Where torch_xla shall split a weight: the mesh's axis at `split_dimension`, None elsewhere."""
    split = split_dimension(shape, num_shares)
    return tuple(AXIS if number == split else None for number in range(len(shape)))


def by_samples(num_dimensions: int) -> PartitionSpec:
    """The partition of a batch [B, ...]."""
    return (AXIS, *[None] * (num_dimensions - 1))


def joined(pieces: Sequence[Piece], shape: torch.Size) -> torch.Tensor:
    """A host tensor of that shape out of its pieces; a piece without slices is all of it."""
    if not pieces[0][0]:
        return pieces[0][1]
    whole = torch.empty(shape, dtype=pieces[0][1].dtype)
    for place, values in pieces:
        whole[tuple(place)] = values
    return whole


def _pieces(tensor: torch.Tensor) -> list[Piece]:
    """What this process's devices hold of an XLA tensor, one piece where all hold the same."""
    if not torch_xla._XLAC._get_xla_sharding_spec(tensor):
        return [([], tensor.cpu())]
    shards = torch_xla._XLAC._get_local_shards([tensor])[0]
    places = torch_xla._XLAC._get_local_shard_replica_and_indices([tensor])[0]
    pieces = [
        ([] if place is ... else list(place), values)
        for (values, _device), (_replica, place) in zip(shards, places, strict=True)
    ]
    return pieces if pieces[0][0] else pieces[:1]
