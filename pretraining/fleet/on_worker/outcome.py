"""How the newest job of this worker is doing, or how it ended: from its record, its log and its run folder."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker import records
from pretraining.fleet.on_worker.processes import boot_id, describe, tagged

LOSSES = ("train/loss", "loss")


def status(checkout: Path, num_lines: int) -> dict[str, Any]:
    """`job` None where none was started; `state`: running, ended, lost (a reboot, or its keeper was killed)."""
    record = records.newest(checkout)
    if record is None:
        return {"job": None}
    alive, ended = records.first_process_lives(record), records.read_exit(checkout, record)
    log = records.fleet_folder(checkout) / record["job"] / "output.log"
    folder = run_folder(checkout, record)
    state = "running" if alive else "ended" if ended else "lost"
    others = [pid for pid in tagged().get(record["tag"], []) if pid != record["pid"]]
    return {
        "job": record["job"],
        "sha": record["sha"],
        "state": state,
        "rebooted": record["boot_id"] != boot_id(),
        "pid": record["pid"],
        "code": ended["code"] if ended else None,
        "leftovers": [] if alive else [describe(pid) for pid in others],
        "lines": records.last_lines(log, num_lines),
        "line_age_s": time.time() - log.stat().st_mtime if log.exists() else None,
        "metrics": _last_metrics(folder) if folder else None,
        "restarts": _restarts(folder) if folder else None,
        "exits": _exits(folder, record["time"]) if folder else [],
        "out_of_memory": None if alive else _last_memory_kill(record["time"]),
    }


def run_folder(checkout: Path, record: records.Record) -> Path | None:
    """Where the run writes: output_dir of the command line or the configuration, else runs/<name>-<started>."""
    given = [item.partition("=")[2] for item in record["arguments"] if item.startswith("output_dir=")]
    config = checkout / record["arguments"][0]
    if not given and config.is_file():
        given = re.findall(r"^output_dir:\s*([^\s#]+)", config.read_text(errors="replace"), re.MULTILINE)
    if given and given[-1] not in ("null", "~"):
        folder = checkout / given[-1]
        return folder if folder.is_dir() else None
    found = sorted((checkout / "runs").glob("*-{}".format(record["started"])))
    return found[-1] if found else None


def tail(checkout: Path, num_lines: int) -> dict[str, Any]:
    """The end of the newest job's output."""
    record = records.newest(checkout)
    if record is None:
        return {"job": None, "lines": []}
    log = records.fleet_folder(checkout) / record["job"] / "output.log"
    return {"job": record["job"], "lines": records.last_lines(log, num_lines)}


def _last_metrics(folder: Path) -> dict[str, Any] | None:
    """step, loss and age of the last training line; only global rank 0 writes one, wherever it is."""
    for line in reversed(records.last_lines(folder / "metrics.jsonl", 50)):
        try:
            row = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        loss = next((row[name] for name in LOSSES if name in row), None)
        if loss is not None:
            return {"step": row["step"], "loss": loss, "age_s": time.time() - row["time"]}
    return None


def _restarts(folder: Path) -> int | None:
    """How often the supervisor has started the job again; see pretraining/supervise.py."""
    try:
        return json.loads((folder / "supervisor.json").read_text())["restarts"]
    except (OSError, ValueError, KeyError):
        return None


def _exits(folder: Path, since: float) -> list[dict[str, Any]]:
    """What ranks of this host have written down on leaving since then; see oct_foundation/runtime/exits.py."""
    found = []
    for path in sorted((folder / "exits").glob("rank-*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return [record for record in found if record["time"] >= since]


def _last_memory_kill(since: float) -> str | None:
    """The kernel's last word on a process that it killed for memory since then; None where it may not be read."""
    for command in (["dmesg"], ["sudo", "-n", "dmesg"]):
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return last_memory_kill(done.stdout.decode(errors="replace"), since)
    return None


def last_memory_kill(kernel_log: str, since: float) -> str | None:
    """The last line about memory among `[seconds since boot] text` lines; None where that is older than `since`."""
    with open("/proc/uptime") as file:
        booted = time.time() - float(file.read().split()[0])
    for line in reversed(kernel_log.splitlines()):
        found = re.match(r"\[\s*([\d.]+)\]\s*(.*(?:[Oo]ut of memory|oom-kill).*)", line)
        if found and booted + float(found.group(1)) >= since - 5:
            return found.group(2)
    return None
