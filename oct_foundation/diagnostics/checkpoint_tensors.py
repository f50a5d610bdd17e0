"""What the rules on weights may ask of a checkpoint: its tensors by kind, its layers, and what is known beside them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from oct_foundation.diagnostics.readings import Finding, Severity

Kind = Literal["weight", "vector", "running", "counter", "buffer"]
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Adam's, of one parameter: averages of gradient and of its square after `updates` updates, not bias-corrected."""

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    updates: int


@dataclass(frozen=True, kw_only=True)
class CheckpointTensors:
    """A model's state_dict, and whatever else is known; rules that lack something say nothing.

    parameters: which tensors are trained; None: told by name and dtype. moments, initial (values before training):
    by parameter. updates: finished ones, 0 for an untrained network, None where nobody knows. absent: parameters of
    branches without a single sample since `initial`. teachers: prefixes (of a student, of its moving average).
    input_variance: mean variance per feature of what enters a matrix, by the matrix's name, where raw data does.
    norm_input_variance: variance of what enters a BatchNorm, by its prefix, [C] or one number.
    """

    tensors: Mapping[str, torch.Tensor]
    parameters: Collection[str] | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict)
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)
    updates: int | None = None
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    absent: Mapping[str, Collection[str]] = field(default_factory=dict)
    teachers: Sequence[tuple[str, str]] = ()
    input_variance: Mapping[str, float] = field(default_factory=dict)
    norm_input_variance: Mapping[str, torch.Tensor | float] = field(default_factory=dict)

    def of_kind(self, *kinds: Kind) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of these kinds, in the order of the file."""
        return ((name, x) for name, x in self.tensors.items() if kind_of(name, x, self.parameters) in kinds)

    def found(self, name: str, severity: Severity, evidence: str, remedy: str) -> Finding:
        """A finding at the update that the checkpoint was written after."""
        return Finding(name=name, severity=severity, step=self.updates or 0, evidence=evidence, remedy=remedy)

    @property
    def untrained(self) -> bool:
        """Whether it is known that no update was made: constants of the initialisation are no defects then."""
        return self.updates == 0

    def absent_names(self) -> frozenset[str]:
        """Parameters of absent branches."""
        return frozenset(name for names in self.absent.values() for name in names)


def kind_of(name: str, tensor: torch.Tensor, parameters: Collection[str] | None) -> Kind:
    """weight: a trained tensor of two axes or more; vector: bias, gain; running: statistics of a normalisation;
    counter: whole numbers; buffer: any other that is not trained.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return "counter"
    if name.endswith(("running_mean", "running_var")):
        return "running"
    if name.endswith("num_batches_tracked"):
        return "counter"
    if parameters is not None and name not in parameters:
        return "buffer"
    return "weight" if tensor.ndim >= 2 else "vector"


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """One of the network's: running_var [C]; gain, shift [C] where it has them; how many batches it has counted.

    matrix: the name of the layer before it, told by order and size alone; None where none fits. inputs: mean square of
    what enters that layer, where a normalisation right before it bounds it, else None.
    """

    prefix: str
    running_var: torch.Tensor
    gain: torch.Tensor | None
    shift: torch.Tensor | None
    batches: int | None
    matrix: str | None
    inputs: float | None


def batchnorms(checkpoint: CheckpointTensors) -> list[BatchNorm]:
    """All, in the order of the file."""
    tensors, found = checkpoint.tensors, []
    for name, variance in tensors.items():
        if not name.endswith("running_var") or variance.ndim != 1:
            continue
        prefix = name.removesuffix("running_var")
        matrix = _layer_before(tensors, prefix, len(variance))
        count = tensors.get(f"{prefix}num_batches_tracked")
        found.append(
            BatchNorm(
                prefix=prefix.removesuffix("."),
                running_var=variance,
                gain=tensors.get(f"{prefix}weight"),
                shift=tensors.get(f"{prefix}bias"),
                batches=None if count is None else int(count),
                matrix=matrix,
                inputs=None if matrix is None else mean_square_before(tensors, matrix),
            )
        )
    return found


def mean_square_before(tensors: Mapping[str, torch.Tensor], matrix: str) -> float | None:
    """Mean of gain^2 + shift^2 of the normalisation right before `matrix` in the same chain: what leaves it has that
    mean square, and less behind a ReLU. None where the last one in the file is of another chain or width.
    """
    last: str | None = None
    for name, tensor in tensors.items():
        if name == matrix:
            break
        if name.endswith("weight") and tensor.ndim == 1 and f"{name.removesuffix('weight')}bias" in tensors:
            last = name
    if last is None or len(tensors[last]) != tensors[matrix].shape[1] or not _one_chain(last, matrix):
        return None
    gain, shift = tensors[last].double(), tensors[f"{last.removesuffix('weight')}bias"].double()
    return float((gain**2 + shift**2).mean())


def row_squares(matrix: torch.Tensor) -> torch.Tensor:
    """|w|^2 of each output unit, float32 [C], without a copy of the matrix."""
    return torch.linalg.vector_norm(matrix.reshape(len(matrix), -1), dim=1, dtype=torch.float32) ** 2


def fan_in(matrix: torch.Tensor) -> int:
    """Inputs of one output unit."""
    return matrix.numel() // len(matrix)


def listed(names: Sequence[str]) -> str:
    """The first four, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _one_chain(one: str, other: str) -> bool:
    """Whether two names first differ by the number of their place, as parts of one Sequential do."""
    differing = next((pair for pair in zip(one.split("."), other.split("."), strict=False) if pair[0] != pair[1]), None)
    return differing is not None and differing[0].isdigit() and differing[1].isdigit()


def _layer_before(tensors: Mapping[str, torch.Tensor], prefix: str, width: int) -> str | None:
    """The nearest matrix above the normalisation, if it has `width` outputs."""
    above: str | None = None
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            break
        if tensor.is_floating_point() and tensor.ndim >= 2:
            above = name
    return above if above is not None and len(tensors[above]) == width else None
