"""One optimizer update, on any device, of any task: micro-batches in, device tensors out, no look from the host.

Order: forward and backward of each micro-batch -> mean over ranks -> norm measured -> clip -> AdamW, skipped where the
gradient was not finite -> EMA and the like -> gradients dropped. On XLA all of it is one program.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Precision, Runtime, Scalar
from pretraining.tasks.task import Objective


def train_step(
    objective: Objective,
    model: nn.Module,
    replica: nn.Module,
    optimizer: AdamW,
    runtime: Runtime,
    micro_batches: Sequence[Any],
    scalars: Mapping[str, Scalar],
    precision: Precision,
) -> dict[str, torch.Tensor]:
    """Updates `model` once; `replica` is the callable form that `runtime.replicate` made of it.

    Returns 0-d device tensors: `loss` (mean over the micro-batches of this rank), `grad_norm` (of the reduced
    gradient, before the clip), `finite`, the counts of skipped updates and what the objective adds.
    """
    num_micro_steps = len(micro_batches)
    metrics: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        last = number == num_micro_steps
        with nullcontext() if last else runtime.accumulation(replica):
            with runtime.autocast(precision):
                loss, extra = objective.loss(replica, batch)
            (loss / num_micro_steps).backward()
        for name, value in {"loss": loss, **extra}.items():
            share = value.detach() / num_micro_steps
            metrics[name] = metrics[name] + share if name in metrics else share
        if not last:
            runtime.end_micro_step(num_micro_steps)
    objective.before_update(model, runtime)
    optimizer.set_scalars(scalars["learning_rate"], scalars["weight_decay"])
    runtime.optimizer_step(optimizer)
    objective.after_update(model, scalars)
    optimizer.zero_grad(set_to_none=True)
    metrics |= optimizer.guard.metrics()
    runtime.end_step()
    return metrics


@torch.no_grad()
def validation_loss(
    objective: Objective, model: nn.Module, runtime: Runtime, batches: Sequence[Any], precision: Precision
) -> dict[str, torch.Tensor]:
    """Mean of the objective's loss and metrics over `batches`, as device tensors, the model in evaluation mode.

    The batches' shares are added up at the end, in a small program of its own: a running total would make the first
    batch's program another than the others'.
    """
    shares: list[dict[str, torch.Tensor]] = []
    was_training = model.training
    model.eval()
    for batch in runtime.batches(batches):
        with runtime.autocast(precision):
            loss, extra = objective.loss(model, batch)
        shares.append({name: value / len(batches) for name, value in {"loss": loss, **extra}.items()})
        runtime.end_step()
    model.train(was_training)
    totals: dict[str, torch.Tensor] = {}
    for share in shares:
        for name, value in share.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value
    runtime.end_step()
    return totals
