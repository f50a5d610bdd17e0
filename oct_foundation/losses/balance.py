"""Losses of several modalities -> one: fixed weights, learned uncertainties, or equal training rates.

Losses in units of what a constant scores need no balance to begin with; this is for when one still leads. What a
modality holds of the loss and of the gradient is measured here, too: above 80 % the others are trained in name only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from oct_foundation.shares import is_split

BalanceKind = Literal["fixed", "uncertainty", "gradnorm"]


class Balanced(NamedTuple):
    """total: 0-d, to be minimised; parts: by modality, detached 0-d, what it adds to the total, penalties left out."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class FixedWeights(nn.Module):
    """The weighted sum."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.fixed = dict(weights)

    def forward(self, losses: Mapping[str, torch.Tensor]) -> Balanced:
        """Of 0-d losses, at least those that have a weight."""
        return _sum({name: weight * losses[name] for name, weight in self.fixed.items()})


class UncertaintyWeighting(nn.Module):
    """Sum of exp(-s) w L + s with a learned s per modality, its log variance (Kendall et al., arXiv 1705.07115, eq. 7
    less its halves). At rest s = ln(w L), where every modality adds 1: easy and hard ones pull alike.

    s has no weight decay, having one axis (optim/groups.py). Where weights are sharded, `forward` is what gathers it.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.fixed = dict(weights)
        self.log_variances = nn.Parameter(torch.zeros(len(self.fixed)))

    def forward(self, losses: Mapping[str, torch.Tensor]) -> Balanced:
        """Of 0-d losses, at least those that have a weight. Below 0 the total may fall: a log variance is one."""
        learned = torch.exp(-self.log_variances).unbind()
        weighted = {
            name: factor * weight * losses[name]
            for factor, (name, weight) in zip(learned, self.fixed.items(), strict=True)
        }
        found = _sum(weighted)
        return Balanced(found.total + self.log_variances.sum(), found.parts)


class GradNorm(nn.Module):
    """Weights that give each modality a gradient by how slowly it learns (Chen et al., arXiv 1711.02257).

    They rest where the norm of each w L is the mean norm x pace^alpha; pace is L over its first value, over the mean of
    that. Each `update` goes the part `rate` of the way there, in logarithms: the paper's steps along a sign still
    circle at 3.6 : 1 after 600 from norms of 25 : 1. Their sum is the number of modalities. Weights and first losses
    are buffers: checkpoints hold them, no optimizer touches them. Raises ValueError.
    """

    learned: torch.Tensor
    first: torch.Tensor

    def __init__(self, weights: Mapping[str, float], *, alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf:
            raise ValueError(f"gradnorm.alpha must be a number of at least 0; found {alpha}")
        if not 0 < rate <= 1:
            raise ValueError(f"gradnorm.rate must be above 0 and at most 1; found {rate}")
        self.fixed, self.alpha, self.rate = dict(weights), alpha, rate
        self.register_buffer("learned", torch.ones(len(self.fixed)))
        self.register_buffer("first", torch.zeros(len(self.fixed)))

    def forward(self, losses: Mapping[str, torch.Tensor]) -> Balanced:
        """Of 0-d losses, at least those that have a weight."""
        # A copy: `update` may write the buffer between this forward and its backward.
        learned = self.learned.clone().unbind()
        return _sum(
            {
                name: factor * weight * losses[name]
                for factor, (name, weight) in zip(learned, self.fixed.items(), strict=True)
            }
        )

    @torch.no_grad()
    def update(self, losses: Mapping[str, torch.Tensor], norms: Mapping[str, torch.Tensor]) -> None:
        """Moves the weights, given 0-d losses and their `gradient_norms`. Give means over ranks, or weights part ways.

        No second backward: the norm of w L is w times that of L. What is not finite, or a norm of 0, moves nothing.
        """
        loss, norm = (
            torch.stack([weight * values[name].detach().to(self.first.dtype) for name, weight in self.fixed.items()])
            for values in (losses, norms)
        )
        first = torch.where(self.first > 0, self.first, loss)
        pace = loss / first
        weighted = self.learned * norm
        target = weighted.mean() * (pace / pace.mean()) ** self.alpha
        moved = self.learned * (target / weighted) ** self.rate
        moved = moved * len(self.fixed) / moved.sum()
        sound = (torch.isfinite(moved) & (moved > 0)).all()
        self.learned.copy_(torch.where(sound, moved, self.learned))
        self.first.copy_(torch.where(sound, first, self.first))


Balance = FixedWeights | UncertaintyWeighting | GradNorm


def build_balance(kind: BalanceKind, weights: Mapping[str, float]) -> Balance:
    """weights: of the modalities that count, on top of which learned ones start at 1. Raises ValueError."""
    match kind:
        case "fixed":
            return FixedWeights(weights)
        case "uncertainty":
            return UncertaintyWeighting(weights)
        case "gradnorm":
            return GradNorm(weights)
        case _:
            raise ValueError(f"loss.balance is {kind!r}; allowed: fixed, uncertainty, gradnorm")


def shares(parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each of some 0-d parts (or norms), none below 0, over their sum; all 0 where the sum is."""
    total = torch.stack(list(parts.values())).sum()
    return {name: part / total.clamp(min=torch.finfo(total.dtype).tiny) for name, part in parts.items()}


def gradient_norms(losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By modality: the norm of its loss's gradient with respect to all of `shared` together, 0-d float32.

    shared: an activation that every loss comes through, such as the bottleneck, on any runtime; or parameters, which
    costs more and needs whole ones. Leaves every `.grad` and the graph as they were: a backward may follow. Raises
    ValueError for weights in shares, with which nothing is computed (FSDP2 gathers copies): all norms would be 0.
    """
    if any(is_split(tensor) for tensor in shared):
        raise ValueError("gradient_norms found weights in shares; give it an activation, such as the bottleneck")
    norms: dict[str, torch.Tensor] = {}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(shared), retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(loss, dtype=torch.float32)
    return norms


def _sum(weighted: Mapping[str, torch.Tensor]) -> Balanced:
    total = torch.stack(list(weighted.values())).sum()
    return Balanced(total, {name: part.detach() for name, part in weighted.items()})
