"""A whole training, killed with SIGKILL at random moments and restarted by the supervisor, against an undisturbed one.

`python -m tests.faults.kill_run --kills 25` uses the smoke configuration on the CPU, started by run_tpu_xla.sh. Exit
code 1 where a weight, a logged loss or a W&B step differs from what an unbroken run has, or a job died unkilled.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager, CheckpointSettings
from oct_foundation.tracking.wandb_files import records, rows_of, run_files

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Outcome:
    """kills: that hit a living job, by the step it had reached; complaints: what is not as in the undisturbed run."""

    kills: list[int] = field(default_factory=list)
    restarts: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)
    wandb_rows: int = 0
    wandb_gaps: int = 0


def start(folder: Path, cache: Path, *settings: str) -> subprocess.Popen[bytes]:
    """The smoke configuration under the supervisor, on the CPU."""
    command = [
        "bash", "run_tpu_xla.sh", "configs/smoke_test.yaml", "--device", "cpu", "--max-restarts", "100",
        "--backoff", "0.1", f"output_dir={folder}", f"data.cache_dir={cache}", "wandb.mode=offline",
        "train.precision=fp32", "train.epochs=1000", *settings,
    ]  # fmt: skip
    environment = {**os.environ, "OCTFM_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PJRT_DEVICE": "CPU"}
    log = (folder.parent / f"{folder.name}.log").open("wb")
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def kill_and_compare(scratch: Path, *, kills: int, steps: int, seed: int, settings: tuple[str, ...] = ()) -> Outcome:
    """Trains twice: undisturbed, and with `kills` kills of the job's whole process group."""
    began, outcome, rng = time.monotonic(), Outcome(), random.Random(seed)
    every = (f"train.max_steps={steps}", "checkpoint.every_steps=3", "train.log_every_steps=1", *settings)
    calm, killed, cache = scratch / "calm", scratch / "killed", scratch / "prepared"
    calm_began = time.time()
    code = start(calm, cache, *every).wait(timeout=600)
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}: {(scratch / 'calm.log').read_text()[-3000:]}")
    supervisor = start(killed, cache, *every)
    times = [row["time"] for row in _rows(calm)]
    # From the first import to a share of the training that leaves something for the last kill.
    lifetime_s = times[0] - calm_began + 2 * (times[-1] - times[0]) / kills
    last_job = 0
    while supervisor.poll() is None:
        if len(outcome.kills) < kills and (job := _next_job(killed, supervisor, last_job)):
            last_job = job
            _sleep_while_alive(supervisor, rng.uniform(0.5, lifetime_s))
            if supervisor.poll() is None and _kill(job):
                outcome.kills.append(_last_step(killed))
                print(f"kill {len(outcome.kills)} of {kills} at step {outcome.kills[-1]}", flush=True)
        time.sleep(0.05)
    if supervisor.returncode:
        raise RuntimeError(f"ended with {supervisor.returncode}: {(scratch / 'killed.log').read_text()[-3000:]}")
    outcome.restarts = json.loads((killed / "supervisor.json").read_text())["restarts"]
    _compare(calm, killed, outcome)
    if outcome.restarts != len(outcome.kills):
        outcome.complaints.append(f"{outcome.restarts} restarts after {len(outcome.kills)} kills")
    outcome.seconds = time.monotonic() - began
    return outcome


def _next_job(folder: Path, supervisor: subprocess.Popen[bytes], last: int) -> int | None:
    """The first process of the job that came after `last`, None once the supervisor has ended."""
    while supervisor.poll() is None:
        try:
            job = int(json.loads((folder / "supervisor.json").read_text())["job_pid"])
        except (OSError, ValueError, KeyError, TypeError):
            job = last
        if job != last:
            return job
        time.sleep(0.05)
    return None


def _sleep_while_alive(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _kill(job: int) -> bool:
    """SIGKILL to the whole group; False where it had ended by itself."""
    try:
        os.killpg(job, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def _last_step(folder: Path) -> int:
    return max((row["step"] for row in _rows(folder)), default=0)


def _compare(calm: Path, killed: Path, outcome: Outcome) -> None:
    """Weights, optimizer and logged losses to the last bit; W&B's steps."""
    states = []
    for folder in (calm, killed):
        found = CheckpointManager(LocalStore(folder / "checkpoints"), CheckpointSettings(), run_id="").restore()
        assert found is not None
        states.append(found[0])
    outcome.complaints += _differences(states[0], states[1])
    curves = [{(row["step"], name): row[name] for row in _rows(f) for name in ("train/loss", "val/loss") if name in row}
              for f in (calm, killed)]  # fmt: skip
    outcome.complaints += [f"logged {key}" for key in sorted(curves[0]) if curves[0][key] != curves[1].get(key)]
    ids = {record.run.run_id for path in run_files(killed) for record in records(path) if record.HasField("run")}
    steps = [row["step"] for path in run_files(killed) for row in rows_of(path)]
    outcome.wandb_rows = len(steps)
    outcome.wandb_gaps = len({row["step"] for row in _rows(calm)} - set(steps))
    if outcome.wandb_gaps:
        outcome.complaints.append(f"W&B lacks {outcome.wandb_gaps} steps")
    if len(ids) != 1:
        outcome.complaints.append(f"W&B has {len(ids)} runs: {sorted(ids)}")
    if steps != sorted(steps):
        outcome.complaints.append("W&B's steps fall")


def _differences(one: Any, other: Any, where: str = "state") -> list[str]:
    """Places where two trees differ, tensors compared bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [found for key in one for found in _differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list):
        return [f for i, (a, b) in enumerate(zip(one, other, strict=True)) for f in _differences(a, b, f"{where}[{i}]")]
    return [] if one == other else [where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="key=value, for example runtime.num_processes=2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outcome = kill_and_compare(
            Path(scratch),
            kills=arguments.kills,
            steps=arguments.steps,
            seed=arguments.seed,
            settings=tuple(arguments.settings),
        )
    print(outcome)
    if len(outcome.kills) < arguments.kills:
        print(f"only {len(outcome.kills)} kills came before the end: give more --steps", file=sys.stderr)
        return 1
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
