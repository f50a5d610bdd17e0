"""Runs that the trainer itself has made, of two tasks: nothing is said against them but that they are short."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretraining.health.health_runs import health, names_of

SHORT = ["train.max_steps=24", "data.phantom.num_trs=400", "checkpoint.every_steps=8", "optim.warmup_steps=5"]
RUNS = {
    "batch norm": ["configs/autoencoder_phantom.yaml", "model.preset=tiny", "model.norm=batch", "seed=1", *SHORT],
    "layer norm": ["configs/autoencoder_phantom.yaml", "model.preset=tiny", "model.norm=layer", "seed=2", *SHORT],
    "every brain": ["configs/autoencoder_phantom.yaml", "model.preset=tiny", "data.mode=per_subject", *SHORT],
    "encoder": ["configs/smoke_test.yaml", "seed=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_the_trainers_own_runs_are_sound(tmp_path: Path, kind: str) -> None:
    config, *overrides = RUNS[kind]
    command = [sys.executable, "-m", "pretraining.train", config, "--device", "cpu", f"output_dir={tmp_path / 'run'}"]
    subprocess.run([*command, "wandb.mode=disabled", *overrides], check=True, capture_output=True, timeout=580)
    code, found = health(tmp_path / "run", tmp_path / "out")
    assert names_of(found) == {}
    assert code == (2 if found["verdict"] == "NOT LEARNED" else 0)
    assert "matched to its parameters" in found["sections"]["weights"]["lines"][0]
    names = {one["name"] for one in found["modalities"]}
    assert names == ({"OCT"} if kind == "encoder" else {"video", "audio", "text", "fmri"})
    assert found["sections"]["completion"]["lines"][0].startswith("Finished")
