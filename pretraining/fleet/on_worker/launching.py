"""Starts a job on this worker: detached from the connection, its output in a file, its exit code written down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker import records, repository
from pretraining.fleet.on_worker.processes import TAG_VARIABLE, Refused, boot_id, start_ticks

SCRIPT = "run_tpu_xla.sh"
# Left over from a preflight or a login shell, they would give the chips another topology than they have.
STRAY_VARIABLES = ("TPU_PROCESS_BOUNDS", "TPU_VISIBLE_CHIPS", "TPU_SKIP_MDS_QUERY", "CLOUD_TPU_TASK_ID")


def launch(checkout: Path, job: dict[str, Any], environment: dict[str, str]) -> records.Record:
    """Runs `bash run_tpu_xla.sh ARGUMENTS` and returns its record.

    job: name, worker, sha, arguments (the configuration first), started (for the name of the run folder).
    Raises Refused while a job of this checkout runs, for another commit, files that differ, a missing configuration.
    """
    state = repository.state(checkout)
    if state is None or state["sha"] != job["sha"] or state["dirty"]:
        raise Refused("{} is not at {}, or not clean: octfm fleet deploy".format(checkout, job["sha"]))
    if alive := records.running(checkout):
        raise Refused("a job runs here already: {}".format(", ".join(sorted(alive))))
    if not (checkout / job["arguments"][0]).is_file():
        raise Refused("{} has no {}; give a configuration that is in the clone".format(checkout, job["arguments"][0]))
    folder = records.fleet_folder(checkout) / job["name"]
    folder.mkdir(parents=True)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.setsid()  # the end of the connection is a HUP for its session: the keeper has one of its own
        if os.fork() == 0:
            _keeper(checkout, folder, job, environment, writer)
        os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as answers:
        trouble = answers.read()  # until the keeper closes it
    if trouble:
        raise Refused(f"{SCRIPT} could not be started: {trouble}")
    return json.loads((folder / "job.json").read_text())


def _keeper(checkout: Path, folder: Path, job: dict[str, Any], environment: dict[str, str], writer: int) -> None:
    """Top of the keeper, which must never return into the agent's code that it is a copy of."""
    try:
        _keep(checkout, folder, job, environment, writer)
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _keep(checkout: Path, folder: Path, job: dict[str, Any], environment: dict[str, str], writer: int) -> None:
    """The keeper: starts the job, says so, waits for its end, writes its exit code. It carries no tag itself.

    So that a KILL to all that carries the tag still leaves somebody to write down the code.
    """
    os.closerange(3, writer)  # the lock of the agent, among others
    os.closerange(writer + 1, 1024)
    with open(os.devnull) as nothing, (folder / "output.log").open("ab", buffering=0) as output:
        for ours, theirs in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(ours.fileno(), theirs)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tag = "{}/{}".format(job["name"], job["worker"])
    inherited = {name: value for name, value in os.environ.items() if name not in STRAY_VARIABLES}
    command = ["bash", SCRIPT, *job["arguments"]]
    process = subprocess.Popen(
        command,
        cwd=str(checkout),
        env={**inherited, **environment, "OCTFM_STARTED": job["started"], TAG_VARIABLE: tag},
        start_new_session=True,
    )
    record: records.Record = {
        "job": job["name"],
        "tag": tag,
        "worker": job["worker"],
        "sha": job["sha"],
        "arguments": job["arguments"],
        "started": job["started"],
        "command": command,
        "pid": process.pid,
        "start_ticks": start_ticks(process.pid, remains_too=True),  # it may have ended within a millisecond
        "boot_id": boot_id(),
        "time": time.time(),
    }
    try:
        records.write(folder / "job.json", record)
    except OSError:  # a job without a record could never be stopped
        process.kill()
        raise
    os.close(writer)
    records.write(folder / "exit.json", {"code": process.wait(), "time": time.time()})
