"""What a worker writes down about jobs: <checkout>/runs/.fleet/<job>/{job.json, output.log, exit.json}."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict  # noqa: UP035

from pretraining.fleet.on_worker.processes import boot_id, start_ticks, tagged

Record = Dict[str, Any]  # noqa: UP006 - evaluated at import, by Python 3.8 too


def fleet_folder(checkout: Path) -> Path:
    """All records of a checkout; git ignores runs/."""
    return checkout / "runs" / ".fleet"


def write(path: Path, record: Record) -> None:
    """Temporary name, then rename."""
    temporary = path.with_name("." + path.name)
    temporary.write_text(json.dumps(record) + "\n")
    os.replace(str(temporary), str(path))


def all_records(checkout: Path) -> list[Record]:
    """Every job that this worker has started, the oldest first."""
    found = [json.loads(path.read_text()) for path in fleet_folder(checkout).glob("*/job.json")]
    return sorted(found, key=lambda record: record["time"])


def newest(checkout: Path) -> Record | None:
    """The job that status, logs and --again mean."""
    records = all_records(checkout)
    return records[-1] if records else None


def running(checkout: Path) -> dict[str, list[int]]:
    """Tag -> processes, of those jobs of this checkout that have any."""
    alive = tagged()
    return {record["tag"]: alive[record["tag"]] for record in all_records(checkout) if record["tag"] in alive}


def first_process_lives(record: Record) -> bool:
    """Whether the recorded pid is still that process, and not another one that has got its number."""
    return record["boot_id"] == boot_id() and start_ticks(record["pid"]) == record["start_ticks"]


def read_exit(checkout: Path, record: Record) -> Record | None:
    """`code` (negative: a signal) and `time` of the first process; None while it runs, or after a reboot."""
    try:
        return json.loads((fleet_folder(checkout) / record["job"] / "exit.json").read_text())
    except FileNotFoundError:
        return None


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The end of a log that may be large; progress bars count as lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 1000 * max(num_lines, 50)))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-num_lines:]
