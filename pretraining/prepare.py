"""`octfm prepare`: scans from anywhere -> a prepared set on disk or in a bucket, with a table of what was refused.

Free of torch, for the reason in source_section.py. A training run prepares through the same function.
"""

import argparse
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from data_setup.errors import StopPreparing
from data_setup.index import PreparedSet
from data_setup.prepare import Progress, prepare
from data_setup.sources import is_gcs
from oct_foundation.runtime.exits import ExitCode
from pretraining.config_file import ConfigError, load_settings
from pretraining.source_section import SourceSection, guess_source

log = logging.getLogger("octfm")


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The one thing that preparing must know of a model."""

    image_size: tuple[int, int, int] = (64, 384, 384)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The part of a run's configuration that decides a prepared set, under the same keys."""

    seed: int = 0
    model: _Model = field(default_factory=_Model)
    data: SourceSection = field(default_factory=SourceSection)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE --out DIR [--config C] [--workers N] [key=value ...]."""
    parser.add_argument("source", help="folder, gs://bucket/folder, AI-READI's root, .tsv, .csv or .parquet")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="for example model.image_size=[64,384,384]"
    )
    parser.add_argument("--out", required=True, help="folder or gs://bucket/folder of the prepared set")
    parser.add_argument("--config", type=Path, help="take model.image_size, seed and data.* from a run's YAML")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    parser.add_argument("--work", type=Path, help="local folder for --out gs://... (default: below ~/.cache/octfm)")


def run_command(arguments: argparse.Namespace) -> int:
    """Prepares; returns the exit code: 0 also where files were refused, 2 for a wrong call, 74 for a failing disk or
    bucket.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    try:
        config = _load(arguments)
        folder = _local_folder(arguments)
        workers = config.data.prepare_workers
        with progress_display() as progress:
            source = config.data.open(folder / "phantom-dicom")
            settings = config.data.prepare_settings(config.model.image_size, split_seed=config.seed)
            prepared = prepare(source, folder, settings, workers, progress)
        if is_gcs(arguments.out):
            _copy_to_bucket(folder, prepared, arguments.out)
    except ValueError as error:
        print(f"octfm: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    except StopPreparing as stop:
        print(f"octfm: stopped: {stop}. What is finished is kept: the same command goes on from there", file=sys.stderr)
        return ExitCode.STORAGE
    except KeyboardInterrupt:
        print("octfm: interrupted. What is finished is kept: the same command goes on from there", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print("\n".join(summary(prepared, arguments.out)))
    return 0


def _load(arguments: argparse.Namespace) -> PrepareConfig:
    given = list(arguments.overrides)
    keys = {item.partition("=")[0] for item in given}
    if "data.source" not in keys:
        given.append(f"data.source={guess_source(arguments.source)}")
    given.append(f"data.root={arguments.source}")
    if "data.prepare_workers" not in keys:
        workers = arguments.workers if arguments.workers is not None else os.cpu_count() or 1
        given.append(f"data.prepare_workers={workers}")
    config = load_settings(PrepareConfig, arguments.config, given, known_keys_only=True)
    if config.data.source == "prepared":
        raise ConfigError("data.source=prepared: there is nothing left to prepare")
    return config


def _local_folder(arguments: argparse.Namespace) -> Path:
    """Where the set is made; for a bucket a working folder of its own, kept so that a killed call goes on."""
    if not is_gcs(arguments.out):
        return Path(arguments.out)
    if arguments.work is not None:
        return arguments.work
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "octfm" / hashlib.sha256(arguments.out.encode()).hexdigest()[:12]


def _copy_to_bucket(folder: Path, prepared: PreparedSet, uri: str) -> None:
    """Volumes first, the file that readers look for last."""
    from data_setup.gcs import mirror

    version = str(prepared.info["version"])
    volumes = [f"{version}/volumes/{row.id}.npy" for row in prepared.accepted()]
    names = [*volumes, f"{version}/index.jsonl", f"{version}/dataset.json", "index.jsonl", "dataset.json"]
    log.info("copying %d files to %s", len(names), uri)
    log.info("%d were not there yet", mirror(folder, names, uri))


def summary(prepared: PreparedSet, where: str) -> list[str]:
    """Lines for the terminal: what is usable, by maker, and what was refused, why."""
    info = prepared.info
    splits = ", ".join(f"{count} {split}" for split, count in info["split"].items() if count)
    vendors = ", ".join(f"{count} {vendor}" for vendor, count in info["vendors"].items())
    lines = [f"{info['accepted']} volumes of {info['files']} files ({splits or 'none usable'})"]
    if vendors:
        lines.append(f"  {vendors}")
    if info["split_note"]:
        lines.append(f"  {info['split_note']}")
    if table := prepared.bad_file_table():
        lines += ["not used, by reason:", *table]
    lines.append(f"index: {where.rstrip('/')}/index.jsonl   (look at it: octfm data report {where})")
    return lines


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A bar on a terminal, a log line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _ProgressLines()
        return
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]} refused"))
    from rich.console import Console

    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None, bad=0)

        def show(done: int, total: int, bad: int) -> None:
            bar.update(task, completed=done, total=total, bad=bad)

        yield show


class _ProgressLines:
    """Preparing thousands of files takes hours: a line every few seconds and one at the end."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s, self._start = every_s, time.monotonic()
        self._last, self._first_done = self._start, -1

    def __call__(self, done: int, total: int, bad: int) -> None:
        now = time.monotonic()
        if self._first_done < 0:
            self._first_done = done - 1  # of an earlier call
        if done < total and now - self._last < self._every_s:
            return
        self._last = now
        per_file_s = (now - self._start) / (done - self._first_done)
        left = timedelta(seconds=round(per_file_s * (total - done)))
        log.info("prepared %d of %d files, %d refused, left %s", done, total, bad, left)


def main(argv: Sequence[str] | None = None) -> int:
    """`octfm prepare SOURCE --out DIR`."""
    parser = argparse.ArgumentParser(
        prog="octfm prepare", description="Read, verify and resize OCT scans once, into a set that runs train from."
    )
    add_arguments(parser)
    return run_command(parser.parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
