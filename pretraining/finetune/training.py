"""One fine-tuning: a fresh copy of the encoder and a new head, trained on some volumes, asked about others.

Plain and small: one device, volumes read as they come, the last state is the result. Nothing is chosen by a score on
held-out volumes.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from oct_foundation.batch import TensorBatch
from oct_foundation.models.head import FineTuned, build_head
from oct_foundation.models.vjepa3d import PRESETS
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.layer_decay import layer_groups
from oct_foundation.optim.schedules import Schedule
from oct_foundation.runtime.base import Runtime
from pretraining.encoder_file import SavedEncoder
from pretraining.finetune.labelled import Labelled
from pretraining.finetune.outputs import Outputs
from pretraining.finetune.settings import FineTuneSettings


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(TensorBatch):
    """volumes: uint8 [B, 1, D, H, W]; targets: int64 or float32 [B]."""

    volumes: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A fine-tuned network on the runtime's device, what its outputs mean, and the mean loss of each epoch."""

    model: FineTuned
    outputs: Outputs
    losses: list[float]


def fine_tune(
    saved: SavedEncoder,
    data: Labelled,
    train: np.ndarray,
    settings: FineTuneSettings,
    runtime: Runtime,
    on_step: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains on the volumes `train` [K1] (numbers into `data`); equal inputs give equal weights on a CPU.

    Raises ValueError where the loss is no number any more.
    """
    outputs = Outputs.of(data.label, train)
    model = build_model(saved, outputs, settings).to(runtime.device)
    targets = outputs.targets(data.label)
    guard = GradientGuard(settings.clip_norm, runtime.device)
    depth = PRESETS[saved.config.preset].depth
    optimizer = AdamW(layer_groups(model, depth, settings.layer_decay), guard=guard)
    schedule = _schedule(settings, len(train))
    losses, step = list[float](), 0
    for epoch in range(settings.epochs):
        model.train()
        sums = torch.zeros((), device=runtime.device)
        for batch in runtime.batches(_batches(data, targets, train, settings, epoch)):
            optimizer.set_scalars(schedule(step), settings.weight_decay)
            with runtime.autocast("bf16" if runtime.kind == "cuda" else "fp32"):
                loss = outputs.loss(model(batch.volumes), batch.targets)
            loss.backward()
            runtime.optimizer_step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            sums += loss.detach() * len(batch.targets)
            step += 1
            on_step()
        losses.append(float(sums) / len(train))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss of epoch {epoch + 1} is {losses[-1]}; lower --lr (found {settings.lr:g})")
    return Trained(model=model.eval(), outputs=outputs, losses=losses)


def build_model(saved: SavedEncoder, outputs: Outputs, settings: FineTuneSettings) -> FineTuned:
    """A copy of the encoder, frozen where that is wanted, and a head whose weights follow from the seed."""
    sizes = PRESETS[saved.config.preset]
    encoder = copy.deepcopy(saved.encoder).requires_grad_(not settings.freeze)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = build_head(settings.head, width=sizes.width, num_heads=sizes.num_heads, num_outputs=outputs.num_outputs)
    return FineTuned(encoder, head)


@torch.inference_mode()
def predict(trained: Trained, data: Labelled, numbers: np.ndarray, runtime: Runtime, batch_size: int) -> np.ndarray:
    """For the volumes `numbers` [K2]: probabilities float64 [K2, classes], or values [K2]; fp32."""
    found = []
    for start in range(0, len(numbers), batch_size):
        volumes = _stack([data.volume(number) for number in numbers[start : start + batch_size]])
        found.append(trained.outputs.predictions(trained.model(volumes.to(runtime.device))))
    return np.concatenate(found)


def num_steps(settings: FineTuneSettings, num_volumes: int) -> int:
    """Updates of one fine-tuning."""
    return settings.epochs * math.ceil(num_volumes / settings.batch_size)


def _schedule(settings: FineTuneSettings, num_volumes: int) -> Schedule:
    total = num_steps(settings, num_volumes)
    warmup = min(round(settings.warmup_share * total), total)
    return Schedule(shape="cosine", peak=settings.lr, total_steps=total, warmup_steps=warmup)


def _batches(
    data: Labelled, targets: torch.Tensor, train: np.ndarray, settings: FineTuneSettings, epoch: int
) -> Iterator[LabelledBatch]:
    """The volumes in an order that follows from seed and epoch, the last batch may be smaller."""
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(train)
    for start in range(0, len(order), settings.batch_size):
        numbers = order[start : start + settings.batch_size]
        volumes = [data.volume(number) for number in numbers]
        if settings.mirror:
            volumes = [_mirrored(volume, rng) for volume in volumes]
        yield LabelledBatch(volumes=_stack(volumes), targets=targets[torch.from_numpy(numbers)])


def _mirrored(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each of D and W turned round with probability .5; never H, since retinas do not stand on their heads."""
    axes = tuple(axis for axis in (0, 2) if rng.random() < 0.5)
    return np.flip(volume, axes) if axes else volume


def _stack(volumes: list[np.ndarray]) -> torch.Tensor:
    """Volumes [D, H, W] -> uint8 [B, 1, D, H, W]."""
    return torch.from_numpy(np.stack(volumes)).unsqueeze(1)
