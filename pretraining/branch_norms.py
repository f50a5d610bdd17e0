"""How large the gradient of each weight is and how far absent branches have moved, under the names of the logs.

Parameters enter after the last backward; norms leave as device tensors, so that the host waits once for all of them.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from oct_foundation.losses.inactive import Branches


class NamedWeight(NamedTuple):
    """name: without `.weight`; owner: the modality whose branch lists it, None where modalities share it."""

    name: str
    parameter: nn.Parameter
    owner: str | None


class BranchNorms:
    """Gradient norms of all trained weights of a model, biases left out.

    A weight is `grad/[T1]/<name>` where branch T1 owns it, `grad/[inactive]/<name>` in an update from which its branch
    was absent, `grad/<name>` where it is shared: ownership is by object, so a shared weight is never inactive.
    """

    def __init__(self, model: nn.Module, branches: Branches) -> None:
        owners = {id(parameter): name for name, parameters in branches.items() for parameter in parameters}
        self.weights = [
            NamedWeight(name.removesuffix(".weight"), parameter, owners.get(id(parameter)))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.rpartition(".")[2] != "bias"
        ]

    def measure(self) -> torch.Tensor:
        """float32 [weights] on their device: the norm of each gradient as it is now, 0 where there is none.

        Where weights are sharded every rank must call it: shares are added up.
        """
        zero = torch.zeros((), device=self.weights[0].parameter.device)
        gradients = [weight.parameter.grad for weight in self.weights]
        return torch.stack([zero if gradient is None else _norm(gradient) for gradient in gradients])

    def named(self, norms: Sequence[float], absent: Collection[str]) -> dict[str, float]:
        """`norms` as `measure` ordered them, by name of the log, with `ratio/active_inactive` where there are both.

        absent: modalities that no micro-batch of the update held, on no rank: what `Inactive.drop` returns. The ratio
        is that of the norms over all weights of active and of inactive branches: inf where nothing inactive moves.
        """
        found: dict[str, float] = {}
        squares: dict[bool, float] = {}
        for (name, _, owner), norm in zip(self.weights, norms, strict=True):
            if owner is None:
                found[f"grad/{name}"] = norm
                continue
            inactive = owner in absent
            found[f"grad/[{'inactive' if inactive else owner}]/{name}"] = norm
            squares[inactive] = squares.get(inactive, 0.0) + norm * norm
        if len(squares) == 2:
            active, inactive_norm = math.sqrt(squares[False]), math.sqrt(squares[True])
            found["ratio/active_inactive"] = active / inactive_norm if inactive_norm else active * math.inf
        return found


class Drift:
    """How far absent branches have moved since they went absent; keeps a copy of those, and of no others."""

    def __init__(self, branches: Branches) -> None:
        self._branches = branches
        self._left_at: dict[str, list[torch.Tensor]] = {}

    def note(self, absent: Iterable[str]) -> None:
        """Before each update, with the branches that it lacks: copies those that it is the first to lack."""
        self._left_at = {
            name: self._left_at.get(name) or [parameter.detach().clone() for parameter in self._branches[name]]
            for name in self._branches
            if name in set(absent)
        }

    def measure(self) -> dict[str, torch.Tensor]:
        """Modality -> 0-d |w - w when it went absent| / |w when it went absent|, over all parameters of the branch."""
        return {
            name: _joint_norm([now.detach() - then for now, then in zip(self._branches[name], copies, strict=True)])
            / _joint_norm(copies)
            for name, copies in self._left_at.items()
        }


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    """Of the whole tensor, also of one that ranks share: float32 0-d."""
    norm = torch.linalg.vector_norm(tensor)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()


def _joint_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of all elements together: float32 0-d."""
    return torch.linalg.vector_norm(torch.stack([_norm(tensor) for tensor in tensors]))
