"""Around a kernel in a program that XLA splits over a mesh: global tensors in, each device's own part to the kernel.

XLA cannot look into a kernel, so that it would gather its operands and run all of it on every device.
"""

from typing import Any

import torch


class ManualSharding:
    """Splits one dimension of a kernel's operands over the devices of `mesh`; None: nothing is split."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    @classmethod
    def of(cls, length: int) -> "ManualSharding":
        """For a dimension of that length: over the mesh that the run has set, if it has one and the length divides."""
        import torch_xla.distributed.spmd as xs

        mesh = xs.get_global_mesh()
        return cls(mesh if mesh is not None and mesh.size() > 1 and length % mesh.size() == 0 else None)

    def split(self, *operands: torch.Tensor) -> list[torch.Tensor]:
        """[G, ...] -> [G / devices, ...] each."""
        if self._mesh is None:
            return list(operands)
        import torch_xla.distributed.spmd as xs

        return [
            xs.enable_manual_sharding(operand, _spec(operand, 0), mesh=self._mesh).global_tensor for operand in operands
        ]

    def join(self, result: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The parts of all devices as one tensor, `dim` as long as it is on all of them together."""
        if self._mesh is None:
            return result
        import torch_xla.distributed.spmd as xs

        shape = list(result.shape)
        shape[dim] *= self._mesh.size()
        whole = xs.disable_manual_sharding(result, _spec(result, dim), torch.Size(shape), mesh=self._mesh)
        return whole.global_tensor


def _spec(tensor: torch.Tensor, dim: int) -> tuple[int | None, ...]:
    """The mesh's only axis at `dim`."""
    return tuple(0 if number == dim else None for number in range(tensor.ndim))
