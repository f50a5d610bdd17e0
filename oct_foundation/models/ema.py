"""The teacher follows the student as an exponential moving average, in fp32, inside the training step."""

import torch
from torch import nn

from oct_foundation.shares import shares


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, weight: float | torch.Tensor) -> None:
    """Teacher += weight * (student - teacher), every parameter; weight = 1 - momentum.

    weight: a number, or a 0-d tensor on the device (XLA: a number would be part of the compiled program).
    Raises ValueError when the teacher is not fp32: in bf16 the small updates round away and it never moves.
    The pairs are looked up at each call: moving a module to XLA replaces its parameters. Where both are split over
    devices alike, each device averages its shares.
    """
    teachers, students = shares(teacher.parameters()), shares(student.parameters())
    for old in teachers:
        if old.dtype != torch.float32:
            raise ValueError(f"the EMA teacher must be float32; found {old.dtype}: use autocast, not model.to()")
    if isinstance(weight, torch.Tensor) or teachers[0].device.type == "xla":  # no foreach kernels on XLA
        for old, new in zip(teachers, students, strict=True):
            old.lerp_(new, weight)
    else:
        torch._foreach_lerp_(teachers, students, weight)
