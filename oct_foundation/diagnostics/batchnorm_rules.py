"""Rules on BatchNorm statistics: what inputs and weights can make of them, and what only a defect can.

A unit's variance is at most |w|^2 x inputs x their mean square (Cauchy-Schwarz). So a large running_var is the weights'
doing, the inputs', or nobody's: 274,432 in a first layer is what raw codes of 0 to 1023 give, and no explosion.
"""

from statistics import median

import torch

from oct_foundation.diagnostics.checkpoint_tensors import (
    BatchNorm,
    CheckpointTensors,
    batchnorms,
    fan_in,
    listed,
    row_squares,
)
from oct_foundation.diagnostics.readings import Finding

# Running statistics lag behind by about ten batches, dropout adds up to its factor.
_SLACK = 10.0
_SIBLINGS = 1e4
# Below it a unit's output is constant: BatchNorm itself adds 1e-5.
_CONSTANT = 1e-8
_MOST_UNITS = 0.5
# Inputs of this variance per feature, and more, were not scaled.
_UNSCALED = 100.0
_NEVER = 6.0
# |w|^2 of a unit: 1/3 by default in torch, 2 by He; this is twenty times as long [a guess].
_GROWN = 400.0


def impossible(checkpoint: CheckpointTensors) -> Finding | None:
    """A variance below 0."""
    broken = [norm.prefix for norm in batchnorms(checkpoint) if bool((norm.running_var < 0).any())]
    if not broken:
        return None
    return checkpoint.found(
        "batchnorm_impossible",
        "alarm",
        f"running_var is below 0 in {listed(broken)}: no batch gives that.",
        "The file or the reduction that averages statistics over ranks is at fault; the layer's outputs are NaN.",
    )


def exploded(checkpoint: CheckpointTensors) -> Finding | None:
    """running_var beyond what the inputs and the weights can give, or far from the variance that was measured."""
    norms = batchnorms(checkpoint)
    told = [text for norm in norms if (text := _beyond(checkpoint, norm, norms))]
    if not told:
        return None
    return checkpoint.found(
        "batchnorm_exploded",
        "alarm",
        f"Running variances that inputs and weights do not explain: {listed(told)}.",
        "In evaluation this layer divides by them and its outputs are wrong. Estimate the statistics anew on training "
        "batches, and look for a batch with extreme values.",
    )


def unscaled_inputs(checkpoint: CheckpointTensors) -> Finding | None:
    """First layers whose running_var is that of raw inputs, whose variance is given: no defect of the weights."""
    told = [
        f"{norm.prefix} (median {_typical(norm):,.0f}; inputs of variance {given:,.3g}, |w|^2 of a unit "
        f"{_row_square(checkpoint, norm):.2g})"
        for norm in batchnorms(checkpoint)
        if (given := checkpoint.input_variance.get(norm.matrix or "", 0.0)) > _UNSCALED
        and _worst(checkpoint, norm, given) <= _SLACK
    ]
    if not told:
        return None
    return checkpoint.found(
        "unscaled_inputs",
        "info",
        f"Running variances are the scale of the inputs, not of weights: {listed(told)}.",
        "Scale inputs to a deviation near 1, and embed codes: they are categories, and as bf16 inputs lose low bits.",
    )


def unexplained_scale(checkpoint: CheckpointTensors) -> Finding | None:
    """First layers with a large running_var and weights of usual size, the variance of whose inputs nobody gave."""
    told = [
        f"{norm.prefix} (median {_typical(norm):,.0f}: a variance of {least:,.3g} per input or more)"
        for norm in batchnorms(checkpoint)
        if norm.inputs is None
        and norm.matrix not in checkpoint.input_variance
        and norm.prefix not in checkpoint.norm_input_variance
        and (least := _least_input_variance(checkpoint, norm)) > _UNSCALED
    ]
    if not told:
        return None
    return checkpoint.found(
        "unexplained_scale",
        "warning",
        f"Large running variances that the weights do not explain: {listed(told)}.",
        "Either inputs are not scaled, or the statistics exploded; a file alone cannot say which. Give the variance of "
        "the inputs, or look at them.",
    )


def grown_weights(checkpoint: CheckpointTensors) -> Finding | None:
    """Matrices before a BatchNorm whose rows are far longer than any usual initialisation makes them."""
    told = [
        f"{norm.matrix} (|w|^2 {square:,.3g} per unit)"
        for norm in batchnorms(checkpoint)
        if norm.matrix is not None and (square := _row_square(checkpoint, norm)) > _GROWN
    ]
    if not told:
        return None
    return checkpoint.found(
        "grown_weights",
        "warning",
        f"Weights before a BatchNorm have grown, with the running variances behind them: {listed(told)}; usual "
        "initialisations give 1/3 to 2.",
        "The BatchNorm hides their size, and the learning rate acts ever less on them. Decay them, or lower the rate.",
    )


def constant_inputs(checkpoint: CheckpointTensors) -> Finding | None:
    """running_var near 0 in most units after 200 batches: what enters the layer is the same for all samples."""
    told = [
        norm.prefix
        for norm in batchnorms(checkpoint)
        if (norm.batches is None or norm.batches >= 200)
        and float((norm.running_var.abs() < _CONSTANT).double().mean()) > _MOST_UNITS
    ]
    if not told:
        return None
    return checkpoint.found(
        "constant_activations",
        "alarm",
        f"Most units before {listed(told)} give one value for all samples: their running_var is below {_CONSTANT:g}.",
        "A layer before is dead, or its input is constant. Look at the first layer in the order of the network.",
    )


def below_every_relu(checkpoint: CheckpointTensors) -> Finding | None:
    """Most units with shift + 6 |gain| < 0: normalised values do not get above 0, a ReLU behind is silent."""
    told = []
    for norm in batchnorms(checkpoint):
        if norm.gain is None or norm.shift is None or bool((norm.gain == 0).all()):
            continue
        share = float((norm.shift.double() + _NEVER * norm.gain.double().abs() < 0).double().mean())
        if share > _MOST_UNITS:
            told.append(f"{norm.prefix} ({share:.0%} of its units)")
    if not told:
        return None
    return checkpoint.found(
        "below_every_relu",
        "warning",
        f"Units that never get above 0, and are dead if a ReLU follows: {listed(told)}.",
        "Lower the learning rate or warm up longer; units that are silent for all inputs get no gradient.",
    )


def counters_differ(checkpoint: CheckpointTensors) -> Finding | None:
    """BatchNorms that have counted different numbers of batches; a layer run twice under checkpointing counts twice."""
    counts = {norm.prefix: norm.batches for norm in batchnorms(checkpoint) if norm.batches is not None}
    if len(set(counts.values())) < 2:
        return None
    groups = {
        count: [name for name, other in counts.items() if other == count] for count in sorted(set(counts.values()))
    }
    named = "; ".join(f"{count:,}: {listed(names)}" for count, names in list(groups.items())[:3])
    return checkpoint.found(
        "counters_differ",
        "info",
        f"BatchNorms have counted different numbers of batches: {named}.",
        "Twice as many come from blocks that are computed again under gradient checkpointing, fewer from branches that "
        "some batches lack. Statistics of the former are updated twice per batch.",
    )


def _beyond(checkpoint: CheckpointTensors, norm: BatchNorm, norms: list[BatchNorm]) -> str | None:
    """The first measure that can judge this layer, if it finds it beyond."""
    measured = checkpoint.norm_input_variance.get(norm.prefix)
    typical = _typical(norm)
    if measured is not None:
        true = float(torch.as_tensor(measured, dtype=torch.float64).median())
        ratio = typical / true if true > 0 else float("inf")
        return f"{norm.prefix} ({ratio:.3g} times its measured {true:.3g})" if not 1 / _SLACK < ratio < _SLACK else None
    square = norm.inputs if norm.inputs is not None else checkpoint.input_variance.get(norm.matrix or "")
    if square is not None:
        worst = _worst(checkpoint, norm, square)
        return f"{norm.prefix} ({worst:.3g} times what its weights can make of its inputs)" if worst > _SLACK else None
    if norm.matrix is not None:
        return None  # raw inputs of unknown scale: input_scale speaks of them
    others = [_typical(other) for other in norms if other is not norm]
    if not others or not typical > _SIBLINGS * median(others):
        return None
    return f"{norm.prefix} ({typical:.3g}, its siblings have {median(others):.3g})"


def _worst(checkpoint: CheckpointTensors, norm: BatchNorm, mean_square: float) -> float:
    """The largest running_var over the most that the unit's weights can make of inputs of this mean square."""
    assert norm.matrix is not None
    matrix = checkpoint.tensors[norm.matrix]
    most = row_squares(matrix).double() * fan_in(matrix) * mean_square
    return float((norm.running_var.double() / most.clamp(min=torch.finfo(torch.float32).tiny)).max())


def _least_input_variance(checkpoint: CheckpointTensors, norm: BatchNorm) -> float:
    """What the inputs' mean variance per feature must be at least, median over units; 0 where none can be told."""
    if norm.matrix is None:
        return 0.0
    matrix = checkpoint.tensors[norm.matrix]
    most = row_squares(matrix).double() * fan_in(matrix)
    alive = most > 0
    return float((norm.running_var.double()[alive] / most[alive]).median()) if bool(alive.any()) else 0.0


def _typical(norm: BatchNorm) -> float:
    """Median running_var."""
    return float(norm.running_var.double().median())


def _row_square(checkpoint: CheckpointTensors, norm: BatchNorm) -> float:
    """Median |w|^2 of the units of the matrix before it, which must be there."""
    assert norm.matrix is not None
    return float(row_squares(checkpoint.tensors[norm.matrix]).median())
