"""What the commands that use an encoder share: progress on a terminal or in a log, errors as exit codes, one device."""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_setup.errors import StopPreparing
from oct_foundation.checkpoints.store import StoreError
from oct_foundation.runtime.exits import ExitCode

log = logging.getLogger("octfm")
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


def open_folder(folder: Path, *, replacing: Sequence[str] = (), model_types: Sequence[str] = ()) -> None:
    """Makes the folder that results will go to and tries to write there, before the work begins.

    replacing: what will be written beside config.json. Where some is there, config.json has to be of octfm and of one
    of the model_types, so that nobody's own README.md or weights are lost. Raises ValueError for what the caller can
    mend, OSError for a disk that fails.
    """
    there = [name for name in (*replacing, "config.json") if (folder / name).exists()]
    if replacing and there and not _is_ours(folder / "config.json", model_types):
        raise ValueError(
            f"{folder} holds {', '.join(there)}, which this command has not written, or not to its end; delete what is "
            "there, or give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}); give another folder") from None


def _is_ours(config: Path, model_types: Sequence[str]) -> bool:
    try:
        found = json.loads(config.read_text())
        return "octfm" in found and found["model_type"] in model_types
    except (OSError, ValueError, TypeError, KeyError):
        return False


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
        return ExitCode.INTERRUPTED


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
