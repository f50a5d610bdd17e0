"""A source of files -> a prepared set of verified uint8 volumes with an index: decoded once, read in every epoch.

JPEG 2000 decodes at 11 MB/s per core: 150 epochs of 601 volumes would cost 180 core-hours, once costs 1.2. Safe to
kill at any moment: each file is finished or absent, a journal remembers the finished ones, the index comes last.
"""

import fcntl
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from data_setup.errors import Reason, StopPreparing
from data_setup.index import VOLUMES_NAME, PreparedSet, volume_path
from data_setup.isolate import IsolationLimits, Outcome, as_completed
from data_setup.journal import Entry, Journal
from data_setup.prepare_file import PrepareTask, Record, decoder_failure, keyed_id, prepare_file
from data_setup.publish import FORMAT, publish
from data_setup.resample import Fit
from data_setup.scan_reader import ScanFormat, check_formats
from data_setup.selection import EVERYTHING, Selection
from data_setup.sources import DirectorySource, InputFile, InputSource, is_gcs
from data_setup.volume import ReadOptions

_KEY_NAME, _KEY_BYTES = ".source_key", 32
_LOCK_NAME = ".lock"
# Allowed on top of a file's time where it is fetched first; gcs.py gives up sooner.
_FETCH_S, _FETCH_BYTES_PER_S = 600.0, 100_000

_PASSING = (Reason.TRANSFER_MISMATCH, Reason.MISSING_FILE)
_PASSING_DETAILS = ("died", "timeout", "memory limit")

Progress = Callable[[int, int, int], None]
"""(inputs done, inputs in all, inputs rejected so far)"""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the content of a prepared set; every change makes another version of it.

    image_size [D, H, W] in voxels, reached by resizing or by cropping; formats that are read; max_bytes of decoded
    pixels per file; timeout_s per file; val_fraction of the patients validate, ranked with split_seed, where the
    source recommends no split. select: what the source has left out already. The other three admit files that are
    refused by default.
    """

    image_size: tuple[int, int, int]
    fit: Fit = "resize"
    formats: tuple[ScanFormat, ...] = ("dicom",)
    any_sop_class: bool = False
    include_nonvolumetric: bool = False
    allow_burned_in: bool = False
    max_bytes: int = 1 << 30
    timeout_s: float = 120.0
    val_fraction: float = 0.1
    split_seed: int = 0
    select: Selection = EVERYTHING

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))
        object.__setattr__(self, "formats", tuple(self.formats))
        if len(self.image_size) != 3 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be three positive numbers [D, H, W]; found {list(self.image_size)}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"data.fit is {self.fit!r}; it must be resize or crop")
        if self.max_bytes < 1:
            raise ValueError(f"data.max_file_bytes is {self.max_bytes}; it must be positive, e.g. {1 << 30} (1 GiB)")
        if self.timeout_s <= 0:
            raise ValueError(f"data.timeout_s is {self.timeout_s}; it must be above 0 seconds, e.g. 120")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction is {self.val_fraction}; it must lie between 0 and 1, e.g. 0.1")
        check_formats(self.formats)

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the format of prepared sets, in hex; its first 12 digits name the version."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def read_options(self) -> ReadOptions:
        """What the readers admit."""
        return ReadOptions(
            any_sop_class=self.any_sop_class,
            include_nonvolumetric=self.include_nonvolumetric,
            allow_burned_in=self.allow_burned_in,
            max_bytes=self.max_bytes,
        )


def prepare(
    source: InputSource,
    out_dir: str | Path,
    settings: PrepareSettings,
    num_workers: int,
    progress: Progress | None = None,
) -> PreparedSet:
    """Prepares what is not prepared yet, in `out_dir/<version>/`, and returns the finished set of that version.

    The index is the same byte for byte with any number of workers and of interruptions. One source per `out_dir`,
    one process at a time. Raises ValueError for an empty source or an out_dir inside it, StopPreparing where the disk
    or the bucket fails: everything finished is kept, and the same call goes on from there.
    """
    out_dir = Path(out_dir)
    if isinstance(source, DirectorySource) and source.holds(out_dir):
        raise ValueError(f"the prepared set {out_dir} lies inside its own source; give a folder outside of it")
    files = source.files()
    folder = out_dir / settings.digest[:12]
    with _alone(out_dir):
        key = _make_folders(out_dir, folder, source.key)
        finished = _finish(files, folder, settings, key, num_workers, progress)
        try:
            publish(out_dir, folder, finished, settings, settings.digest, key)
        except OSError as error:
            raise StopPreparing(f"the index in {out_dir} cannot be written: {error.strerror}") from None
    return PreparedSet.load(folder)


def _finish(
    files: Sequence[InputFile],
    folder: Path,
    settings: PrepareSettings,
    key: bytes,
    num_workers: int,
    progress: Progress | None,
) -> list[tuple[InputFile, Record]]:
    """Every input with each of its records: those of the journal that still hold, and new ones."""
    inputs = {keyed_id(key, file.key): file for file in files}
    stamps = {file_id: _stamp(file) for file_id, file in inputs.items()}
    journal = Journal(folder)
    done = {file_id for file_id in inputs if _still_valid(journal.entries.get(file_id), stamps[file_id], folder)}
    tasks = [_task(file_id, file, folder, settings, key) for file_id, file in inputs.items() if file_id not in done]
    num_done, num_bad = len(done), sum(_is_bad(journal.entries[file_id]) for file_id in done)
    try:
        for task, rows in _prepare_all(tasks, num_workers, settings):
            _sync(folder, rows)
            journal.append({"id": task.id, "stamp": stamps[task.id], "rows": rows})
            num_done += 1
            num_bad += _is_bad(journal.entries[task.id])
            if progress is not None:
                progress(num_done, len(inputs), num_bad)
    finally:
        journal.close()
    return [(file, row) for file_id, file in inputs.items() for row in journal.entries[file_id]["rows"]]


def _sync(folder: Path, rows: list[Record]) -> None:
    """Puts the volumes of a finished input on the disk, before the journal counts them; raises StopPreparing."""
    try:
        for row in rows:
            if row["status"] == "accepted":
                with open(volume_path(folder, row["id"]), "rb") as file:
                    os.fsync(file.fileno())
    except OSError as error:
        raise StopPreparing(f"a prepared volume cannot be written: {error.strerror}") from None


def _is_bad(entry: Entry) -> bool:
    return any(row["status"] == "rejected" for row in entry["rows"])


@contextmanager
def _alone(out_dir: Path) -> Iterator[None]:
    """Waits until no other process prepares into the folder: the ranks of a host start at once."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = open(out_dir / _LOCK_NAME, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise StopPreparing(f"{out_dir} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when this process ends, however it ends
        yield


def _prepare_all(
    tasks: list[PrepareTask], num_workers: int, settings: PrepareSettings
) -> Iterator[tuple[PrepareTask, list[Record]]]:
    """Each task with its records, as they are done; a decoder that died, hung or ran out of memory makes a rejected
    one.
    """
    fetched = [task.stated.bytes or 0 for task in tasks if task.location and is_gcs(task.location)]
    fetching_s = _FETCH_S + max(fetched) / _FETCH_BYTES_PER_S if fetched else 0.0
    limits = IsolationLimits(timeout_s=settings.timeout_s + fetching_s)
    for number, outcome in as_completed(prepare_file, tasks, num_workers, limits):
        task = tasks[number]
        yield task, outcome.record if outcome.record is not None else [_failed(task, outcome)]


def _failed(task: PrepareTask, outcome: Outcome[list[Record]]) -> Record:
    """The record of a task without a result; raises StopPreparing where the fault is not the file's."""
    match outcome.failure:
        case "died" | "timeout":
            return decoder_failure(task.id, f"{outcome.failure}, {outcome.detail}")
        case "stopped":
            raise StopPreparing(outcome.detail)
        case _ if outcome.detail == "MemoryError":
            return decoder_failure(task.id, "memory limit")
        case _:
            raise RuntimeError(f"preparing file {task.id} failed with {outcome.detail}: a defect, please report it")


def _task(file_id: str, file: InputFile, folder: Path, settings: PrepareSettings, key: bytes) -> PrepareTask:
    return PrepareTask(
        location=file.location,
        stated=file.stated,
        id=file_id,
        folder=folder / VOLUMES_NAME,
        image_size=settings.image_size,
        fit=settings.fit,
        formats=settings.formats,
        options=settings.read_options,
        key=key,
    )


def _make_folders(out_dir: Path, folder: Path, public_key: bytes | None) -> bytes:
    """Makes the folders, sweeps up after a killed call, and returns the key of the ids."""
    try:
        (folder / VOLUMES_NAME).mkdir(parents=True, exist_ok=True)
        for leftover in (folder / VOLUMES_NAME).glob("*.tmp*"):  # of a call that was killed
            leftover.unlink()
        return public_key or _kept_key(out_dir)
    except OSError as error:
        raise StopPreparing(f"{out_dir} cannot be written: {error.strerror}") from None


def _kept_key(out_dir: Path) -> bytes:
    """The 32 random bytes beside the set, created when first needed; whoever has them can test guesses of names."""
    path = out_dir / _KEY_NAME
    if not path.exists():
        descriptor = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".tmp"), path)
    return read_key(out_dir)


def read_key(out_dir: Path) -> bytes:
    """The key of the ids of a prepared set; raises ValueError where it is absent or damaged."""
    path = out_dir / _KEY_NAME
    if not path.is_file():
        raise ValueError(f"{path} is absent: it stays on the machine that prepared the set, and phantoms need none")
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"{path} holds {len(key)} bytes instead of {_KEY_BYTES}: restore it, or use a new folder for the set"
        )
    return key


def _stamp(file: InputFile) -> list[str | int | None] | None:
    """By what a replaced file is noticed: a bucket's generation and checksum, on disk size and modification time in
    ns and what a list states of it; None if absent.
    """
    if file.location is None:
        return None
    stated = [file.stated.bytes, file.stated.crc32c, file.stated.generation]
    if is_gcs(file.location):
        return stated
    try:
        status = os.stat(file.location)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, *stated]


def _still_valid(entry: Entry | None, stamp: list[str | int | None] | None, folder: Path) -> bool:
    """True if an input is as it was when its entry was written, its volumes are where they were put, and its refusal,
    if any, was the file's own: what the network or a lack of memory did is tried anew by the next call.
    """
    if entry is None or entry["stamp"] != stamp:
        return False
    first = entry["rows"][0]
    if first.get("reason") in _PASSING or (first.get("detail") or "").startswith(_PASSING_DETAILS):
        return False
    accepted = [row for row in entry["rows"] if row["status"] == "accepted"]
    return all(_is_there(volume_path(folder, row["id"]), row["shape"]) for row in accepted)


def _is_there(path: Path, shape: Sequence[int]) -> bool:
    """True for a file that is long enough for a volume: one that was cut since is made again."""
    return path.is_file() and path.stat().st_size > math.prod(shape)
