"""Answers one request of the operator: one JSON line on stdout, marked, since login scripts may print as well."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker import ending, health, launching, outcome, processes, records, repository

MARK = "octfm-fleet-answer "
FOLLOW_S = 0.5


def answer(request: dict[str, Any]) -> None:
    """Prints {"host", "time", and the action's reply, or "refused": why}; a defect is a traceback and no answer."""
    reply: dict[str, Any] = {"time": time.time()}
    checkout = Path(os.path.expanduser(request["checkout"]))
    try:
        reply.update(_act(request, checkout))
    except processes.Refused as refusal:
        reply["refused"] = str(refusal)
    except OSError as error:
        reply["refused"] = f"{error.filename or checkout}: {error.strerror or error}"
    reply["host"] = processes.host_name()
    print(MARK + json.dumps(reply), flush=True)


def _act(request: dict[str, Any], checkout: Path) -> dict[str, Any]:
    action = request["action"]
    if action == "check":
        return health.examine(checkout, request["python"], request["ports"])
    if action == "deploy":
        with _alone(checkout):
            if alive := records.running(checkout):
                raise processes.Refused("a job runs here: {}; octfm fleet stop".format(", ".join(sorted(alive))))
            return {"clone": repository.deploy(checkout, request["repository"], request["sha"])}
    if action == "survey":
        last = records.newest(checkout)
        jobs = sorted(records.running(checkout))
        chips, gpus = len(processes.chip_files()), processes.num_gpus()
        held = processes.port_holders(request["ports"])
        clone = repository.state(checkout)
        return {"clone": clone, "jobs": jobs, "last": last, "num_chips": chips, "num_gpus": gpus, "ports_held": held}
    if action == "start":
        with _alone(checkout):
            return {"record": launching.launch(checkout, request["job"], request["environment"])}
    if action == "status":
        return outcome.status(checkout, request["num_lines"])
    if action == "tail":
        return outcome.tail(checkout, request["num_lines"])
    if action == "follow":
        return _follow(checkout, request["num_lines"])
    if action == "stop":
        return ending.end(checkout, request["grace_s"])
    if action == "prove":
        left = [processes.describe(pid) for found in records.running(checkout).values() for pid in found]
        held = processes.chip_holders() + processes.port_holders(request["ports"])
        return {"left": left, "held": held}
    raise processes.Refused(f"unknown action {action!r}")


@contextlib.contextmanager
def _alone(checkout: Path) -> Iterator[None]:
    """Two operators at once: the second one's deploy or start waits, then meets what the first one did."""
    lock = checkout.with_name(f".{checkout.name}.octfm-fleet-lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _follow(checkout: Path, num_lines: int) -> dict[str, Any]:
    """Prints the output as it comes, then that of the next job, until stdin ends: the operator has gone."""
    job, position = None, 0
    while True:
        record = records.newest(checkout)
        if record is not None:
            log = records.fleet_folder(checkout) / record["job"] / "output.log"
            if record["job"] != job:
                position = _print_end(log, num_lines) if job is None else 0
                job = record["job"]
            position = _print_from(log, position)
        if select.select([sys.stdin], [], [], FOLLOW_S)[0] and not sys.stdin.readline():
            return {"job": job}


def _print_end(log: Path, num_lines: int) -> int:
    """Prints the last whole lines; returns where the next one begins."""
    end = log.stat().st_size
    with log.open("rb") as file:
        begin = max(0, end - 1000 * num_lines)
        file.seek(begin)
        text = file.read(end - begin)
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.splitlines()[-num_lines:]:
        print(line.decode(errors="replace"), flush=True)
    return begin + len(whole)


def _print_from(log: Path, position: int) -> int:
    """Prints whole lines behind `position`; returns where the next one begins."""
    with log.open("rb") as file:
        file.seek(position)
        text = file.read(1 << 20)
    whole = text.rfind(b"\n") + 1
    if whole:
        sys.stdout.write(text[:whole].decode(errors="replace"))
        sys.stdout.flush()
    return position + whole
