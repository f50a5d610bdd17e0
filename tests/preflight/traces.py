"""Traces of a tiny model on 4 replicas, in a process of its own: `python -m tests.preflight.traces FOLDER`.

healthy: as it is; unrolled: 2 micro-steps in one program; cut: 6 of them; lazy: an optimizer whose moments are born in
step 1; baked: schedules as Python numbers.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import pretraining.assemble
from oct_foundation.optim.adamw import AdamW
from oct_foundation.runtime.base import Scalar
from pretraining.preflight import tracing_runtime
from pretraining.preflight.trace import load_without_data, trace
from pretraining.tasks.vjepa_objective import VJEPAObjective

SMOKE = Path(__file__).parents[2] / "configs" / "smoke_test.yaml"
NUM_CHIPS = 4
TINY = ("model.image_size=[8,32,32]",)


class LazyAdamW(AdamW):
    """State that is born in the first step."""

    def _create_state(self) -> None:
        self._create = super()._create_state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if not self.state:
            self._create()
        super().step()


class BakedRuntime(tracing_runtime.TracingRuntime):
    """Numbers of the schedules as they are."""

    def scalars(self, values: Mapping[str, float]) -> dict[str, Scalar]:
        return dict(values)


def run(folder: Path, name: str, *overrides: str) -> None:
    config = load_without_data(SMOKE, [*TINY, f"batch.global_batch_size={NUM_CHIPS}", *overrides])
    (folder / name).mkdir()
    trace(config, VJEPAObjective(config), NUM_CHIPS, folder / name)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run(folder, "healthy")
    run(folder, "unrolled", f"batch.global_batch_size={2 * NUM_CHIPS}", "optim.warmup_steps=0")
    run(folder, "cut", f"batch.global_batch_size={6 * NUM_CHIPS}", "optim.warmup_steps=0")
    pretraining.assemble.AdamW = LazyAdamW  # type: ignore[misc]
    run(folder, "lazy")
    pretraining.assemble.AdamW = AdamW  # type: ignore[misc]
    tracing_runtime.TracingRuntime = BakedRuntime  # type: ignore[misc]
    run(folder, "baked")
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
