"""What a run needs of this host: Python, disk, memory, free chips, free ports, git, a clean environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker import processes, records, repository
from pretraining.fleet.on_worker.ending import LIBTPU_LOCK
from pretraining.fleet.on_worker.launching import STRAY_VARIABLES

# The order of scripts/environment.sh.
CANDIDATES = ("python3.12", "python3.11", "python3")


def examine(checkout: Path, python: str | None, ports: list[int]) -> dict[str, Any]:
    """Facts, without a verdict; lists name what is in the way."""
    existing = next(folder for folder in (checkout, *checkout.parents) if folder.is_dir())
    disk = shutil.disk_usage(str(existing))
    memory = _memory()
    return {
        "python": _python(python),
        "git": _first_line(["git", "--version"]),
        "clone": repository.state(checkout) if shutil.which("git") else None,
        "disk_free_gb": disk.free / 1e9,
        "memory_free_gb": memory.get("MemAvailable", 0) / 1e6,
        "memory_gb": memory.get("MemTotal", 0) / 1e6,
        "num_chips": len(processes.chip_files()),
        "num_gpus": processes.num_gpus(),
        "chips_held": processes.chip_holders(),
        "ports_held": processes.port_holders(ports),
        "jobs": {tag: [processes.describe(pid) for pid in found] for tag, found in records.running(checkout).items()},
        "stray_variables": [name for name in STRAY_VARIABLES if name in os.environ],
        "foreign_lock": _foreign_lock(),
    }


def _python(wanted: str | None) -> str | None:
    """`3.11.7 (/usr/bin/python3.11)` of the Python that a run would take; None where there is none that fits."""
    for candidate in (wanted,) if wanted else CANDIDATES:
        path = shutil.which(os.path.expanduser(candidate))
        found = re.match(r"Python (3\.(\d+)\.\S+)", _first_line([path, "--version"]) or "") if path else None
        if found and 11 <= int(found.group(2)) <= 13:
            return f"{found.group(1)} ({path})"
    return None


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.decode(errors="replace").splitlines() or [""])[0]


def _memory() -> dict[str, int]:
    """/proc/meminfo in kB."""
    with open("/proc/meminfo") as file:
        rows = (line.split() for line in file)
        return {row[0].rstrip(":"): int(row[1]) for row in rows}


def _foreign_lock() -> bool:
    """Whether libtpu's lock file belongs to another user: then a start fails although the chips are free."""
    return LIBTPU_LOCK.exists() and LIBTPU_LOCK.stat().st_uid != os.getuid()
