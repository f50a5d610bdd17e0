"""Rules on weights and moments: NaN and Inf, dead layers, large weights, absent branches that moved, idle teachers."""

import torch

from oct_foundation.diagnostics.checkpoint_tensors import (
    CheckpointTensors,
    fan_in,
    listed,
    mean_square_before,
    row_squares,
)
from oct_foundation.diagnostics.readings import Finding

_LARGE = 1000.0
# Exactly-zero rows: one is an embedding's padding; a quarter of a layer is none [a guess].
_DEAD_ROWS = 0.25
# A pre-activation beyond this many times its largest usual size is never reached.
_FAR = 6.0


def not_finite(checkpoint: CheckpointTensors) -> Finding | None:
    """NaN or Inf in any tensor of the model; a mask, of 0 and -Inf alone, is none."""
    broken = [name for name, tensor in checkpoint.tensors.items() if not (_finite(tensor) or _mask(tensor))]
    if not broken:
        return None
    return checkpoint.found(
        "weights_not_finite",
        "alarm",
        f"NaN or Inf in {len(broken)} of {len(checkpoint.tensors)} tensors: {listed(broken)}.",
        "This checkpoint cannot be used. Go back to the last one without; look at the learning rate and the inputs.",
    )


def moments_not_finite(checkpoint: CheckpointTensors) -> Finding | None:
    """NaN or Inf in the optimizer's state, or a second moment below 0: the next update breaks the weights."""
    broken = [
        name
        for name, moments in checkpoint.moments.items()
        if not (_finite(moments.exp_avg) and _finite(moments.exp_avg_sq)) or bool((moments.exp_avg_sq < 0).any())
    ]
    if not broken:
        return None
    return checkpoint.found(
        "optimizer_not_finite",
        "alarm",
        f"NaN, Inf or a negative second moment in the optimizer's state of {len(broken)} parameters: {listed(broken)}.",
        "Weights break at the next update. Resume from an earlier checkpoint, or start the optimizer anew.",
    )


def dead_layers(checkpoint: CheckpointTensors) -> Finding | None:
    """Outputs that no input can change: zero gains, zero rows, or biases far below what a ReLU lets through.

    Only layers (`...weight`): a positional embedding may start at 0. Nothing is said of untrained networks and of
    branches that were absent: theirs may be zeros of the initialisation.
    """
    if checkpoint.untrained:
        return None
    skipped, dead = checkpoint.absent_names(), []
    for name, tensor in checkpoint.of_kind("weight", "vector"):
        if name in skipped or not name.endswith("weight") or not _finite(tensor) or _never_touched(checkpoint, name):
            continue
        rows = row_squares(tensor) if tensor.ndim >= 2 else tensor
        share = float((rows == 0).double().mean())
        if share > _DEAD_ROWS:
            dead.append(f"{name} ({share:.0%} of its outputs have weights of exactly 0)")
        elif tensor.ndim >= 2 and (below := _below_reach(checkpoint, name, tensor)) > _DEAD_ROWS:
            dead.append(f"{name} ({below:.0%} of its outputs are below 0 whatever comes in: silent if a ReLU follows)")
    if not dead:
        return None
    return checkpoint.found(
        "dead_layer",
        "alarm",
        f"{len(dead)} layers give the same output whatever comes in: {listed(dead)}.",
        "Nothing behind them learns from their inputs. Restart from before, with a lower learning rate or warm-up; "
        "if they start at 0 by design, check that they get gradients.",
    )


def large_weights(checkpoint: CheckpointTensors) -> Finding | None:
    """A weight or bias beyond 1000."""
    grown = []
    for name, tensor in checkpoint.of_kind("weight", "vector"):
        largest = float(tensor[tensor.isfinite()].abs().max()) if bool(tensor.isfinite().any()) else 0.0
        if largest > _LARGE:
            grown.append(f"{name} (up to {largest:.3g})")
    if not grown:
        return None
    return checkpoint.found(
        "large_weights",
        "warning",
        f"Weights above {_LARGE:g} in {len(grown)} tensors: {listed(grown)}.",
        "Small errors of inputs grow by that factor. Lower the learning rate, clip gradients, or decay weights.",
    )


def absent_moved(checkpoint: CheckpointTensors) -> Finding | None:
    """Parameters of a branch without samples are not what they were: a dummy gradient, momentum or decay moved them."""
    drifts = {}
    for branch, names in checkpoint.absent.items():
        known = [name for name in names if name in checkpoint.initial and name in checkpoint.tensors]
        pairs = [(checkpoint.tensors[name].double(), checkpoint.initial[name].double()) for name in known]
        moved = sum(float(((now - then) ** 2).sum()) for now, then in pairs)
        size = sum(float((then**2).sum()) for _, then in pairs)
        if moved > 0:
            drifts[branch] = (moved / size) ** 0.5 if size else float("inf")
    if not drifts:
        return None
    named = ", ".join(f"{branch} by {drift:.2%} of its size" for branch, drift in drifts.items())
    return checkpoint.found(
        "absent_branch_moved",
        "warning",
        f"Branches without a sample moved: {named}.",
        "Use the policy `skip`, which leaves them exactly where they are.",
    )


def teacher_is_student(checkpoint: CheckpointTensors) -> Finding | None:
    """A moving average that equals, in every value, what it averages, after training."""
    if checkpoint.untrained:
        return None
    same = []
    for student, teacher in checkpoint.teachers:
        pairs = [
            (tensor, checkpoint.tensors.get(student + name.removeprefix(teacher)))
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(teacher)
        ]
        known = [(old, new) for old, new in pairs if new is not None]
        if known and all(torch.equal(old, new) for old, new in known):
            same.append(f"{teacher} and {student}")
    if not same:
        return None
    return checkpoint.found(
        "teacher_is_student",
        "warning",
        f"Teacher and student are identical: {listed(same)}.",
        "The student is its own teacher, the short way to a collapse. Raise the momentum to .99 or more; if the "
        "network is untrained, this is its start.",
    )


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _mask(tensor: torch.Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == float("-inf"))).all()) and bool((tensor == 0).any())


def _never_touched(checkpoint: CheckpointTensors, name: str) -> bool:
    """Whether the tensor is what it was at the start, with no gradient ever: not trained, rather than dead."""
    moments, initial = checkpoint.moments.get(name), checkpoint.initial.get(name)
    still = initial is None or torch.equal(checkpoint.tensors[name], initial)
    return moments is not None and still and not bool(moments.exp_avg_sq.any())


def _below_reach(checkpoint: CheckpointTensors, name: str, matrix: torch.Tensor) -> float:
    """Share of outputs whose bias is below -6 |w| |x|, |x| from the normalisation before; 0 where that is not known.

    |w x| <= |w| |x| by Cauchy-Schwarz. A bias in front of a BatchNorm is taken off again, and does not count.
    """
    prefix = name.removesuffix("weight")
    bias, square = checkpoint.tensors.get(f"{prefix}bias"), mean_square_before(checkpoint.tensors, name)
    if bias is None or bias.shape != matrix.shape[:1] or square is None or _feeds_batchnorm(checkpoint, prefix):
        return 0.0
    reach = (row_squares(matrix) * fan_in(matrix) * square) ** 0.5
    return float((bias.float() < -_FAR * reach).double().mean())


def _feeds_batchnorm(checkpoint: CheckpointTensors, prefix: str) -> bool:
    """Whether the tensors right after the layer `prefix` are those of a BatchNorm."""
    names = list(checkpoint.tensors)
    after = [name for name in names[names.index(f"{prefix}weight") :] if not name.startswith(prefix)]
    return bool(after) and f"{after[0].rpartition('.')[0]}.running_var" in checkpoint.tensors
