"""A short V-JEPA run on phantoms, judged by features instead of the loss.

position_ratio: validation loss over that of predicting each position's mean target; below 1 the predictor knows the
volume at hand. spread: standard deviation of mean-pooled teacher features over volumes, as a multiple of the start's.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from data_setup.prepare import prepare
from data_setup.sources import PhantomSource
from oct_foundation.losses.latent import latent_loss, normalize_targets
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.native import NativeRuntime
from pretraining.assemble import build_state
from pretraining.config import RunConfig, load_config
from pretraining.step import train_step
from pretraining.tasks.vjepa import VJEPATask
from tests.integration.conftest import SMOKE

NUM_VOLUMES, BATCH = 160, 16


@dataclass(frozen=True)
class Verdict:
    """What a run came to."""

    loss: float
    position_ratio: float
    spread: float


def learning_task(folder: Path, *, momentum: float, seed: int, steps: int) -> VJEPATask:
    """Phantoms at [16, 64, 64]; a quarter of the patients validates. `momentum` stays what it is."""
    config = load_config(
        SMOKE,
        [
            "model.image_size=[16,64,64]", "model.loss=smooth_l1", f"seed={seed}", "data.max_samples=null",
            f"data.phantom.num_volumes={NUM_VOLUMES}", "data.val_fraction=0.25",
            f"batch.global_batch_size={BATCH}", f"batch.per_core_batch_size={BATCH}", "optim.base_lr=5e-4",
            "optim.warmup_steps=50", f"optim.ema_momentum={momentum}", f"optim.final_ema_momentum={momentum}",
            f"train.max_steps={steps}", "train.epochs=1000", "train.precision=fp32",
            "data.views.affine_prob=0", "data.views.intensity_prob=0",
            "data.views.noise_prob=0", "data.views.blur_prob=0",
        ],
    )  # fmt: skip
    source = PhantomSource(folder / "dicom", config.data.phantom)
    data = replace(config.prepare, split_seed=0)  # the same volumes whatever the seed of the run
    return VJEPATask(config, prepare(source, folder, data, num_workers=2))


def learn(task: VJEPATask, config: RunConfig) -> Verdict:
    """Trains for `train.max_steps` and judges."""
    runtime = NativeRuntime("cpu")
    state = build_state(config, task, runtime)
    assert isinstance(state.model, VJEPA3D)
    held_out = list(task.val_batches(rank=0, world_size=1))
    start = pooled_spread(state.model, held_out)
    steps = config.train.max_steps
    assert steps is not None
    schedules = config.optim.schedules(steps)
    for step, batch in enumerate(task.train_batches(rank=0, world_size=1, start_step=0, num_steps=steps)):
        train_step(task, state.model, state.replica, state.optimizer, runtime, [batch], schedules.at(step), "fp32")
    return judge(state.model, held_out, start)


@torch.no_grad()
def pooled_spread(model: VJEPA3D, held_out: list) -> float:
    pooled = torch.cat([model.encode(batch.target_view).mean(dim=1) for batch in held_out])
    return pooled.std(dim=0).mean().item()


@torch.no_grad()
def judge(model: VJEPA3D, held_out: list, start: float) -> Verdict:
    """On held-out volumes with fixed masks; the mean of each position is taken over the same volumes."""
    features = torch.cat([normalize_targets(model.encode(batch.target_view)) for batch in held_out])
    mean, losses, baselines = features.mean(dim=0), [], []
    for batch in held_out:
        loss, _, targets = model(
            batch.context_view, batch.target_view, context_idx=batch.context_idx, target_idx=batch.target_idx
        )
        losses.append(loss)
        baselines.append(latent_loss(nn.functional.embedding(batch.target_idx, mean), targets, model.config.loss))
    ratio = torch.stack(losses).mean() / torch.stack(baselines).mean()
    return Verdict(torch.stack(losses).mean().item(), ratio.item(), pooled_spread(model, held_out) / start)
