"""Whole runs in processes of their own, as a user starts them, read back from their folders."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager, CheckpointSettings

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = PROJECT / "configs" / "smoke_test.yaml"
# Most of a short run is imports, 12 s of a core, and nearly half of them are of packages that MONAI likes to have.
LIGHT_IMPORTS = {"PYTHONPATH": str(Path(__file__).with_name("light_imports"))}
# The tests compile more than they compute: without XLA's optimisations a run is a third shorter.
FAST_COMPILE = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


@dataclass(frozen=True)
class FinishedRun:
    """A run folder and how the process ended."""

    folder: Path
    code: int
    output: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def curve(self, name: str) -> dict[int, float]:
        """Step -> value of one metric."""
        return {row["step"]: row[name] for row in self.rows if name in row}

    def state(self) -> dict[str, Any]:
        """The newest checkpoint's state."""
        found = CheckpointManager(
            LocalStore(self.folder / "checkpoints"), CheckpointSettings(), run_id="test"
        ).restore()
        assert found is not None
        return found[0]


Train = Callable[..., FinishedRun]


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms and prepared volumes, made by the first run and used by all."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def train(prepared_cache: Path) -> Train:
    """`train(folder, *overrides, device='cpu', code=0, fault=None, transformers=False)` runs the smoke test, or
    another configuration, given as `config`.
    """

    def run(
        folder: Path,
        *overrides: str,
        device: str = "cpu",
        code: int = 0,
        fault: str | None = None,
        transformers: bool = False,
        config: Path = SMOKE,
    ) -> FinishedRun:
        module = "tests.integration.faulty_train" if fault else "pretraining.train"
        ours = (f"data.cache_dir={prepared_cache}", "diagnostics.enabled=false") if config == SMOKE else ()
        command = [
            sys.executable, "-m", module, str(config), "--device", device, f"output_dir={folder}",
            "wandb.mode=disabled", "train.precision=fp32", *ours, *overrides,
        ]  # fmt: skip
        environment = {"OMP_NUM_THREADS": "1", "PJRT_DEVICE": "CPU", "FAULT": fault or "", **FAST_COMPILE}
        environment |= {} if transformers else LIGHT_IMPORTS
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=580,
        )
        assert done.returncode == code, f"exit code {done.returncode}, expected {code}:\n{done.stdout[-4000:]}"
        return FinishedRun(folder, done.returncode, done.stdout)

    return run


def assert_states_equal(found: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0, where: str = "") -> None:
    """Compares nested states; tensors within the tolerance, everything else exactly."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_states_equal(found[key], expected[key], rtol=rtol, atol=atol, where=f"{where}.{key}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{where}: {text}")
    else:
        assert found == expected, where
