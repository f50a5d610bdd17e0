"""metrics.jsonl: the record of a run, one JSON object a line, flushed with every call.

It outlives crashes, needs no network, and holds exactly the timeline that led to the present weights: what a
resumed run will train again moves aside first. An error while writing it is an error of the run.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OWN_FIELDS = frozenset({"step", "time"})


class JsonlTracker:
    """Appends {"step": .., "time": seconds since the epoch, name: value, ..} to `path`.

    resumed_step: the optimizer step that training continues from, 0 at a fresh start. Lines of later steps,
    left by an attempt that got further than its last checkpoint, move to <stem>.<attempt>.jsonl, where
    `attempt` names the present start. So do lines cut short by a kill.
    """

    def __init__(self, path: Path, *, attempt: str, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _move_aside(path, path.with_name(f"{path.stem}.{attempt}{path.suffix}"), resumed_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes one line.

        Raises ValueError for a metric named step or time, TypeError for a value that is no number, OSError
        when the disk refuses.
        """
        if taken := _OWN_FIELDS & metrics.keys():
            raise ValueError(f"metric name {sorted(taken)} is a field of every line; name it train/.. or val/..")
        values = {name: json_number(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}, allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Brings the file to the disk and closes it; the summary has a file of its own."""
        os.fsync(self._file.fileno())
        self._file.close()


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
