"""Ends the jobs of this checkout: TERM, time to save, KILL. By tag only, so nothing else is ever touched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker import records
from pretraining.fleet.on_worker.processes import chip_holders, describe, tagged

LEFTOVERS_S = 5.0  # for children of a first process that has ended, loaders for example
KILL_S = 15.0
LIBTPU_LOCK = Path("/tmp/libtpu_lockfile")


def end(checkout: Path, grace_s: float) -> dict[str, Any]:
    """Ends every job of this checkout that has processes; returns what was done and what is left, per tag."""
    alive = records.running(checkout)
    ended = [_end_one(checkout, record, grace_s) for record in records.all_records(checkout) if record["tag"] in alive]
    return {"ended": ended, "removed_lock": _remove_own_lock()}


def _end_one(checkout: Path, record: records.Record, grace_s: float) -> dict[str, Any]:
    tag, began = record["tag"], time.monotonic()
    if records.first_process_lives(record):
        _signal(record["pid"], signal.SIGTERM)
        _wait(lambda: not records.first_process_lives(record), grace_s)
    seconds = time.monotonic() - began
    if not records.first_process_lives(record):
        _wait(lambda: tag not in tagged(), LEFTOVERS_S)
    killed = _kill(tag)
    _wait(lambda: records.read_exit(checkout, record) is not None, 2.0)  # the keeper writes it just now
    left = [describe(pid) for pid in tagged().get(tag, [])]
    code = (records.read_exit(checkout, record) or {}).get("code")
    return {"tag": tag, "seconds": seconds, "killed": killed, "left": left, "code": code}


def _kill(tag: str) -> list[str]:
    """KILL to all that carries the tag, again and again while new children appear; returns whom it met."""
    met: dict[int, str] = {}
    deadline = time.monotonic() + KILL_S
    while (alive := tagged().get(tag)) and time.monotonic() < deadline:
        for pid in alive:
            met.setdefault(pid, describe(pid))
            _signal(pid, signal.SIGKILL)
        time.sleep(0.1)
    return list(met.values())


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself meanwhile
        os.kill(pid, number)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)


def _remove_own_lock() -> bool:
    """The lock file of libtpu outlives a killed run; it goes only when it is ours and nobody holds a chip."""
    try:
        if LIBTPU_LOCK.stat().st_uid != os.getuid() or chip_holders():
            return False
        LIBTPU_LOCK.unlink()
    except FileNotFoundError:
        return False
    return True
