"""What the networks say of fixed held-out volumes at one step: host tensors, the only thing that is measured.

Enters from each rank for its own volumes; leaves as one observation of all of them, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """M volumes, each with one mask for the whole run, looked at in P fixed positions of the grid; float32 on the host.

    pooled, pooled_online: [M, E], mean over all tokens of the teacher's output h, and of the student's when it sees all
    tokens; pooled_foreground: [M, E], mean of h over the foreground's tokens (over all where a volume has none).
    targets: [M, P, E], u = LN(h) of the teacher; predictions: [M, P, E], without meaning where `hidden` is False.
    hidden: bool [M, P], the position was a target of that volume's mask; foreground: bool [M, P], it shows tissue.
    losses: [M], the training loss of each volume on its whole mask. views: [Mv, q, E], the student's pooled features
    of q masked views of the first Mv volumes (Mv may be 0). domains: the maker of each volume.
    Raises ValueError naming the field whose shape or type does not fit.
    """

    pooled: Tensor
    pooled_online: Tensor
    pooled_foreground: Tensor
    targets: Tensor
    predictions: Tensor
    hidden: Tensor
    foreground: Tensor
    losses: Tensor
    views: Tensor
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.targets.ndim != 3 or 0 in self.targets.shape:
            raise ValueError(f"targets must be [M, P, E] with no side 0; found {list(self.targets.shape)}")
        m, p, e = self.targets.shape
        expected = {
            "pooled": (m, e),
            "pooled_online": (m, e),
            "pooled_foreground": (m, e),
            "predictions": (m, p, e),
            "hidden": (m, p),
            "foreground": (m, p),
            "losses": (m,),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name} must be {list(shape)}, as targets are {[m, p, e]}; found {list(found)}")
        if self.views.ndim != 3 or self.views.shape[-1] != e or self.views.shape[0] > m:
            raise ValueError(f"views must be [at most {m}, q, {e}]; found {list(self.views.shape)}")
        for name in ("hidden", "foreground"):
            if getattr(self, name).dtype != torch.bool:
                raise ValueError(f"{name} must be bool; found {getattr(self, name).dtype}")
        if len(self.domains) != m:
            raise ValueError(f"domains must name the maker of each of {m} volumes; found {len(self.domains)}")

    @property
    def num_volumes(self) -> int:
        """M."""
        return self.targets.shape[0]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One observation of the parts' volumes, in order; parts without views (Mv = 0) add none, whatever their q.

        Raises ValueError for no parts, or parts that differ in P, q or E.
        """
        if not parts:
            raise ValueError("an observation is made of one part at least; found none")
        names = [field.name for field in fields(cls) if field.name not in ("views", "domains")]
        joined = {name: _join(name, [getattr(part, name) for part in parts]) for name in names}
        views = [part.views for part in parts if len(part.views)] or [parts[0].views]
        domains = tuple(domain for part in parts for domain in part.domains)
        return cls(**joined, views=_join("views", views), domains=domains)


def _join(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Along the volumes; raises ValueError where the further sides differ."""
    sides = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
    if len(sides) > 1:
        raise ValueError(f"{name} of the parts differ in shape beyond the volumes: {[list(side) for side in sides]}")
    return torch.cat(list(tensors))
