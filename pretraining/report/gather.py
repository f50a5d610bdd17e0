"""A run folder -> everything that its page says, read once: configuration, record, summary, exits, probes, pictures.

A run may be finished, unfinished or dead, so any file may be missing, torn or of another version. What cannot be read
becomes a line of `notes`, never an error; only a folder that is no run is one. Reads the folder and nothing else.
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from data_setup.index import PreparedSet
from oct_foundation.diagnostics.readings import Reading, readings_of
from oct_foundation.runtime.exits import ExitRecord, read_exits
from oct_foundation.tracking.jsonl import read_rows
from oct_foundation.tracking.redact import REDACTED, looks_secret, redact, redact_command
from pretraining.report.probe_files import ProbeFile, read_probes
from pretraining.run_folder import RunFolder

_LOG_LINES, _LOG_BYTES = 25, 1 << 16  # of the end of train.log
_PICTURES = re.compile(r"pictures-(\d+)\.npz")
Row = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the page knows. `rows`: the lines of metrics.jsonl that are whole, in their order.

    checkpoints: manifests as they are on file, oldest first. pictures: by step, ascending. last_time: of the
    last row, UTC. num_lost_rows: rows of steps that a restart had to train again.
    """

    config: dict[str, Any]
    config_yaml: str
    run_id: str | None
    rows: list[Row]
    readings: list[Reading]
    summary: dict[str, Any] | None
    supervisor: dict[str, Any] | None
    exits: list[ExitRecord]
    checkpoints: list[dict[str, Any]]
    data: dict[str, Any]
    bad_files: dict[str, int] | None
    pictures: dict[int, Path]
    probes: tuple[ProbeFile, ...]
    last_time: str | None
    num_lost_rows: int
    log_tail: list[str]
    notes: list[str]

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of each row that has the metric."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def planned(self, name: str) -> int | None:
        """A whole number that every reading repeats (total_steps, warmup_steps), from the newest; None without it."""
        value = self.readings[-1].values.get(name) if self.readings else None
        return int(value) if value is not None and math.isfinite(value) else None

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, None where it or a section is absent."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def gather(path: Path) -> RunRecord:
    """Reads the run in `path`; raises ValueError with a remedy for what is no run folder."""
    folder = RunFolder(path)
    _check_is_run(folder)
    notes: list[str] = []
    config, config_yaml = _config(folder.config, notes)
    rows = _rows(folder.metrics, notes)
    summary = _json_object(folder.summary, notes)
    data, refused = _prepared(folder.prepared, notes)
    if summary is not None and isinstance(summary.get("bad_files"), dict):
        refused = {str(reason): count for reason, count in summary["bad_files"].items() if isinstance(count, int)}
    aside = sorted(path.glob("metrics.*.jsonl"))
    return RunRecord(
        config=config,
        config_yaml=config_yaml,
        run_id=_first_line(path / "run_id"),
        rows=rows,
        readings=readings_of(rows),
        summary=summary,
        supervisor=_json_object(path / "supervisor.json", notes),
        exits=_exits(folder.exits, notes),
        checkpoints=_checkpoints(path / "checkpoints", notes),
        data=data,
        bad_files=refused,
        pictures=_pictures(path / "diagnostics"),
        probes=read_probes(path / "probes", notes),
        last_time=_last_time(folder.metrics),
        num_lost_rows=sum(len(_rows(file, notes)) for file in aside),
        log_tail=_log_tail(folder.log),
        notes=notes,
    )


def without_secrets(text: str) -> str:
    """A line for people, in which what looks like a key, or stands behind the name of one, is replaced."""
    if looks_secret(text):
        return REDACTED
    return " ".join(redact_command(text.split(" ")))


def _check_is_run(folder: RunFolder) -> None:
    """Raises ValueError unless something is there that a run has written."""
    if str(folder.path).startswith("gs:"):
        raise ValueError(f"{folder.path}: the report reads from disk; copy the run folder to this machine first")
    if not folder.path.is_dir():
        raise ValueError(f"{folder.path} is no folder; give the run folder, which octfm train prints as its first line")
    marks = (folder.config, folder.metrics, folder.summary, folder.log)
    if not any(mark.is_file() for mark in marks):
        names = ", ".join(mark.name for mark in marks)
        raise ValueError(
            f"{folder.path} is no run folder: it has none of {names}. Give the folder that octfm train prints as "
            f"its first line, mostly runs/<name>-<time>"
        )


def _config(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    """The configuration as a tree and as text, both without secrets; empty where there is none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: settings are unknown.")
        return {}, ""
    except (OSError, ValueError, yaml.YAMLError):  # ValueError: a date that is none
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} cannot be read: settings are unknown.")
        return {}, ""
    safe = _without_secret_looks(redact(found))
    return safe, yaml.safe_dump(safe, sort_keys=False, allow_unicode=True)


def _without_secret_looks(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_secret_looks(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_without_secret_looks(value) for value in node]
    return REDACTED if looks_secret(node) else node


def _rows(path: Path, notes: list[str]) -> list[Row]:
    """Whole lines; of these what is a number."""
    rows: list[Row] = []
    try:
        for row in read_rows(path):
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            rows.append(numbers)
    except (OSError, ValueError, AttributeError, OverflowError):
        notes.append(f"{path.name} is damaged after {len(rows)} rows; what follows there is not shown.")
    return rows


def _last_time(path: Path) -> str | None:
    """When the last whole row was written, to the second."""
    for line in reversed(_tail(path).splitlines()):
        with suppress(ValueError, TypeError, KeyError, OverflowError, OSError):
            return datetime.fromtimestamp(json.loads(line)["time"], tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return None


def _log_tail(path: Path) -> list[str]:
    """The last lines of the log: of a process that was killed nothing else speaks."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in _tail(path).splitlines()]
    return [without_secrets(line) for line in lines if line][-_LOG_LINES:]


def _tail(path: Path) -> str:
    """The last 64 kB of a file, from a whole line on; "" where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _LOG_BYTES)
        file.seek(start)
        text = file.read().decode(errors="replace")
        return text.partition("\n")[2] if start else text
    return ""


def _first_line(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()[:40] or None
    return None


def _json_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The object in a file; None, and a note unless the file is just absent, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} cannot be read and is left out.")
    return None


def _exits(folder: Path, notes: list[str]) -> list[ExitRecord]:
    with suppress(OSError, ValueError, TypeError):  # cut by a full disk, or of another version
        found = read_exits(folder)
        if all(isinstance(one.reason, str) and isinstance(one.step, int | None) for one in found):
            return found
    notes.append("The ranks' own records of their end (exits/) cannot be read.")
    return []


def _checkpoints(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Manifests of the checkpoints that lie in the run folder; elsewhere (a bucket) nobody looks."""
    found = [_json_object(path, notes) for path in sorted(folder.glob("step-*/manifest.json"))]
    return [manifest for manifest in found if manifest is not None and isinstance(manifest.get("step"), int)]


def _prepared(folder: Path, notes: list[str]) -> tuple[dict[str, Any], dict[str, int] | None]:
    """dataset.json, and how many files were refused, by reason; ({}, None) where the data lie elsewhere."""
    if not folder.is_dir():
        return {}, None
    try:
        prepared = PreparedSet.load(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        notes.append("The prepared data (prepared/) are not finished, or cannot be read.")
        return {}, None
    return prepared.info, prepared.bad_by_reason()


def _pictures(folder: Path) -> dict[int, Path]:
    found = {int(match[1]): path for path in folder.glob("*.npz") if (match := _PICTURES.fullmatch(path.name))}
    return dict(sorted(found.items()))
