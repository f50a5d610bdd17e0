"""Processor time of the processes below this one, from /proc: a loader's work shows on no stopwatch of the trainer."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> dict[str, float]:
    """User and system seconds of all living descendants, summed by the name of their program; Linux only."""
    parents: dict[int, int] = {}
    used: dict[int, tuple[str, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (text := _stat(folder)) is not None:
            name, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()
            parents[int(folder.name)] = int(fields[1])
            used[int(folder.name)] = (name, (int(fields[11]) + int(fields[12])) / _TICKS)
    total: dict[str, float] = {}
    for process, (name, seconds) in used.items():
        if _descends(process, parents):
            total[name] = total.get(name, 0.0) + seconds
    return total


def _stat(folder: Path) -> str | None:
    try:
        return (folder / "stat").read_text()
    except OSError:  # it has ended meanwhile
        return None


def _descends(process: int, parents: dict[int, int]) -> bool:
    above = parents[process]
    while above in parents and above != os.getpid():
        above = parents[above]
    return above == os.getpid()
