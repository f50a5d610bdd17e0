"""The training command: configuration -> prepared data -> one worker per device -> summary.json.

Everything that can be checked without a device is checked before one is touched. Exit codes: 0 done; 2 the
configuration cannot be run; 74 the disk or the bucket failed while preparing; 1 anything else.
"""

import argparse
import logging
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_setup.errors import StopPreparing
from data_setup.index import PreparedSet, TooManyBadFiles
from data_setup.loaders import LoaderError
from data_setup.prepare import prepare
from data_setup.sources import is_gcs
from oct_foundation.checkpoints.manager import new_attempt
from oct_foundation.checkpoints.store import StoreError
from oct_foundation.runtime.base import Runtime, RuntimeKind
from oct_foundation.runtime.select import choose_kind, launch
from oct_foundation.tracking.console import ConsoleTracker
from oct_foundation.tracking.jsonl import JsonlTracker
from oct_foundation.tracking.tracker import FanOut, Tracker
from oct_foundation.tracking.wandb import start_wandb
from pretraining.assemble import Job, assemble
from pretraining.config import ConfigError, RunConfig, load_config
from pretraining.loop import DivergedError, Run, train
from pretraining.prepare import EXIT_STOPPED, progress_display
from pretraining.provenance import git_sha, versions
from pretraining.run_folder import RunFolder, close_tee
from pretraining.state import ResumeError

log = logging.getLogger("octfm")
EXIT_FAILED, EXIT_CONFIG = 1, 2
# What a user can cause: shown as one message, without a traceback.
EXPECTED = (ResumeError, DivergedError, StoreError, LoaderError)


def add_arguments(parser: argparse.ArgumentParser, config_default: Path | None = None) -> None:
    """CONFIG.yaml [key=value ...] [--device ...]; the configuration may be left out where there is a default."""
    parser.add_argument(
        "config",
        type=Path,
        nargs="?" if config_default else None,
        default=config_default,
        help="YAML file of the run, for example configs/smoke_test.yaml",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example train.max_steps=10")
    parser.add_argument("--device", choices=("auto", "xla", "cuda", "cpu"), help="overrides runtime.device")


def run_command(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    overrides = list(arguments.overrides)
    if arguments.device:
        overrides.append(f"runtime.device={arguments.device}")
    try:
        config = load_config(arguments.config, overrides)
        kind = choose_kind(config.runtime.device)
        if (world := _known_world_size(config, kind)) is not None:
            config.batch.accumulation(world)
        assert config.output_dir is not None
        folder = RunFolder(Path(config.output_dir))
        folder.create(config.to_yaml())
    except ValueError as error:  # ConfigError, or what a device or a folder says
        print(f"octfm: {error}", file=sys.stderr)
        return EXIT_CONFIG
    set_up_logging()
    terminal = os.dup(1) if sys.stdout.isatty() else None
    tee = folder.tee_output() if os.environ.get("LOCAL_RANK", "0") == "0" else None
    try:
        return _train(config, folder, kind, terminal)
    finally:
        if tee is not None:
            close_tee(tee)


def _train(config: RunConfig, folder: RunFolder, kind: RuntimeKind, terminal: int | None) -> int:
    log.info("run folder %s, device %s", folder.path, kind)
    try:
        prepared = prepare_data(config, folder)
    except TooManyBadFiles as error:
        log.error("%s", error)
        return EXIT_FAILED
    except ValueError as error:  # no data where the configuration says
        log.error("%s", error)
        return EXIT_CONFIG
    except StopPreparing as stop:
        log.error("stopped while preparing: %s. The same command goes on from there", stop)
        return EXIT_STOPPED
    job = Job(config=config, folder=folder, prepared=prepared, terminal_fd=terminal, launcher_pid=os.getpid())
    return launch(kind, worker, job, num_processes=config.runtime.num_processes)


def _known_world_size(config: RunConfig, kind: str) -> int | None:
    """Ranks of the run where they are known before it starts; a TPU's are known inside the workers only."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if kind == "xla":
        return None if os.environ.get("PJRT_DEVICE", "") == "TPU" else 1
    return config.runtime.num_processes


def prepare_data(config: RunConfig, folder: RunFolder) -> Path:
    """Volumes of the working size on this host's disk; the table of refused files goes to the log.

    The processes of a host take turns: the first one works, the others find its result. Raises TooManyBadFiles above
    `data.max_bad_fraction`, ValueError where no volume is left or a prepared set has another size, StopPreparing.
    """
    data = config.data
    cache = Path(data.cache_dir) if data.cache_dir else folder.prepared
    if data.source == "prepared":
        prepared = _open_prepared(str(data.root), cache)
    else:
        with progress_display() as progress:
            source = data.open(cache / "phantom-dicom")
            prepared = prepare(source, cache, config.prepare, num_workers=data.prepare_workers, progress=progress)
    prepared.check_bad_fraction(data.max_bad_fraction)
    if table := prepared.bad_file_table():
        log.warning("files that are not used, by reason:\n%s", "\n".join(table))
    prepared.check_usable(config.model.image_size, data.select)
    log.info("%d volumes in %s", len(prepared.accepted()), prepared.folder)
    if note := prepared.info["split_note"]:
        log.warning("%s", note)
    return prepared.folder


def _open_prepared(root: str, cache: Path) -> PreparedSet:
    """What `octfm prepare` wrote; from a bucket it is copied once, since epochs read from disk."""
    if not is_gcs(root):
        return PreparedSet.load(root)
    from data_setup.gcs import download

    log.info("copying %s to %s", root, cache)
    return PreparedSet.load(download(root, cache))


def worker(runtime: Runtime, job: Job) -> int:
    """One rank; what a user can cause is one message and an exit code, anything else a traceback."""
    set_up_logging(runtime.rank)
    try:
        _train_rank(runtime, job)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    except EXPECTED as error:
        log.error("%s", error)
        return EXIT_FAILED
    return 0


def _train_rank(runtime: Runtime, job: Job) -> None:
    """Assembles, trains, and on rank 0 writes the summary, also of a run that failed."""
    run = assemble(job, runtime, lambda run: make_tracker(job, runtime, run))
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
    outcome = "failed"
    try:
        if run.state.step >= run.total_steps:
            log.info("nothing to do: the run has its %d steps; raise train.epochs or train.max_steps", run.total_steps)
        else:
            train(run)
        outcome = "completed"
    finally:
        if run.saver is not None:
            run.saver.close()
        summary = summarise(run, job, outcome)
        run.tracker.finish(summary)
        if runtime.rank == 0:
            job.folder.write_summary(summary)
            log.info("%s: %s", outcome, job.folder.summary)


def make_tracker(job: Job, runtime: Runtime, run: Run) -> Tracker:
    """On global rank 0 the file, the console and W&B; nothing elsewhere: one job is one run."""
    if runtime.rank != 0:
        return FanOut([])
    attempt = run.saver.manager.attempt if run.saver else new_attempt()
    trackers: list[Tracker] = [JsonlTracker(job.folder.metrics, attempt=attempt, resumed_step=run.start_step)]
    if (terminal := job.terminal()) is not None:  # a bar for the person, plain lines for the log
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step, stream=terminal))
        lines = job.folder.log.open("a", buffering=1)
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step, stream=lines))
    else:
        trackers.append(ConsoleTracker(run.total_steps, start_step=run.start_step))
    settings = replace(job.config.wandb, run_name=job.config.wandb.run_name or job.folder.path.name)
    guest = start_wandb(settings, folder=job.folder.path, run_id=job.folder.run_id, config=job.config.to_dict())
    return FanOut([*trackers, *([guest] if guest else [])])


def summarise(run: Run, job: Job, outcome: str) -> dict[str, Any]:
    """What summary.json holds."""
    prepared = PreparedSet.load(job.prepared)
    finals = {name: value if math.isfinite(value) else str(value) for name, value in sorted(run.last.items())}
    return {
        "outcome": outcome,
        "steps": run.state.step,
        "start_step": run.start_step,
        "total_steps": run.total_steps,
        "samples_seen": run.state.samples_seen,
        "final": finals,
        "trainable_parameters": sum(p.numel() for p in run.state.model.parameters() if p.requires_grad),
        "train_step_graphs": run.train_graphs,
        "graphs_compiled": run.runtime.graphs_compiled(),
        "volumes": {"train": run.task.num_train_samples, "accepted": len(prepared.accepted())},
        "bad_files": prepared.bad_by_reason(),
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


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pretraining.train CONFIG.yaml [key=value ...]`."""
    parser = argparse.ArgumentParser(prog="octfm train", description="Pretrain on OCT volumes.")
    add_arguments(parser)
    return run_command(parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
