"""kill -9 at a random moment of a save: what was acknowledged is still there, intact, and training goes on from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kill_loop.py")
PROJECT = PROGRAM.parents[2]


def kill_rounds(folder: Path, rounds: int, seed: int) -> dict:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(rounds), str(seed)],
        capture_output=True, text=True, timeout=600, env={"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kills_lose_nothing_that_was_acknowledged(tmp_path):
    found = kill_rounds(tmp_path, rounds=15, seed=1)
    assert found["newest"] >= 15
    assert found["fell"]["data"] >= 1, f"no kill hit a save, the test proved nothing: {found}"


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path):
    found = kill_rounds(tmp_path, rounds=200, seed=2)
    assert found["fell"]["data"] >= 10, found
