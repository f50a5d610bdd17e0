"""One rank of a training job: assembles, trains, and says how it ended, to the log, to the summary and by its code."""

import logging
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from data_setup.loaders import LoaderError
from oct_foundation.checkpoints.owner import OwnedElsewhere, TakenOver
from oct_foundation.checkpoints.store import Corrupt, Denied, NotFound, StoreError, Unavailable
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.lifeline import Lifeline
from oct_foundation.runtime.ranks import is_loss_of_peer
from oct_foundation.tracking.console import ConsoleTracker
from oct_foundation.tracking.device_sampler import FILE as DEVICES
from oct_foundation.tracking.device_sampler import DeviceSampler
from oct_foundation.tracking.jsonl import JsonlTracker
from oct_foundation.tracking.tracker import FanOut, Tracker
from oct_foundation.tracking.wandb import WandbRun, start_wandb
from pretraining.agreement import RanksDifferError, check_ranks_alike
from pretraining.assemble import Job, assemble
from pretraining.config import ConfigError
from pretraining.loop import train
from pretraining.provenance import git_sha, versions
from pretraining.run import DivergedError, Run, StoppedError
from pretraining.state import ResumeError

log = logging.getLogger("octfm")

# A rank that leaves tells its siblings, who look every second; a broken connection is faster, and knows no reason.
PEER_SPEAKS_S = 5.0
_OUTCOMES = {ExitCode.STOPPED: "stopped, saved", ExitCode.NOT_LEARNING: "stopped, collapsed"}
# What a user can cause, and the code that it ends with: shown as one message, without a traceback. First match wins.
_EXPECTED: Sequence[tuple[type[Exception], ExitCode]] = (
    (ConfigError, ExitCode.CONFIG),
    (RanksDifferError, ExitCode.REFUSED),
    (ResumeError, ExitCode.REFUSED),
    (OwnedElsewhere, ExitCode.TAKEN_OVER),
    (TakenOver, ExitCode.TAKEN_OVER),
    (Corrupt, ExitCode.REFUSED),
    (Denied, ExitCode.REFUSED),
    (NotFound, ExitCode.REFUSED),
    (Unavailable, ExitCode.FAILED),  # at the start; it may come back. In training the ranks agree on STORAGE
    (StoreError, ExitCode.STORAGE),
    (DivergedError, ExitCode.FAILED),
    (LoaderError, ExitCode.FAILED),
)


def worker(runtime: Runtime, job: Job) -> int:
    """One rank; returns its exit code, having written down the reason where it is not 0.

    A rank that fails while others train says so first, tidies up, and leaves; one that stops by agreement returns.
    """
    set_up_logging(runtime.rank)
    life = Lifeline(job.life, rank=runtime.rank, world_size=runtime.world_size)
    run, code, outcome = None, ExitCode.DONE, "completed"
    try:
        life.open(runtime.gather)
        run = _assembled(runtime, life, job)
        if run.state.step < run.total_steps:
            with DeviceSampler(job.folder.path / DEVICES) if runtime.rank == 0 else nullcontext():
                train(run)
    except StoppedError as stopped:
        log.warning("%s", stopped)
        code, outcome = stopped.code, _OUTCOMES.get(stopped.code, "stopped, not saved")
        life.exit.announce(code, str(stopped), cause=False)  # all leave: nobody is to blame, nobody to be told
    except BaseException as error:  # the rank's top: the others must not wait for it
        code, outcome = _failed(error, life), "failed"
    with life.watchdog.phase("save"):
        if run is not None:
            _tidy_up(run, job, outcome)
        if outcome == "failed" and runtime.world_size > 1:
            life.exit.now(code, "")
        life.close()
    return code


def _failed(error: BaseException, life: Lifeline) -> ExitCode:
    """Says why, to the log, to the record and to the other ranks, before anything else; returns the exit code."""
    if is_loss_of_peer(error):
        time.sleep(PEER_SPEAKS_S)  # mostly it ends here, with the reason of the rank that left first
        reason = f"another rank is gone: {str(error).splitlines()[0]}"
        life.exit.announce(ExitCode.FAILED, reason, cause=False)
        return ExitCode.FAILED
    code = next((code for kind, code in _EXPECTED if isinstance(error, kind)), None)
    if code is not None:
        log.error("%s", error)
        life.exit.announce(code, str(error))
        return code
    traceback.print_exception(error)
    sys.stderr.flush()
    life.exit.announce(ExitCode.FAILED, f"{type(error).__name__}: {error}")
    return ExitCode.FAILED


def _assembled(runtime: Runtime, life: Lifeline, job: Job) -> Run:
    """The run, resumed where there is a checkpoint; ranks that are not alike have stopped before anything is built."""
    facts = {"git commit": git_sha(), "configuration": job.config.to_dict(), "versions": versions()}
    check_ranks_alike(runtime, platform.node(), facts)
    run = assemble(job, runtime, life, lambda run: make_tracker(job, runtime, run))
    log.info(
        "%s; %d ranks; %d samples; steps %d to %d; global batch %d = %d per core x %d ranks x %d accumulated",
        runtime.describe(),
        runtime.world_size,
        run.task.num_train_samples,
        run.state.step,
        run.total_steps,
        run.global_batch,
        job.config.batch.per_core_batch_size,
        runtime.world_size,
        run.accumulation,
    )
    if run.state.step >= run.total_steps:
        log.info("nothing to do: the run has its %d steps; raise train.epochs or train.max_steps", run.state.step)
    elif runtime.rank == 0:
        _as_well_as_it_can("config.yaml", lambda: job.folder.replace_config(job.config.to_yaml()))
    return run


def _tidy_up(run: Run, job: Job, outcome: str) -> None:
    """Lets go of the place, writes the summary, closes the trackers: as well as it can, since the end is decided."""
    if run.saver is not None:
        _as_well_as_it_can("the last checkpoint", run.saver.close)
        if (ownership := run.saver.manager.ownership) is not None:
            ownership.release()
    summary = summarise(run, job, outcome)
    if run.runtime.rank == 0:  # before the tracker: W&B may take its time
        if outcome != "completed" or run.state.step > run.start_step or not job.folder.summary.exists():
            _as_well_as_it_can("summary.json", lambda: job.folder.write_summary(summary))
        if run.judgement is not None:
            log.info("%s. %s", run.judgement.verdict, " ".join(run.judgement.reasons))
        log.info("%s: %s", outcome, job.folder.summary)
    _as_well_as_it_can("the trackers", lambda: run.tracker.finish(summary))


def _as_well_as_it_can(what: str, call: Callable[[], None]) -> None:
    """A full disk must not hide how the run has ended."""
    try:
        call()
    except OSError as error:
        log.error("%s: %s", what, error)


def make_tracker(job: Job, runtime: Runtime, run: Run) -> Tracker:
    """On global rank 0 the file, the console and W&B; nothing elsewhere: one job is one run."""
    if runtime.rank != 0:
        return FanOut([])
    trackers: list[Tracker] = [JsonlTracker(job.folder.metrics, attempt=job.attempt, resumed_step=run.start_step)]
    if (terminal := job.terminal()) is not None:  # a bar for the person, plain lines for the log
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step, stream=terminal))
        lines = job.folder.log.open("a", buffering=1)
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step, stream=lines))
    else:
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step))
    settings = replace(job.config.wandb, run_name=job.config.wandb.run_name or job.folder.path.name)
    # A resumed run is the one that its checkpoint names, also where the folder is another.
    run_id = run.saver.manager.run_id if run.saver else job.folder.run_id
    identity = WandbRun(
        folder=job.folder.path,
        run_id=run_id,
        config=job.config.to_dict(),
        goes_on=job.config.checkpoint.resume,
        record=job.folder.metrics,
        resumed_step=run.start_step,
    )
    guest = start_wandb(settings, identity)
    return FanOut([*trackers, *([guest] if guest else [])])


def summarise(run: Run, job: Job, outcome: str) -> dict[str, Any]:
    """What summary.json holds."""
    judgement = run.judgement or (run.watch.judge() if run.watch and run.watch.readings else None)
    finals = {name: value if math.isfinite(value) else str(value) for name, value in sorted(run.last.items())}
    return {
        "outcome": outcome,
        "steps": run.state.step,
        "start_step": run.start_step,
        "total_steps": run.facts["total_steps"],
        "samples_seen": run.state.samples_seen,
        "verdict": judgement.verdict if judgement else None,
        "final": finals,
        "trainable_parameters": sum(p.numel() for p in run.state.model.parameters() if p.requires_grad),
        "train_step_graphs": run.train_graphs,
        "graphs_compiled": run.runtime.graphs_compiled(),
        **run.task.facts(),
        "input": run.task.input_counts(),
        "checkpoints": _saving(run),
        "device": run.runtime.describe(),
        "runtime": run.runtime.kind,
        "world_size": run.runtime.world_size,
        "precision": run.config.train.precision,
        "peak_memory_bytes": run.runtime.memory_bytes(),
        "wall_seconds": run.stopwatch.split(),
        "host": platform.platform(),
        "versions": versions(),
        "git_sha": git_sha(),
    }


def _saving(run: Run) -> dict[str, float] | None:
    """Saves that failed or were skipped, and what the last one took from training; None on ranks that do not save."""
    if (saver := run.saver) is None:
        return None
    return {"failed": saver.num_failed, "skipped": saver.num_skipped, "last_stall_s": saver.stall_s}


def set_up_logging(rank: int = 0) -> None:
    """Plain lines on stderr, with the time, and the rank where it is not 0."""
    who = f" rank {rank}" if rank else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s{who} %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
