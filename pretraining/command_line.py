"""What the commands that use an encoder share: progress on a terminal or in a log, errors as exit codes, one device."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_setup.errors import StopPreparing
from oct_foundation.checkpoints.store import StoreError
from oct_foundation.runtime.exits import ExitCode

log = logging.getLogger("octfm")
EXIT_INTERRUPTED = 130  # what shells say of Ctrl-C
_LINE_EVERY_S = 5.0


def add_device(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """--device and --batch-size, the same for every command."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (default: cpu)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=batch_size, help=f"volumes at a time (default: {batch_size})"
    )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def with_exit_code(action: Callable[[], int]) -> int:
    """Runs a command: 2 for what the caller can mend, 74 for a failing disk or bucket, each as one line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    try:
        return action()
    except ValueError as error:
        print(f"octfm: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    except (StopPreparing, StoreError, OSError) as error:
        print(f"octfm: stopped: {error}", file=sys.stderr)
        return ExitCode.STORAGE
    except KeyboardInterrupt:
        print("octfm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """`show(done, total)`: a bar on a terminal, a log line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _progress_lines(what)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _progress_lines(what: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _LINE_EVERY_S:
            return
        last = now
        log.info("%s: %d of %d, left %.0f s", what, done, total, (now - start) / max(done, 1) * (total - done))

    return show
