"""Small real networks, trained a few updates and saved in our own store; records, series and logs to go with them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_setup.neuro.film_phantom import FilmPhantomSettings
from oct_foundation.checkpoints.host_state import to_host
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.film import FilmBatch, FilmShape
from oct_foundation.models.brain_config import Norm
from oct_foundation.models.film_model import FilmModel
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups
from pretraining.autoencoder_config import AutoencoderRunConfig, AutoencoderSection, FilmSection
from pretraining.film_series import FilmSeries
from pretraining.health.command import main
from pretraining.sections import BatchSection
from pretraining.tasks.autoencoder_objective import AutoencoderObjective

SHAPE = FilmShape(frames=2, height=4, width=6, codebooks=2, codes_per_tr=3, text_dim=5, voxels=11, num_codes=32)
RUN_ID = "0123456789ab"
RATE = 1e-3
State = dict[str, Any]


def film_model(seed: int = 0, norm: Norm = "batch") -> nn.Module:
    sizes = {name: size for name, size in vars(SHAPE).items() if name != "num_codes"}
    config = AutoencoderRunConfig(
        seed=seed,
        data=FilmSection(phantom=FilmPhantomSettings(**sizes, num_codes=SHAPE.num_codes)),
        model=AutoencoderSection(preset="tiny", norm=norm),
        batch=BatchSection(global_batch_size=4, per_core_batch_size=4),
    )
    return AutoencoderObjective(config).build_model()


def encoder_model(seed: int = 0) -> VJEPA3D:
    torch.manual_seed(seed)
    return VJEPA3D(VJEPA3DConfig(preset="vit_tiny", image_size=(8, 32, 32)))


def film_loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    """Of 12 TRs in which everything follows from three hidden numbers."""
    hidden = torch.randn(12, 3, generator=generator)
    mixed = hidden @ torch.ones(3, SHAPE.voxels)
    video = torch.sigmoid(hidden @ torch.ones(3, SHAPE.video_dim))
    batch = FilmBatch(
        video=video,
        video_target=video[:, : SHAPE.frame_dim],
        audio=torch.randint(SHAPE.num_codes, (12, SHAPE.audio_dim), generator=generator),
        text=hidden @ torch.ones(3, SHAPE.text_dim),
        fmri=mixed / mixed.std(),
    )
    total, _ = model(batch.video, batch.video_target, batch.audio, batch.text, batch.fmri)
    return total


def encoder_loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
    assert isinstance(model, VJEPA3D)
    volume = torch.randint(256, (2, 1, 8, 32, 32), generator=generator, dtype=torch.uint8)
    order = torch.randperm(8, generator=generator)
    context, target = (part.sort().values.expand(2, -1) for part in (order[:4], order[4:]))
    loss, _, _ = model(volume, volume, context_idx=context, target_idx=target)
    return loss


def trained(model: nn.Module, updates: int, *, seed: int = 0) -> State:
    """The state that a run saves after so many updates of our optimizer."""
    optimizer = AdamW(parameter_groups(model), guard=GradientGuard(1.0))
    loss_of = film_loss if isinstance(model, FilmModel) else encoder_loss
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        loss_of(model, generator).backward()
        optimizer.set_scalars(RATE, 0.01)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, VJEPA3D):
            follow(model)
    zero = torch.zeros(())
    return {
        "version": 1,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "skipped": {"total": zero, "in_a_row": zero},
        "step": updates,
        "samples_seen": 12 * updates,
        "best_val_loss": float("inf"),
    }


@torch.no_grad()
def follow(model: VJEPA3D) -> None:
    """The teacher takes a step after its student."""
    students = dict(model.context_encoder.named_parameters())
    for name, average in model.target_encoder.named_parameters():
        average.lerp_(students[name], 0.01)


def save(folder: Path, state: State, metrics: Mapping[str, float] | None = None, **facts: Any) -> Path:
    """A committed checkpoint of the state's step; returns its folder."""
    manager = CheckpointManager(
        LocalStore(folder / "checkpoints"), CheckpointSettings(keep_last=9), run_id=RUN_ID, attempt="20261122T000000-a"
    )
    manager.save(
        state["step"],
        to_host(state),
        {"train/learning_rate": RATE, **(metrics or {})},
        {"config": {"task": "autoencoder", "optim": {"base_lr": RATE}}, "total_steps": 100, "git_sha": "abc", **facts},
    )
    return next((folder / "checkpoints").glob(f"step-{state['step']:08d}-*"))


def series(step: int, *, noise: float, num_trs: int = 400, seed: int = 0) -> FilmSeries:
    """Held-out TRs of white signals; the prediction is the truth behind noise of so many deviations."""
    rng = np.random.default_rng(seed)
    sizes = {"video": 6, "text": 5, "fmri": 11}
    truth = {name: rng.standard_normal((num_trs, size)) for name, size in sizes.items()}
    share = 1 / (1 + noise**2)
    said = {name: share * (x + noise * rng.standard_normal(x.shape)) for name, x in truth.items()}
    unigram = 3 + 0.1 * rng.standard_normal(num_trs)
    costs = {"unigram": unigram, "model": unigram - share, "shifted": unigram + 0.01 * rng.standard_normal(num_trs)}
    return FilmSeries(
        step=step,
        trs=np.arange(num_trs),
        runs=np.zeros(num_trs, int),
        truth=truth,
        prediction=said,
        costs=costs,
        mean={name: np.zeros(size) for name, size in sizes.items()},
        variance=dict.fromkeys(sizes, 1.0),
        baselines={},
        beside={},
        ceiling=None,
        complete=True,
        leak_free=True,
    )


def film_rows(last: int = 100, score: Callable[[int], float] = lambda step: step / 200) -> list[dict[str, Any]]:
    """A run of 10 updates an epoch, read once an epoch; losses fall with the score."""
    found: list[dict[str, Any]] = []
    for step in range(0, last + 1, 10):
        if step:
            share = {f"share/{name}": 0.25 for name in ("video", "audio", "text", "fmri")}
            values = {"loss": 4 * (1 - score(step)), "learning_rate": RATE, "epoch": step / 10}
            values |= {"seconds_per_step": 1.0, "skipped_updates": 0.0, **share}
            found.append({"step": step, "time": 1.7952e9 + step, **{f"train/{k}": v for k, v in values.items()}})
        read = {f"{what}/{name}": v for name in ("video", "audio", "text", "fmri") for what, v in _reading(score(step))}
        read |= {"score": score(step), "val_loss": 4 * (1 - score(step))}
        found.append({"step": step, "time": 1.7952e9 + step, **{f"diag/{k}": v for k, v in read.items()}})
    return found


def _reading(score: float) -> list[tuple[str, float]]:
    return [
        ("val_loss", 1 - score),
        ("verdict", 1.0),
        ("skill", score),
        ("grad_share", 0.25),
        ("fvu", 1 - score),
        ("fvu/training mean", 1.0),
    ]


def write_run(folder: Path, rows: list[dict[str, Any]], *, task: str = "autoencoder", finished: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "task": task,
        "name": "toy",
        "loss": {"mode": "normalized", "fmri_loss": "mse"},
        "optim": {"base_lr": RATE},
        "evaluation": {"early_stopping_patience": 4},
        "checkpoint": {"best_metric": "diag/score", "best_mode": "max"},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "run_id").write_text(f"{RUN_ID}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        steps = int(rows[-1]["step"])
        summary = {"outcome": "completed", "steps": steps, "total_steps": steps, "git_sha": "abc"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def sound_run(folder: Path) -> Path:
    """A finished autoencoder run that has learned: record, series, a real checkpoint of its last step."""
    write_run(folder, film_rows())
    for name in ("last.npz", "best.npz"):
        series(100, noise=1.0).save(folder / "evaluation" / name)
    model = film_model()
    save(folder, trained(model, 30) | {"step": 100})
    return folder


def health(target: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and health.json of `octfm health`."""
    code = main([str(target), "--out", str(out), *options])
    path = out / "health.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def names_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Findings by name with their severity; infos are no accusations."""
    return {one["name"]: one["severity"] for one in found["findings"] if one["severity"] != "info"}
