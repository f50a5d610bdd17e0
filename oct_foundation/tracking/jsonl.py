"""metrics.jsonl: the record of a run, one JSON object a line, on file with every call.

It outlives crashes, needs no network, and holds exactly the timeline that led to the present weights: what a
resumed run will train again moves aside first. While the disk refuses it (full, over quota) rows wait in memory.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# A few MB; at a row in ten seconds more than a day, in which somebody notices the warning.
HELD_ROWS = 10_000
_OWN_FIELDS = frozenset({"step", "time"})
_log = logging.getLogger(__name__)


class JsonlTracker:
    """Appends {"step": .., "time": seconds since the epoch, name: value, ..} to `path`.

    resumed_step: the optimizer step that training continues from, 0 at a fresh start. Lines of later steps,
    left by an attempt that got further than its last checkpoint, move to <stem>.<attempt>.jsonl, where
    `attempt` names the present start. So do lines cut short by a kill. Raises OSError where `path` cannot be opened.
    """

    def __init__(self, path: Path, *, attempt: str, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _move_aside(path, path.with_name(f"{path.stem}.{attempt}{path.suffix}"), resumed_step)
        self._path = path
        self._file = path.open("ab", buffering=0)  # a buffer of Python's would keep half a line that the disk refused
        self._good_bytes = self._file.seek(0, os.SEEK_END)  # as long as the file is in whole lines
        self._held: deque[bytes] = deque()  # lines that are not on file, oldest first
        self._num_lost = 0
        self._refused = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes one line, and before it those that the disk has refused so far.

        A disk that refuses is one warning, not an error of the run. Raises ValueError for a metric named step or time,
        TypeError for a value that is no number.
        """
        if taken := _OWN_FIELDS & metrics.keys():
            raise ValueError(f"metric name {sorted(taken)} is a field of every line; name it train/.. or val/..")
        values = {name: json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), **values}, allow_nan=False) + "\n"
        if len(self._held) == HELD_ROWS:
            self._held.popleft()
            self._num_lost += 1
        self._held.append(line.encode())
        self._write_held()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Numbers only."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Brings the file to the disk and closes it, as far as the disk lets it; the summary has a file of its own."""
        self._write_held()
        if missing := len(self._held) + self._num_lost:
            _log.warning("%s lacks %d rows that the disk has refused", self._path, missing)
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            _log.warning("the last rows of %s may be lost: %s", self._path, error.strerror)

    def _write_held(self) -> None:
        """Line by line, so that each is either on file or held."""
        num_late = len(self._held) - 1
        try:
            if self._refused:
                self._file.truncate(self._good_bytes)
            while self._held:
                self._append(self._held[0])
                self._good_bytes += len(self._held.popleft())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._good_bytes)  # no half line for those who read in the meantime
            if not self._refused:
                _log.warning("%s: %s. Training goes on; rows wait in memory", self._path, error.strerror)
            self._refused = True
        else:
            if self._refused:
                _log.info("%s can be written again; %d rows that waited are on file", self._path, num_late)
            self._refused = False

    def _append(self, line: bytes) -> None:
        """The whole line or OSError; a disk that gets full takes a part of it first."""
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]


def read_rows(path: Path) -> Iterator[dict[str, float]]:
    """The rows of a record: `step` and the metrics, as numbers; none without a file, and none for torn lines."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if math.isfinite(_step_of(line)):
                row = json.loads(line)
                yield {name: float(value) if isinstance(value, str) else value
                       for name, value in row.items() if name != "time"}  # fmt: skip


def json_number(value: float) -> float | str:
    """`value` as valid JSON: a number, or "nan", "inf", "-inf", which JSON lacks; float() reads them all."""
    if not isinstance(value, int | float):
        raise TypeError(f"a metric is a {type(value).__name__}; trackers take host numbers: fetch and convert first")
    return value if math.isfinite(value) else str(float(value))


def _move_aside(path: Path, aside: Path, resumed_step: int) -> None:
    """Splits `path` at `resumed_step`: later and unreadable lines go to the end of `aside`."""
    lines = path.read_bytes().splitlines()
    kept = [line for line in lines if _step_of(line) <= resumed_step]
    moved = [line for line in lines if _step_of(line) > resumed_step]
    if not moved and path.read_bytes().endswith(b"\n"):
        return
    # Aside first: a kill in between leaves lines twice, never nowhere.
    with aside.open("ab") as file:
        _write_lines(file, moved)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        _write_lines(file, kept)
    os.replace(temporary, path)


def _write_lines(file: Any, lines: list[bytes]) -> None:
    file.writelines(line + b"\n" for line in lines)
    file.flush()
    os.fsync(file.fileno())


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for one that is no record, so that it counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
