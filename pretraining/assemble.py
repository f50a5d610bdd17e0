"""Builds a `Run` out of a configuration, prepared data and a runtime; what can be refused is refused here."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import CheckpointName
from oct_foundation.checkpoints.opening import open_store, probe
from oct_foundation.checkpoints.owner import Ownership
from oct_foundation.checkpoints.random_state import seed_host
from oct_foundation.checkpoints.sharing import ranks_without
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups, split_by_branch
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.lifeline import Lifeline, LifelineSettings
from oct_foundation.tracking.tracker import FanOut, Tracker
from pretraining.config import ConfigError, RunConfig
from pretraining.provenance import git_sha, versions
from pretraining.run import Run
from pretraining.run_folder import RunFolder
from pretraining.state import ResumeError, TrainState
from pretraining.tasks.build import build_task
from pretraining.tasks.task import Objective, Task

log = logging.getLogger(__name__)

# Sections that may change when a run goes on, and change what it comes to.
_OF_TRAINING = ("optim", "batch", "train")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the launcher hands to every rank; `terminal_fd` is the terminal that it was started from, if any."""

    config: RunConfig
    folder: RunFolder
    prepared: Path | None
    attempt: str
    life: LifelineSettings
    terminal_fd: int | None = None
    launcher_pid: int = 0

    def terminal(self) -> TextIO | None:
        """The terminal, where this rank runs in the launcher's own process; other processes do not inherit it."""
        if self.terminal_fd is None or os.getpid() != self.launcher_pid:
            return None
        return os.fdopen(self.terminal_fd, "w", closefd=False)


def assemble(job: Job, runtime: Runtime, life: Lifeline, make_tracker: Callable[[Run], Tracker]) -> Run:
    """Task, model, optimizer, schedules, checkpoints; resumes where the run's folder holds a checkpoint.

    Raises ConfigError where the configuration does not fit the devices or the data, ResumeError where a checkpoint is
    of another run.
    """
    config = job.config
    seed_host(config.seed)
    accumulation = config.batch.accumulation(runtime.world_size * runtime.cores)
    task = build_task(config.fed_by_rank(runtime.cores), job.prepared)
    try:
        per_epoch = task.steps_per_epoch(world_size=runtime.world_size)
        total_steps = min(config.train.epochs * per_epoch, config.train.max_steps or config.train.epochs * per_epoch)
        schedules = config.optim.schedules(total_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if runtime.rank == 0 and (hint := config.hint(total_steps)):
        log.warning("%s", hint)
    checkpoints = open_checkpoints(job, runtime)
    newest = find_newest(checkpoints, runtime) if checkpoints and config.checkpoint.resume else None
    state = build_state(config, task.objective, runtime, begins=newest is None)
    run = Run(
        config=config,
        task=task,
        runtime=runtime,
        life=life,
        state=state,
        schedules=schedules,
        total_steps=total_steps,
        global_batch=config.batch.global_batch_size,
        accumulation=accumulation,
        tracker=FanOut([]),
        saver=BackgroundSaver(checkpoints) if checkpoints and runtime.rank == 0 else None,
        facts=_facts(config, task, runtime.world_size, total_steps, per_epoch),
    )
    if checkpoints is not None and newest is not None:
        resume(run, checkpoints, newest)
    if checkpoints is not None:
        whole = runtime.whole(state.capture(runtime))
        if run.saver is not None:
            run.saver.prepare(whole)
    run.start_step = state.step
    run.watch = task.watch(state.model, runtime, total_steps=total_steps, folder=job.folder)
    if run.watch is not None:
        run.watch.take_up(run.start_step, run.facts.get("first_reading"))
    run.tracker = make_tracker(run)
    return run


def build_state(
    config: RunConfig, objective: Objective, runtime: Runtime, *, begins: bool = True, shapes_only: bool = False
) -> TrainState:
    """Model on the device, optimizer with its moments, replica; in the order that keeps the step one XLA program.

    begins: False for a run that goes on, whose weights come from its checkpoint. shapes_only: for a trace, where no
    value is ever read and `runtime.place` makes placeholders. Raises ConfigError where train.compile meets XLA.
    """
    if config.train.compile and runtime.kind == "xla":
        raise ConfigError("train.compile=true is for CPU and CUDA; XLA compiles the whole step anyway: leave it false")
    with torch.device("meta") if shapes_only and objective.builds_from_shapes else nullcontext():
        model = objective.build_model()
    if begins:
        objective.initialize(model)
    model = runtime.place(model)
    guard = GradientGuard(config.optim.clip_norm, runtime.device)
    groups = split_by_branch(parameter_groups(model), objective.branches(model))
    optimizer = AdamW(groups, guard=guard, betas=config.optim.betas, eps=config.optim.eps)
    objective.placed(model, runtime)
    replica = runtime.replicate(model, optimizer, find_unused=objective.finds_unused)
    return TrainState(model=model, replica=replica, optimizer=optimizer)


def open_checkpoints(job: Job, runtime: Runtime) -> CheckpointManager | None:
    """The manager of the run's checkpoints; None, with one log line, where they are switched off.

    On rank 0 the place is probed and claimed: two runs must not write into one. Raises the StoreError of a place that
    cannot be used, OwnedElsewhere where another run lives there.
    """
    settings = job.config.checkpoint
    if not settings.enabled:
        log.warning("checkpoints are off (checkpoint.enabled=false): whatever ends this run, it starts anew")
        return None
    store = open_store(settings.location(job.folder.path))
    ownership = None
    if runtime.rank == 0:
        probe(store)
        ownership = Ownership(store, job.attempt)
        ownership.claim()
        ownership.start_renewing()
    if blind := ranks_without(store, runtime.gather, runtime.rank):
        raise ConfigError(
            f"checkpoint.ckpt_dir={store} is not one place for all hosts: ranks {blind} do not see what rank 0 has "
            f"written. Use gs://bucket/prefix or a shared folder"
        )
    return CheckpointManager(
        store,
        settings,
        run_id=job.folder.run_id,
        attempt=job.attempt,
        ownership=ownership,
        may_quarantine=runtime.rank == 0,  # what one other host cannot read may be well
    )


def find_newest(checkpoints: CheckpointManager, runtime: Runtime) -> CheckpointName | None:
    """The newest intact checkpoint; rank 0 decides, so that no rank takes another."""
    newest = checkpoints.latest_intact() if runtime.rank == 0 else None
    name: CheckpointName | None = runtime.gather(newest.name if newest else None)[0]
    return name


def resume(run: Run, checkpoints: CheckpointManager, name: CheckpointName) -> None:
    """Takes up a checkpoint, the same on every rank."""
    runtime = run.runtime
    found = checkpoints.restore(name)
    assert found is not None, "a checkpoint asked for by name is there or an error"
    saved, manifest = found
    _same_run(manifest.facts, run.facts, run.config.fixed_sections)
    if (first := manifest.facts.get("first_reading")) is not None:
        run.facts["first_reading"] = first  # the record may be lost with the machine; later checkpoints carry it on
    run.state.restore(saved, runtime)
    runtime.end_step()  # restored tensors become inputs of the step's program, not part of it
    log.info("resumed from step %d of %d", run.state.step, run.total_steps)


def _facts(config: RunConfig, task: Task, world_size: int, total_steps: int, per_epoch: int) -> dict[str, Any]:
    """What must be equal when a run goes on, and what its checkpoints tell about it."""
    return {
        "config": json.loads(json.dumps(config.to_dict())),  # tuples become lists, as they come back
        "total_steps": total_steps,
        "samples_per_epoch": per_epoch * config.batch.global_batch_size,
        "global_batch": config.batch.global_batch_size,
        "data": task.data_fingerprint(world_size=world_size),
        "versions": versions(),
        "git_sha": git_sha(),
    }


def _same_run(saved: dict[str, Any], now: dict[str, Any], fixed: Sequence[str]) -> None:
    """Raises ResumeError naming what differs between a checkpoint and this run, where it would change the training.

    fixed: sections of the configuration that must be equal.
    """
    found = [
        text
        for key in fixed
        for text in _differences(saved["config"].get(key, now["config"][key]), now["config"][key], key)
    ]
    if found:
        raise ResumeError(
            f"{'; '.join(found)}. Use the checkpoint's configuration, or start anew with another output_dir (or "
            f"checkpoint.resume=false)"
        )
    if saved["data"] != now["data"]:
        raise ResumeError(
            "the training samples or their order differ from the checkpoint's: files were added, removed or prepared "
            "otherwise. Use the same data, or start anew with another output_dir (or checkpoint.resume=false)"
        )
    if saved["global_batch"] != now["global_batch"]:
        raise ResumeError(
            f"global_batch_size is {now['global_batch']}, the checkpoint was trained with {saved['global_batch']}: "
            f"steps would no longer name the same samples. On other devices keep it and change "
            f"batch.per_core_batch_size or batch.grad_accum_steps"
        )
    if others := [
        text for key in _OF_TRAINING for text in _differences(saved["config"].get(key), now["config"][key], key)
    ]:
        log.warning("the run goes on with other settings: %s", "; ".join(others))
    if saved["total_steps"] != now["total_steps"]:
        log.warning(
            "the run is now %d steps long, it was %d: schedules that end with the run change",
            now["total_steps"],
            saved["total_steps"],
        )


def _differences(saved: Any, now: Any, key: str) -> Iterator[str]:
    """Each setting in which two sections of a configuration differ, with both values."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in sorted(saved.keys() | now.keys()):
            yield from _differences(saved.get(name), now.get(name), f"{key}.{name}")
    elif saved != now:
        yield f"{key} is {saved} in the checkpoint and {now} here"
