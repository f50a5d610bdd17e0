"""The training command: configuration -> prepared data -> one worker per device -> exit code.

Everything that can be checked without a device is checked before one is touched. Exit codes: runtime/exits.py.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from data_setup.errors import StopPreparing
from data_setup.index import TooManyBadFiles
from oct_foundation.checkpoints.manager import new_attempt
from oct_foundation.runtime.base import RuntimeKind
from oct_foundation.runtime.exits import ExitCode, clear_exits, combined_code, read_exits
from oct_foundation.runtime.lifeline import LifelineSettings
from oct_foundation.runtime.preemption import PreemptionNotice
from oct_foundation.runtime.select import choose_kind, launch, native_ranks
from oct_foundation.runtime.stopping import GRACE_S, SignalListener
from pretraining.assemble import Job
from pretraining.config import RunConfig, load_config
from pretraining.rank import set_up_logging, worker
from pretraining.run_folder import RunFolder, close_tee, write_atomic
from pretraining.tasks.build import prepare_data

log = logging.getLogger("octfm")

# torchrun kills its workers 30 s after it was asked to stop.
UNDER_TORCHRUN_S = 25.0


def add_arguments(parser: argparse.ArgumentParser, config_default: Path | None = None) -> None:
    """CONFIG.yaml [key=value ...] [--device ...]; the configuration may be left out where there is a default."""
    parser.add_argument(
        "config",
        type=Path,
        nargs="?" if config_default else None,
        default=config_default,
        help="YAML file of the run, for example configs/smoke_test.yaml",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="overrides, for example train.max_steps=10"
    )
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
        return ExitCode.CONFIG
    except OSError as error:
        print(f"octfm: {error}", file=sys.stderr)
        return ExitCode.STORAGE
    SignalListener()
    set_up_logging()
    terminal = os.dup(1) if sys.stdout.isatty() else None
    first_of_host = os.environ.get("LOCAL_RANK", "0") == "0"
    if first_of_host:
        _tell_supervisor(folder)
        clear_exits(folder.exits)
    tee = folder.tee_output()  # of each process that torchrun starts: any of them may have the reason
    try:
        with _preemption_noticed() if first_of_host else nullcontext():
            return _train(config, folder, kind, terminal)
    except OSError as error:
        log.error("the disk or a mount fails: %s", error)
        return ExitCode.STORAGE
    except Exception:  # the command's top: stderr ends below, and the traceback with it
        log.exception("the launcher failed")
        return ExitCode.FAILED
    except KeyboardInterrupt as stop:  # ranks have ways of their own, so this is before them
        log.error("stopped by %s while preparing. The same command goes on from there", stop or "SIGINT")
        return ExitCode.STOPPED
    finally:
        close_tee(tee)


def _train(config: RunConfig, folder: RunFolder, kind: RuntimeKind, terminal: int | None) -> int:
    log.info("run folder %s, device %s", folder.path, kind)
    try:
        prepared = prepare_data(config, folder)
    except TooManyBadFiles as error:
        log.error("%s", error)
        return ExitCode.FAILED
    except ValueError as error:  # no data where the configuration says
        log.error("%s", error)
        return ExitCode.CONFIG
    except StopPreparing as stop:
        log.error("stopped while preparing: %s. The same command goes on from there", stop)
        return ExitCode.STORAGE
    job = Job(
        config=config,
        folder=folder,
        prepared=prepared,
        attempt=new_attempt(),
        life=LifelineSettings(
            exits=folder.exits,
            watchdog=config.runtime.watchdog,
            grace_s=_grace_s(),
        ),
        terminal_fd=terminal,
        launcher_pid=os.getpid(),
    )
    code = launch(kind, worker, job, num_processes=config.runtime.num_processes, sharding=config.train.sharding)
    records = read_exits(folder.exits)
    if records and (first := records[0]).pid != os.getpid():
        at = "before training" if first.step is None else f"at step {first.step}"
        log.error("rank %d on %s left first %s, code %d: %s", first.rank, first.host, at, first.code, first.reason)
    return combined_code(records) or code


def _grace_s() -> float:
    """From a request to stop until a rank leaves, saved or not: as the supervisor or torchrun allow."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return UNDER_TORCHRUN_S
    return float(os.environ.get("OCTFM_GRACE_S", GRACE_S))


def _tell_supervisor(folder: RunFolder) -> None:
    """Where this run lies, for the process that may start it again."""
    if status := os.environ.get("OCTFM_STATUS"):
        write_atomic(Path(status), json.dumps({"folder": str(folder.path.resolve())}) + "\n")


@contextmanager
def _preemption_noticed() -> Iterator[None]:
    """The cloud's notice that this machine goes is a TERM to ourselves: from there on it is one way to stop."""

    def on_notice(reason: str) -> None:
        log.warning("%s: saving and leaving", reason)
        os.kill(os.getpid(), signal.SIGTERM)

    notice = PreemptionNotice(on_notice)
    notice.start()
    try:
        yield
    finally:
        notice.stop()


def _known_world_size(config: RunConfig, kind: RuntimeKind) -> int | None:
    """Ranks of the run where they are known before it starts; a TPU's are known inside the workers only.

    Raises ValueError for more ranks than GPUs.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if kind == "xla":
        return None if os.environ.get("PJRT_DEVICE", "") == "TPU" else 1
    return native_ranks(kind, config.runtime.num_processes)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pretraining.train CONFIG.yaml [key=value ...]`."""
    parser = argparse.ArgumentParser(prog="octfm train", description="Pretrain on OCT volumes.")
    add_arguments(parser)
    return run_command(parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
