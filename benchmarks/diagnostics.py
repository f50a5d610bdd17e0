"""What do readings cost?  OMP_NUM_THREADS=2 python -m benchmarks.diagnostics

Times training steps and readings of one model in turns, and gives the share of a run that readings take at their
default interval. The share depends on sizes only through the ratio of a reading to a step.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.recipes import SMOKE
from benchmarks.report import median, parse_arguments, print_report
from data_setup.phantom_benchmark import BenchmarkSettings, write_benchmark
from oct_foundation.runtime.native import NativeRuntime
from pretraining.assemble import build_state
from pretraining.assemble_diagnostics import build_diagnostics
from pretraining.config import load_as
from pretraining.run_folder import RunFolder
from pretraining.step import train_step
from pretraining.tasks.vjepa import VJEPATask
from pretraining.vjepa_config import VJEPARunConfig

SIZE, BATCH, NUM_HELD_OUT, STEPS_A_ROUND, ROUNDS = (16, 128, 128), 2, 18, 5, 3


def main(argv: Sequence[str] | None = None) -> None:
    """Steps, a reading, steps, a reading, ...; medians."""
    parse_arguments(__doc__ or "", argv)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        step_s, reading_s, every_steps = measure(Path(temporary))
    share = reading_s / (every_steps * step_s)
    figures = {
        "model": f"vit_small {list(SIZE)}, batch {BATCH}, {NUM_HELD_OUT} held-out volumes, 3 makers, fp32",
        "threads": torch.get_num_threads(),
        "step_s": round(step_s, 4),
        "reading_s": round(reading_s, 3),
        "reading_in_steps": round(reading_s / step_s, 1),
        "default_interval_steps": every_steps,
        "share_of_training_time": round(share, 4),
    }
    print_report("diagnostics", figures, {"share over the 2 % allowed": round(share / 0.02, 3)})


def measure(folder: Path) -> tuple[float, float, int]:
    """Seconds of a step and of a reading, and the default interval."""
    settings = BenchmarkSettings(num_volumes=NUM_HELD_OUT + 16, image_size=SIZE)
    prepared = write_benchmark(folder / "set", settings, num_train=16, num_val=NUM_HELD_OUT)
    config = load_as(VJEPARunConfig, 
        SMOKE,
        [
            "model.preset=vit_small", f"model.image_size={list(SIZE)}", "data.source=prepared",
            f"data.root={folder / 'set'}", "data.max_samples=null", f"batch.global_batch_size={BATCH}",
            f"batch.per_core_batch_size={BATCH}", "train.precision=fp32", "train.epochs=1000", "train.max_steps=1000",
        ],
    )  # fmt: skip
    task, runtime = VJEPATask(config, prepared), NativeRuntime("cpu")
    state = build_state(config, task.objective, runtime)
    place = RunFolder(folder / "run")
    watch = build_diagnostics(config, prepared, state.model, runtime, total_steps=1000, folder=place)
    assert watch is not None
    scalars = config.optim.schedules(1000).at(100)
    batches = iter(task.train_batches(rank=0, world_size=1, start_step=0, num_steps=(STEPS_A_ROUND + 1) * ROUNDS + 1))
    steps, readings = [], []
    for number in range(ROUNDS + 1):  # the first round warms up
        for _ in range(STEPS_A_ROUND if number else 2):
            batch = next(batches)
            begin = time.perf_counter()
            train_step(task.objective, state.model, state.replica, state.optimizer, runtime, [batch], scalars, "fp32")
            steps += [time.perf_counter() - begin] if number else []
            state.step += 1
        begin = time.perf_counter()
        watch.read(state, runtime, scalars, batch)
        readings += [time.perf_counter() - begin] if number else []
    return median(steps), median(readings), watch.every_steps


if __name__ == "__main__":
    main()
