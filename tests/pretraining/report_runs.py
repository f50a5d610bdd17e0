"""Run folders as training leaves them, with made-up numbers: alive, dead, crashed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

TOTAL = 600
SECRET = "hunter2-hunter2"
HOSTILE = '<script>alert("1")</script> & Söhne $x_'
CONFIG = f"""
name: toy_study
seed: 3
model: {{preset: vit_tiny, image_size: [16, 128, 128], patch_size: [4, 16, 16], loss: smooth_l1}}
mask: {{strategy: random, ratio: 0.6}}
optim: {{base_lr: 0.001, warmup_steps: 50, clip_norm: 1.0, ema_momentum: 0.996, final_ema_momentum: 1.0}}
train: {{max_steps: {TOTAL}, precision: bf16}}
wandb: {{api_key: {SECRET}}}
"""
SUMMARY: dict[str, Any] = {
    "outcome": "completed",
    "steps": TOTAL,
    "total_steps": TOTAL,
    "volumes": {"train": 800, "accepted": 1000},
    "bad_files": {"pixel_data_truncated": 4, "of_a_later_version": 1},
    "wall_seconds": {"step": 70.0, "data_wait": 20.0, "reading_tea_leaves": 10.0, "total": 100.0},
    "versions": {"python": "3.11.7"},
    "git_sha": "31aa5e1d0a34202fd440fa82a73815ff21bdecf9",
}


def reading(step: int, *, dead: bool) -> dict[str, float]:
    """The shape of the toy runs of jepa.md, section 4: both start at error ratio 8 and fall, one to .06, one to 1.1."""
    early = math.exp(-5 * step / TOTAL)
    shrunk = (0.2 + 0.8 * early) if dead else 1.1 - 0.1 * early
    baseline = 0.06 * early + 0.002 if dead else 0.06
    ratio = 8 * early**2 + (1.1 if dead else 0.06)
    return {
        "num_volumes": 32.0,
        "loss": baseline * ratio,
        "loss_pos": baseline,
        "loss_global": 2 * baseline,
        "loss_zero": 0.3,
        "pos_ratio": ratio,
        "ev_pos": 1 - ratio,
        "centred_cos": (1 - early) * (-0.02 if dead else 0.9),
        "pooled_std": 0.1 * shrunk,
        "pooled_std_online": 0.1 * shrunk,
        "token_cosine": 0.7 + (1 - early) * (0.29 if dead else 0.15),
        "foreground_pos_ratio": 1.2 * ratio,
        "rankme_pooled": 8 + 29 * early,
        "lidar": 3 + 19 * early,
        "scan_r2": 0.3 + (1 - early) * (-0.25 if dead else 0.3),
        "ema_gap/blocks": 0.01,
        "update_ratio/encoder": 0.001 * (1 + 0.1 * math.sin(step)),
        "domain_loss/topcon": 0.1 * early,
        "domain_loss/heidelberg_engineering": 0.2 * early,
        "probe/drusen_count": 0.4 + (1 - early) * (-0.01 if dead else 0.2),
        "probe_init/drusen_count": 0.4,
    }


def rows(*, dead: bool = False, last_step: int = TOTAL) -> list[dict[str, Any]]:
    """A row of training every 10 updates, a reading every 100."""
    found: list[dict[str, Any]] = []
    for step in range(0, last_step + 1, 10):
        if step:
            values = {
                "loss": math.exp(-step / 100) + 0.002,
                "grad_norm": 1.0,
                "learning_rate": 1e-3,
                "epoch": step / 50,
            }
            speed = {"samples_per_sec": 20.0, "seconds_per_step": 0.8, "ema_momentum": 0.996, "skipped_updates": 0.0}
            named = {f"train/{name}": value for name, value in {**values, **speed}.items()}
            found.append({"step": step, "time": 1.7952e9 + step, **named})
        if step % 100 == 0:
            named = {f"diag/{name}": value for name, value in reading(step, dead=dead).items()}
            found.append({"step": step, "time": 1.7952e9 + step, **named})
    return found


def write_run(folder: Path, lines: list[dict[str, Any]], summary: dict[str, Any] | None = SUMMARY) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "run_id").write_text("453715d9c346\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def crashed_run(folder: Path) -> Path:
    """Killed at step 237, after restarts: a torn last line, no summary, the rank's own reason, the supervisor's."""
    write_run(folder, rows(last_step=230), summary=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 240, "time": 17952')
    (folder / "metrics.20261121T161348-5f140d.jsonl").write_text('{"step": 250, "time": 1}\n' * 3)
    (folder / "exits").mkdir()
    record = {"rank": 0, "code": 1, "reason": "RuntimeError: no memory", "step": 237, "cause": True}
    (folder / "exits" / "rank-0000.json").write_text(json.dumps({**record, "host": "vm", "pid": 1, "time": 1.0}))
    (folder / "supervisor.json").write_text(json.dumps({"restarts": 5, "code": 1}))
    (folder / "train.log").write_text(f"step 237\nexport WANDB_API_KEY={SECRET} now\nRuntimeError: no memory\n")
    return folder


def write_pictures(folder: Path, step: int, *, num_volumes: int = 2, vendor: str = "Topcon") -> None:
    """A bright band in a dark scan; hidden: the left half; its similarity 0.5."""
    shape, grid = (num_volumes, 64, 96), (num_volumes, 4, 6)
    bscans = np.full(shape, 20, np.uint8)
    bscans[:, 24:40] = 200
    hidden = np.zeros(grid, bool)
    hidden[:, :, :3] = True
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"pictures-{step}.npz",
        bscans=bscans,
        hidden=hidden,
        pca=np.full((*grid, 3), (step % 256, 0, 255), np.uint8),
        similarity=np.where(hidden, 0.5, np.nan).astype(np.float32),
        ids=np.array([f"{number:016x}" for number in range(num_volumes)]),
        vendors=np.array([vendor] * num_volumes),
        aspect=np.array([0.4] + [math.nan] * (num_volumes - 1)),
    )


def probe_row(contestant: str, score: float, **changes: Any) -> dict[str, Any]:
    """A row of probes/<step>-<data>.json, with an interval of .05 to either side."""
    about = {"label": "drusen_count", "metric": "r2", "probe": "ridge", "num_volumes": 256, "num_patients": 128}
    return {**about, "contestant": contestant, "score": score, "low": score - 0.05, "high": score + 0.05, **changes}
