"""The tensors of a checkpoint -> numbers for each, and findings: what a file alone can tell of a network's health.

Weights, running statistics and counters are judged apart: a mean of means over mixed kinds says nothing. A file has no
batch, so "dead" and "exploded" are said only where no input could make it otherwise, or the input's variance is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oct_foundation.diagnostics import batchnorm_rules, rounding_rules, weight_rules
from oct_foundation.diagnostics.checkpoint_tensors import CheckpointTensors, Kind, Moments, kind_of
from oct_foundation.diagnostics.readings import Finding

__all__ = ["CheckpointTensors", "Examination", "Moments", "TensorFacts", "examine", "moments_by_name"]

_SLICE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """One tensor; mean to high over its finite values, 0 where it has none. zeros: how many are exactly 0."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    low: float
    high: float
    nan: int
    inf: int
    zeros: int

    @property
    def abs_max(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All tensors in the order of the file, and what is wrong with them, the gravest first."""

    tensors: tuple[TensorFacts, ...]
    findings: tuple[Finding, ...]

    def of_kind(self, kind: Kind) -> list[TensorFacts]:
        """The tensors of one kind, the largest absolute value first."""
        return sorted((fact for fact in self.tensors if fact.kind == kind), key=lambda fact: -fact.abs_max)


_RULES: tuple[Callable[[CheckpointTensors], Finding | None], ...] = (
    weight_rules.not_finite,
    weight_rules.moments_not_finite,
    weight_rules.dead_layers,
    batchnorm_rules.impossible,
    batchnorm_rules.exploded,
    rounding_rules.still_at_the_start,
    rounding_rules.lost_to_rounding,
    weight_rules.absent_moved,
    weight_rules.teacher_is_student,
    batchnorm_rules.constant_inputs,
    batchnorm_rules.below_every_relu,
    batchnorm_rules.unexplained_scale,
    batchnorm_rules.grown_weights,
    weight_rules.large_weights,
    batchnorm_rules.unscaled_inputs,
    batchnorm_rules.counters_differ,
)
_GRAVITY = ("alarm", "warning", "info")


def examine(checkpoint: CheckpointTensors) -> Examination:
    """Facts of every tensor, then every rule. Nothing is moved or changed; tensors of any device and dtype."""
    facts = tuple(_facts(name, tensor, checkpoint) for name, tensor in checkpoint.tensors.items())
    findings = [finding for rule in _RULES if (finding := rule(checkpoint))]
    return Examination(tensors=facts, findings=tuple(sorted(findings, key=lambda item: _GRAVITY.index(item.severity))))


def moments_by_name(optimizer: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Moments]:
    """The moments in an optimizer's state_dict, by parameter. names: of the parameters in the order of its groups.

    A file holds no names: without them it is "optimizer state 3", good for NaN and Inf alone. Parameters without
    moments, as before a first step, are left out. Raises ValueError where there are more or fewer names.
    """
    indices = [index for group in optimizer["param_groups"] for index in group["params"]]
    if names is None:
        names = [f"optimizer state {index}" for index in indices]
    if len(indices) != len(names):
        raise ValueError(f"the optimizer has {len(indices)} parameters; found {len(names)} names")
    states = {name: optimizer["state"].get(index, {}) for index, name in zip(indices, names, strict=True)}
    return {
        name: Moments(exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"], updates=int(state["step"]))
        for name, state in states.items()
        if "exp_avg_sq" in state
    }


@torch.no_grad()
def _facts(name: str, tensor: torch.Tensor, checkpoint: CheckpointTensors) -> TensorFacts:
    """In slices of 16 M values in fp64: the largest matrix of the autoencoder has 1.77 G."""
    nan = inf = zeros = count = 0
    total = square = 0.0
    low, high = float("inf"), float("-inf")
    for part in tensor.detach().reshape(-1).split(_SLICE):
        values = part.double()
        finite = values[torch.isfinite(values)]
        nan, inf = nan + int(values.isnan().sum()), inf + int(values.isinf().sum())
        if not finite.numel():
            continue
        zeros += int((finite == 0).sum())
        count, total, square = count + finite.numel(), total + float(finite.sum()), square + float(finite @ finite)
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    mean = total / count if count else 0.0
    return TensorFacts(
        name=name,
        kind=kind_of(name, tensor, checkpoint.parameters),
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        mean=mean,
        std=max(square / count - mean**2, 0.0) ** 0.5 if count and low < high else 0.0,
        low=low if count else 0.0,
        high=high if count else 0.0,
        nan=nan,
        inf=inf,
        zeros=zeros,
    )
