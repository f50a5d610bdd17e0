"""A source of files -> a cache of verified uint8 volumes with an index: decoded once, read in every epoch.

JPEG 2000 decodes at 11 MB/s per core: 150 epochs of 601 volumes would cost 180 core-hours, once costs 1.2. Safe to
kill at any moment: each file is finished or absent, a journal remembers the finished ones, the index comes last.
"""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_setup.index import DATASET_NAME, INDEX_NAME, VOLUMES_NAME, IndexRow, PreparedSet, volume_path
from data_setup.isolate import IsolationLimits, Outcome, run_isolated
from data_setup.prepare_file import PrepareTask, decoder_failure, keyed_id, prepare_file
from data_setup.sources import DirectorySource, InputFile, InputSource
from data_setup.splits import assign_splits

FORMAT = 1  # of the cache; a new one gets new folders
_JOURNAL_NAME = "journal.jsonl"
_KEY_NAME, _KEY_BYTES = ".source_key", 32
_DECODERS = ("numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm")

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the content of a cache; every change leads to another folder.

    image_size [D, H, W] in voxels; max_bytes of decoded pixels per file; timeout_s per file; val_fraction of the
    patients validate, ranked with split_seed. The other three admit files that are refused by default.
    """

    image_size: tuple[int, int, int]
    any_sop_class: bool = False
    include_nonvolumetric: bool = False
    allow_burned_in: bool = False
    max_bytes: int = 1 << 30
    timeout_s: float = 120.0
    val_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(int(side) for side in self.image_size))
        if len(self.image_size) != 3 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be three positive numbers [D, H, W]; found {list(self.image_size)}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}; it must be positive, e.g. {1 << 30} (1 GiB)")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be above 0 seconds, e.g. 120")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; it must lie between 0 and 1, e.g. 0.1")

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the cache format, in hex."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def read_options(self) -> dict[str, Any]:
        """The keyword arguments of read_volume."""
        names = ("any_sop_class", "include_nonvolumetric", "allow_burned_in", "max_bytes")
        return {name: getattr(self, name) for name in names}


def prepare(
    source: InputSource,
    out_dir: str | Path,
    settings: PrepareSettings,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedSet:
    """Prepares what is not prepared yet, in `out_dir/<settings hash>/`, and returns the finished set.

    The index is the same byte for byte with any number of workers and of interruptions. One source per `out_dir`,
    one process at a time. progress(done, total) is called per file. Raises ValueError for an empty source or an
    out_dir inside it, RuntimeError where the cache cannot be written.
    """
    out_dir = Path(out_dir)
    if isinstance(source, DirectorySource) and out_dir.resolve().is_relative_to(Path(source.root).resolve()):
        raise ValueError(f"the cache {out_dir} lies inside its own source; give a folder outside of data.root")
    files = source.files()
    folder = out_dir / settings.digest[:12]
    (folder / VOLUMES_NAME).mkdir(parents=True, exist_ok=True)
    for leftover in (folder / VOLUMES_NAME).glob("*.tmp"):  # of a run that was killed
        leftover.unlink()
    key = source.key or _kept_key(out_dir)
    tasks = [_task(file, folder, settings, key) for file in files]
    stamps = {task.id: _stamp(task.path) for task in tasks}
    finished = {record["id"]: record for record in _read_journal(folder) if _still_valid(record, stamps, folder)}
    to_do = [task for task in tasks if task.id not in finished]
    for record in _prepare_all(to_do, num_workers, settings):
        record = {**record, "stamp": stamps[record["id"]]}
        _append_to_journal(folder, record)
        finished[record["id"]] = record
        if progress is not None:
            progress(len(finished), len(tasks))
    _write_index(folder, finished, settings)
    return PreparedSet.load(folder)


def _prepare_all(tasks: list[PrepareTask], num_workers: int, settings: PrepareSettings) -> Iterator[Record]:
    """The records of the tasks, in their order; a decoder that died, hung or ran out of memory makes a rejected one."""
    limits = IsolationLimits(timeout_s=settings.timeout_s)
    outcomes = run_isolated(prepare_file, tasks, num_workers, limits)
    for task, outcome in zip(tasks, outcomes, strict=True):
        yield outcome.record if outcome.record is not None else _failed(task, outcome)


def _failed(task: PrepareTask, outcome: Outcome[Record]) -> Record:
    """The record of a task without a result; raises RuntimeError where the fault is not the file's."""
    match outcome.failure:
        case "died" | "timeout":
            return decoder_failure(task.id, f"{outcome.failure}, {outcome.detail}")
        case _ if outcome.detail == "MemoryError":
            return decoder_failure(task.id, "memory limit")
        case _:
            raise RuntimeError(
                f"preparing file {task.id} failed with {outcome.detail}: is the disk of {task.target.parent} full "
                "or read-only? Prepared files are kept; the same call continues"
            )


def _task(file: InputFile, folder: Path, settings: PrepareSettings, key: bytes) -> PrepareTask:
    file_id = keyed_id(key, file.key)
    return PrepareTask(
        path=file.path,
        id=file_id,
        target=volume_path(folder, file_id),
        image_size=settings.image_size,
        read_options=settings.read_options,
        key=key,
    )


def _kept_key(out_dir: Path) -> bytes:
    """The 32 random bytes beside the cache, created when first needed; whoever has them can test guesses of names."""
    path = out_dir / _KEY_NAME
    if not path.exists():
        descriptor = os.open(path.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".tmp"), path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"{path} holds {len(key)} bytes instead of {_KEY_BYTES}: restore it, or use a new cache folder"
        )
    return key


def _stamp(path: Path) -> list[int] | None:
    """Size in bytes and modification time in ns of an input, by which a replaced file is noticed; None if absent."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _still_valid(record: Record, stamps: dict[str, list[int] | None], folder: Path) -> bool:
    """True if the file of a journal entry is in the source, unchanged, and its array is where it was put."""
    file_id = record["id"]
    unchanged = file_id in stamps and stamps[file_id] == record["stamp"]
    return unchanged and (record["status"] == "rejected" or volume_path(folder, file_id).is_file())


def _read_journal(folder: Path) -> list[Record]:
    """The entries in the order of writing; a line torn by a kill is cut off."""
    path = folder / _JOURNAL_NAME
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.splitlines()]


def _append_to_journal(folder: Path, record: Record) -> None:
    """Adds one entry; it is on the disk when this returns, and its array was before."""
    with open(folder / _JOURNAL_NAME, "a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_index(folder: Path, records: dict[str, Record], settings: PrepareSettings) -> None:
    """index.jsonl and then dataset.json, sorted and without times, so that equal inputs give equal bytes."""
    patients = {file_id: record["patient"] for file_id, record in records.items() if record["status"] == "accepted"}
    splits, note = assign_splits(patients, settings.val_fraction, settings.split_seed)
    rows = [IndexRow.from_record({**records[file_id], "split": splits.get(file_id)}) for file_id in sorted(records)]
    accepted = [row for row in rows if row.status == "accepted"]
    dataset = {
        "format": FORMAT,
        "settings": asdict(settings),
        "settings_sha256": settings.digest,
        "versions": {name: found for name in _DECODERS if (found := _version(name)) is not None},
        "files": len(rows),
        "accepted": len(accepted),
        "rejected": dict(sorted(Counter(row.reason for row in rows if row.reason is not None).items())),
        "split": {split: sum(row.split == split for row in rows) for split in ("train", "val")},
        "split_note": note,
        "unknown": {
            "laterality": sum(row.laterality is None for row in accepted),
            "volumetric": sum(row.volumetric is None for row in accepted),
            "spacing_mm": sum(None in (row.spacing_mm or ()) for row in accepted),
        },
    }
    _write_if_new(folder / INDEX_NAME, "".join(row.to_json() + "\n" for row in rows))
    _write_if_new(folder / DATASET_NAME, json.dumps(dataset, indent=1) + "\n")


def _version(package: str) -> str | None:
    """The installed version of a package that the pixels went through."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_if_new(path: Path, text: str) -> None:
    """Writes a text atomically, unless the file holds it already."""
    if path.exists() and path.read_text() == text:
        return
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
