"""What does a run cost around its steps?  OMP_NUM_THREADS=2 python -m benchmarks.end_to_end [--quick] [--device xla]

Trains as `octfm train` does (assemble, loop, loader worker, meters, metrics.jsonl, console, W&B offline, checkpoints in
the background, readings) on prepared volumes. In turns with stretches of that run the same process makes as many bare
steps: train_step on a batch in memory and nothing else, while the loader is at rest. overhead = full / bare - 1.

Saves and readings are rarer than a benchmark is long: their cost is measured one by one and spread over their default
intervals. A save costs what a stretch with one takes more than a stretch without, the thread that writes included.
"""

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import cpu_seconds
from benchmarks.recipes import SMOKE
from benchmarks.report import median, print_report
from benchmarks.step import Case
from data_setup.index import PreparedSet
from data_setup.phantom_benchmark import BenchmarkSettings, write_benchmark
from oct_foundation.checkpoints.manager import new_attempt
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.lifeline import Lifeline, LifelineSettings
from oct_foundation.runtime.select import launch
from oct_foundation.tracking.tracker import FanOut
from pretraining.assemble import Job, assemble, build_state
from pretraining.config import load_as
from pretraining.diagnose import Diagnostics
from pretraining.loop import train
from pretraining.rank import make_tracker, set_up_logging
from pretraining.run import Run
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState
from pretraining.step import train_step
from pretraining.tasks.vjepa import VJEPATask
from pretraining.vjepa_config import VJEPARunConfig

ALLOWED = 0.05
NUM_TRAIN, NUM_HELD_OUT = 32, 4
DEFAULT_SAVE_EVERY = CheckpointSettings().every_steps
RESULT = "end_to_end.json"
PHASES = ("step", "data_wait", "logging", "checkpoint", "compile", "other")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cycle: the loader's queue settles for `log_every` steps, a stretch of twice as many is timed, then bare ones.

    Stretches begin and end where the run logs. In the middle of every second one the run saves.
    """

    cycles: int
    log_every: int = 10

    @property
    def steps(self) -> int:
        """Updates of the run."""
        return (3 * self.cycles + 1) * self.log_every

    @property
    def save_every(self) -> int:
        """Updates between saves."""
        return 6 * self.log_every


FULL, QUICK = Plan(cycles=9), Plan(cycles=3, log_every=5)
CASES = (Case(image_size=(16, 128, 128), batch_size=2), Case(image_size=(32, 192, 192), batch_size=1))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds: on the wall by phase of the run's stopwatch, and of processors."""

    wall: Mapping[str, float]
    own_cpu: float
    loader_cpu: float
    wandb_cpu: float

    def __sub__(self, before: "Cost") -> "Cost":
        return Cost(
            wall={name: value - before.wall[name] for name, value in self.wall.items()},
            own_cpu=self.own_cpu - before.own_cpu,
            loader_cpu=self.loader_cpu - before.loader_cpu,
            wandb_cpu=self.wandb_cpu - before.wandb_cpu,
        )


@dataclass(kw_only=True)
class Bare:
    """Steps and nothing around them: the run's own objective and runtime, weights of their own, one batch."""

    run: Run
    num_steps: int
    batch: Any = field(init=False)
    state: TrainState = field(init=False)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        run, config = self.run, self.run.config
        here = replace(config, data=replace(config.data, loader=replace(config.data.loader, num_workers=0)))
        task = VJEPATask(here, PreparedSet.load(str(config.data.root)))
        made = task.train_batches(rank=0, world_size=1, start_step=0, num_steps=1)
        self.batch = next(iter(run.runtime.batches(made)))
        self.state = build_state(config, run.task.objective, run.runtime)
        self._make(3)

    def time(self) -> None:
        """`num_steps` bare steps."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._make(self.num_steps)
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def _make(self, steps: int) -> None:
        run, state = self.run, self.state
        for _ in range(steps):
            scalars = run.runtime.scalars(run.schedules.at(state.step))
            metrics = train_step(
                run.task.objective,
                state.model,
                state.replica,
                state.optimizer,
                run.runtime,
                [self.batch],
                scalars,
                run.config.train.precision,
            )
            state.step += 1
        run.runtime.fetch(metrics)  # the device is idle afterwards


@dataclass(kw_only=True)
class Turns:
    """A tracker, the last of the run's: where the run logs, stretches begin and end (Plan)."""

    run: Run
    stretches: list[Cost] = field(default_factory=list)
    saved: list[bool] = field(default_factory=list)
    bare: Bare | None = None
    _began: Cost | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Between two stretches come bare steps, before the first as well."""
        log_every = self.run.config.train.log_every_steps
        number, rest = divmod(step, log_every)
        if rest or "train/loss" not in metrics:
            return
        if number % 3 == 2:
            self._began = self._cost()
        elif number % 3 == 1:
            if self._began is not None:
                self.stretches.append(self._cost() - self._began)
                self.saved.append((number // 3) % 2 == 0)
            self._rest(step)
            self.bare = self.bare or Bare(run=self.run, num_steps=2 * log_every)
            self.bare.time()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Nothing of time in it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing is open."""

    def _cost(self) -> Cost:
        processes = cpu_seconds()
        wall = self.run.stopwatch.split()
        wandb = sum(seconds for name, seconds in processes.items() if name.startswith("wandb"))
        return Cost(wall=wall, own_cpu=time.process_time(), loader_cpu=sum(processes.values()) - wandb, wandb_cpu=wandb)

    def _rest(self, step: int) -> None:
        """Until the loader has filled its queue; a save has had half a stretch, and is done or said to be late."""
        if self.run.saver is not None and self.run.saver.busy:
            log.warning("step %d: the save of this stretch is still being written", step)
            self.run.saver.close()
        before = -1.0
        while (used := self._cost().loader_cpu) > before:
            before = used
            time.sleep(0.5)


def main(argv: Sequence[str] | None = None) -> None:
    """The cases one after the other; the last line is the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first shape, fewer stretches: a look, not a claim")
    parser.add_argument("--device", choices=("cpu", "xla", "cuda"), default="cpu")
    arguments = parser.parse_args(argv)
    figures: dict[str, object] = {"device": arguments.device, "threads": torch.get_num_threads()}
    ratios = {}
    plan = QUICK if arguments.quick else FULL
    for case in CASES[:1] if arguments.quick else CASES:
        with tempfile.TemporaryDirectory() as temporary:
            found = summary(measure(case, arguments.device, Path(temporary), plan), 2 * plan.log_every)
        figures[case.name] = found
        ratios[f"{case.name}: overhead over the {ALLOWED:.0%} allowed"] = round(found["overhead"] / ALLOWED, 3)
    print_report("end_to_end", figures, ratios)


def measure(case: Case, device: Any, folder: Path, plan: Plan) -> dict[str, Any]:
    """What the run in its process has noted."""
    settings = BenchmarkSettings(num_volumes=NUM_TRAIN + NUM_HELD_OUT, image_size=case.image_size)
    prepared = write_benchmark(folder / "set", settings, num_train=NUM_TRAIN, num_val=NUM_HELD_OUT)
    config = configuration(case, device, folder, plan)
    assert config.output_dir is not None
    place = RunFolder(Path(config.output_dir))
    place.create(config.to_yaml())
    job = Job(
        config=config,
        folder=place,
        prepared=prepared.folder,
        attempt=new_attempt(),
        life=LifelineSettings(exits=place.exits, watchdog=config.runtime.watchdog),
    )
    if code := launch(device, worker, job):
        raise SystemExit(code)
    noted: dict[str, Any] = json.loads((place.path / RESULT).read_text())
    return noted


def configuration(case: Case, device: str, folder: Path, plan: Plan) -> VJEPARunConfig:
    """The smoke test's run at another size, with the defaults that a long run has."""
    precision = "bf16" if device == "cuda" else "fp32"
    return load_as(VJEPARunConfig, 
        SMOKE,
        [
            "name=end_to_end", f"output_dir={folder / 'run'}", f"runtime.device={device}", "model.preset=vit_small",
            f"model.image_size={list(case.image_size)}", "data.source=prepared", f"data.root={folder / 'set'}",
            "data.max_samples=null", "data.loader.num_workers=1", f"batch.global_batch_size={case.batch_size}",
            f"batch.per_core_batch_size={case.batch_size}", f"train.precision={precision}",
            "train.epochs=100000", f"train.max_steps={plan.steps}", f"train.log_every_steps={plan.log_every}",
            "train.val_every_steps=null", f"checkpoint.every_steps={plan.save_every}", "wandb.mode=offline",
        ],
    )  # fmt: skip


def worker(runtime: Runtime, job: Job) -> int:
    """One rank, as pretraining.rank.worker, with one tracker more; leaves its figures in the run's folder."""
    set_up_logging(runtime.rank)
    life = Lifeline(job.life, rank=runtime.rank, world_size=runtime.world_size)
    life.open(runtime.gather)
    turns: list[Turns] = []

    def trackers(run: Run) -> FanOut:
        turns.append(Turns(run=run))
        return FanOut([make_tracker(job, runtime, run), turns[0]])

    run = assemble(job, runtime, life, trackers)
    train(run)
    assert run.saver is not None
    assert isinstance(run.watch, Diagnostics)
    assert turns[0].bare is not None
    run.saver.close()
    run.tracker.finish({})
    life.close()
    readings = [reading.step for reading in run.watch.readings]
    noted = {
        "stretches": [asdict(cost) for cost in turns[0].stretches],
        "saved": turns[0].saved,
        "bare_wall_s": turns[0].bare.wall_s,
        "bare_cpu_s": turns[0].bare.cpu_s,
        "reading_s": run.stopwatch.split()["diagnostics"] / len(readings),
        "reading_every_steps": run.watch.every_steps,
        "save_stall_s": run.saver.stall_s,
        "train_graphs": run.train_graphs,
    }
    (job.folder.path / RESULT).write_text(json.dumps(noted))
    return 0


def summary(noted: Mapping[str, Any], stretch: int) -> dict[str, Any]:
    """Medians over stretches of `stretch` steps, seconds a step; overheads are shares of the bare step."""
    bare = noted["bare_wall_s"]
    beside = [(before + after) / 2 for before, after in pairwise(bare)]  # of each stretch
    rows = list(zip(noted["stretches"], noted["saved"], beside, strict=True))
    plain = [(cost, near) for cost, saved, near in rows if not saved]
    with_save = [(cost, near) for cost, saved, near in rows if saved]
    step_s = statistics.median(bare) / stretch
    step_cpu_s = statistics.median(noted["bare_cpu_s"]) / stretch
    steady = statistics.median(cost["wall"]["total"] / near for cost, near in plain) - 1
    saving = statistics.median(cost["wall"]["total"] / near for cost, near in with_save) - 1
    save_s = (saving - steady) * stretch * step_s
    save_share = save_s / step_s / DEFAULT_SAVE_EVERY
    reading_share = noted["reading_s"] / step_s / noted["reading_every_steps"]
    wall = {name: median([cost["wall"][name] / cost["wall"]["total"] for cost, _ in plain]) for name in PHASES}
    cpu = {name: median([cost[name] / stretch for cost, _ in plain]) for name in ("own_cpu", "loader_cpu", "wandb_cpu")}
    return {
        "bare_step_s": median([step_s]),
        "overhead": _digits(steady + save_share + reading_share),
        "of it loop, loader, logging": _digits(steady),
        "of it saves": _digits(save_share),
        "of it readings": _digits(reading_share),
        "each stretch, over the bare steps beside it": [
            _digits(cost["wall"]["total"] / near - 1) for cost, near in plain
        ],
        "shares of wall time without saves and readings": wall,
        "outside the step": _digits(1 - wall["step"]),
        "save": {"s": _digits(save_s), "stall_s": _digits(noted["save_stall_s"]), "every_steps": DEFAULT_SAVE_EVERY},
        "reading": {"s": _digits(noted["reading_s"]), "every_steps": noted["reading_every_steps"]},
        "cpu_s_a_step": {"bare": median([step_cpu_s]), **cpu},
        "cpu_overhead": _digits(sum(cpu.values()) / step_cpu_s - 1),
        "train_graphs": noted["train_graphs"],
        "stretches": {"plain": len(plain), "with a save": len(with_save), "steps each": stretch},
    }


def _digits(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else value


if __name__ == "__main__":
    main()
