"""Rules on weights that do not move: still at the start though gradients came, or updates below what bf16 can store.

A bf16 number keeps 8 bits: a change below half its last bit is lost, lr x |step| < |w| x 2^-9 surely is. A weight of 1
does not move at all in 500 steps of AdamW with lr <= 1e-3 (multimodal.md, 4.5); hence norms that stay exactly 1.
"""

import torch

from oct_foundation.diagnostics.checkpoint_tensors import CheckpointTensors, Moments, listed
from oct_foundation.diagnostics.readings import Finding, Severity

# Half the last bit over the weight, at least: 2^-(bits + 1) with bf16's 8 and fp16's 11 bits.
_LOST_BELOW = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
_WARN, _FAIL = 0.01, 0.5
# Warm-up may begin at a rate of 0; after this many updates a weight with gradients has moved.
_LEAST_UPDATES = 10
_SLICE = 1 << 24


def lost_to_rounding(checkpoint: CheckpointTensors) -> Finding | None:
    """The share of bf16 and fp16 elements whose next update is lost, out of those that have one; needs moments and lr.

    Warning above 1 %, alarm above 50 %. Nothing is said where the rate is 0, or weights have fp32 masters elsewhere:
    give those instead.
    """
    if not checkpoint.learning_rate:
        return None
    lost, meant, worst = 0, 0, []
    for name, moments in checkpoint.moments.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None or tensor.dtype not in _LOST_BELOW or moments.updates < 1:
            continue
        own_lost, own_meant = _lost(checkpoint, tensor, moments)
        lost, meant = lost + own_lost, meant + own_meant
        if own_lost > _FAIL * own_meant:
            worst.append(name)
    if not meant or lost <= _WARN * meant:
        return None
    return checkpoint.found(
        "lost_to_rounding",
        "alarm" if lost > _FAIL * meant else "warning",
        f"At lr {checkpoint.learning_rate:.3g} the update of {lost / meant:.0%} of the elements in low precision is "
        f"below half their last bit{': most of ' + listed(worst) if worst else ''}.",
        "Keep master weights in fp32 and compute in bf16 under autocast.",
    )


def still_at_the_start(checkpoint: CheckpointTensors) -> Finding | None:
    """Elements at their initial value, to the bit, after ten updates or more though gradients came (second moment > 0).

    Without initial values: a gain `...weight` [C] that is all exactly 1, the start of every normalisation.
    """
    frozen, total, named = 0, 0, []
    for name, moments in checkpoint.moments.items():
        tensor = checkpoint.tensors.get(name)
        start = checkpoint.initial.get(name, _usual_start(name, tensor))
        if tensor is None or start is None or moments.updates < _LEAST_UPDATES:
            continue
        touched = moments.exp_avg_sq > 0
        still = int(((tensor == start.to(tensor.dtype)) & touched).sum())
        frozen, total = frozen + still, total + int(touched.sum())
        if still > _FAIL * int(touched.sum()):
            named.append(name)
    if not total or (frozen <= _WARN * total and not named):
        return None
    severity: Severity = "alarm" if frozen > _FAIL * total else "warning"
    return checkpoint.found(
        "still_at_the_start",
        severity,
        f"{frozen:,} of {total:,} elements that had gradients are exactly where they began"
        f"{': most of ' + listed(named) if named else ''}.",
        "Updates are lost to rounding (keep weights in fp32), the learning rate is 0, or the optimizer steps copies.",
    )


def _lost(checkpoint: CheckpointTensors, tensor: torch.Tensor, moments: Moments) -> tuple[int, int]:
    """Elements whose update is lost, and those that have one; in slices of 16 M."""
    beta1, beta2 = checkpoint.betas
    correction1, correction2 = 1 - beta1**moments.updates, 1 - beta2**moments.updates
    limit, rate = _LOST_BELOW[tensor.dtype], checkpoint.learning_rate or 0.0
    lost = meant = 0
    parts = (values.reshape(-1).split(_SLICE) for values in (tensor, moments.exp_avg, moments.exp_avg_sq))
    for weight, average, square in zip(*parts, strict=True):
        step = (average.float() / correction1) / ((square.float() / correction2).sqrt() + checkpoint.eps)
        has_one = step != 0
        meant += int(has_one.sum())
        lost += int((has_one & (rate * step.abs() < weight.float().abs() * limit)).sum())
    return lost, meant


def _usual_start(name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Ones for a gain that is all exactly 1; of anything else no start is known."""
    if tensor is None or tensor.ndim != 1 or not name.endswith("weight") or len(tensor) < 2:
        return None
    ones = torch.ones_like(tensor)
    return ones if torch.equal(tensor, ones) else None
