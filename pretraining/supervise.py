"""Starts the training job, passes stop signals on to it, and starts it again where that can help.

    python -m pretraining.supervise [--max-restarts N] [--backoff S] [--grace S] -- COMMAND ...

run_tpu_xla.sh becomes this process, so it must start at once and not die of what kills a job: no torch, no YAML. It
judges by exit code and progress, never by output. Its own exit code is that of the last job. docs/decisions/008.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from oct_foundation.runtime.exits import ExitCode, ExitRecord, clear_exits, combined_code, newest_step, read_exits
from oct_foundation.tracking.redact import redact_command
from pretraining.process_group import SignalQueue, end_leftovers, start_in_own_group
from pretraining.run_folder import RunFolder, write_atomic

MAX_BACKOFF_S = 300.0
_LOOK_FOR_FOLDER_S = 0.2
_METRICS_TAIL_BYTES = 1 << 16  # a line is below 4 kB


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how fast to start again, and how long a job that was asked to stop may take.

    max_restarts: in a row without progress, 0 for never; clean stops do not count. backoff_s: before the first of
    them, then doubled, up to 300. No jitter: the hosts of a pod must come back together.
    """

    max_restarts: int = 5
    backoff_s: float = 10.0
    grace_s: float = 60.0  # half of it for saving: a Spot machine has 30

    def __post_init__(self) -> None:
        given = {"--max-restarts": self.max_restarts, "--backoff": self.backoff_s, "--grace": self.grace_s}
        for option, value in given.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{option} is {value}; 0 or more is allowed")

    def pause_s(self, restart: int) -> float:
        """Seconds before the restart with this number in a row, from 1."""
        return min(self.backoff_s * 2.0 ** min(restart - 1, 60), MAX_BACKOFF_S)


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """code: what the end means; reason: in words; step: the newest on record, None before the first."""

    code: int
    reason: str
    step: int | None

    @property
    def worth_a_restart(self) -> bool:
        """Codes that are not ours (134 of a shell) count as failures."""
        try:
            return ExitCode(self.code).worth_a_restart
        except ValueError:
            return True

    def __str__(self) -> str:
        name = f" ({ExitCode(self.code).name})" if self.code in list(ExitCode) else ""
        at = "before its first step" if self.step is None else f"at step {self.step}"
        return f"exit code {self.code}{name} {at}: {self.reason}"


class Supervisor:
    """One job at a time, in a process group of its own; `run` returns the exit code of the last one."""

    def __init__(self, command: Sequence[str], patience: Patience, status: Path) -> None:
        """status: the file into which the job writes {"folder": its run folder} as soon as it knows it."""
        self._command, self._patience, self._status = list(command), patience, status
        self._signals = SignalQueue()
        self._folder: RunFolder | None = None
        self._asked_at: float | None = None  # when the first stop signal came
        self._killed = False
        self._restarts = 0
        self._started = time.time()

    def run(self) -> int:
        """Until the job is done, was asked to stop, cannot be helped by a restart, or makes no progress."""
        newest, in_a_row, stops = -1, 0, 0
        while True:
            end = self._run_job()
            if end.code == ExitCode.DONE:
                break
            if self._asked_at is not None or not end.worth_a_restart or self._patience.max_restarts == 0:
                self._say(f"the job ended with {end}; it is not started again")
                break
            if end.step is not None and end.step > newest:
                newest, in_a_row = end.step, 0
            if end.code == ExitCode.STOPPED:  # a notice of maintenance stands for up to an hour, and stops each start
                stops += 1
                pause_s, count = self._patience.pause_s(stops), "a clean stop, which does not count"
            elif in_a_row >= self._patience.max_restarts:
                self._say(self._given_up(end, newest, in_a_row + 1))
                break
            else:
                in_a_row, stops = in_a_row + 1, 0
                pause_s = self._patience.pause_s(in_a_row)
                count = f"{in_a_row} of {self._patience.max_restarts} without progress"
            self._say(f"the job ended with {end}; restart in {pause_s:g} s ({count})")
            if self._asked_within(pause_s):
                self._say("asked to stop while no job ran; it is not started again")
                break
            self._restarts += 1
        self._write_record(job=None, code=end.code)
        return end.code

    def _run_job(self) -> JobEnd:
        if self._folder is not None:
            with suppress(OSError):  # the job clears them as well
                clear_exits(self._folder.exits)
        try:
            # Half of the grace: a rank that is not done by then says so, and is not cut off in the middle.
            grace = {"OCTFM_GRACE_S": f"{self._patience.grace_s / 2:g}"}
            environment = {**os.environ, "OCTFM_STATUS": str(self._status), **grace}
            job = start_in_own_group(self._command, environment)
        except OSError as error:  # no memory for a process, right after a job that ran out of it
            return JobEnd(code=ExitCode.FAILED, reason=f"no process can be started: {error}", step=None)
        self._write_record(job=job.pid)
        while job.poll() is None:
            for stop in self._signals.wait(self._next_look_s()):
                self._pass_on(stop, job)
            if self._asked_at is not None and time.monotonic() - self._asked_at >= self._patience.grace_s:
                self._kill(job, f"the job has not ended within {self._patience.grace_s:g} s")
            if self._folder is None and self._find_folder():
                self._write_record(job=job.pid)
        if self._folder is None:
            self._find_folder()
        if left := end_leftovers(job.pid):
            self._say(f"{len(left)} processes of the job had stayed and are killed: {', '.join(map(str, left))}")
        return self._judge(job.returncode)

    def _next_look_s(self) -> float | None:
        """For how long nothing but a signal can happen."""
        if self._asked_at is not None and not self._killed:
            return max(0.0, self._asked_at + self._patience.grace_s - time.monotonic())
        return _LOOK_FOR_FOLDER_S if self._folder is None else None

    def _pass_on(self, stop: signal.Signals, job: subprocess.Popen[bytes]) -> None:
        """The first one goes to the job's first process, which knows how to stop the others; the second one kills."""
        if self._asked_at is not None:
            self._kill(job, f"{stop.name} again")
            return
        self._asked_at = time.monotonic()
        job.send_signal(stop)
        grace = f"{self._patience.grace_s:g} s"
        self._say(f"{stop.name}: process {job.pid} is to save and end within {grace}; a second signal kills it")

    def _kill(self, job: subprocess.Popen[bytes], why: str) -> None:
        if not self._killed and job.returncode is None:  # not waited for: the group's number is still the job's
            self._killed = True
            self._say(f"{why}: its processes are killed")
            os.killpg(job.pid, signal.SIGKILL)

    def _asked_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._signals.wait(left):
                return True
        return False

    def _judge(self, returncode: int) -> JobEnd:
        """What the ranks have written down beats a bare 1 and a death by a signal."""
        records = self._records()
        code, reason = returncode, "its last lines say why"
        if returncode < 0:
            code = ExitCode.FAILED if self._asked_at is None else ExitCode.STOPPED_UNSAVED
            hint = ", perhaps out of memory" if returncode == -signal.SIGKILL and not self._killed else ""
            reason = f"killed by signal {-returncode}{hint}"
        if returncode < 0 or returncode == ExitCode.FAILED:
            code = combined_code(records) or code
        if records:
            reason = f"{records[0].reason} (rank {records[0].rank} on {records[0].host})"
        steps = [record.step for record in records if record.step is not None]
        if self._folder is not None:
            steps += logged_steps(self._folder.metrics)
            with suppress(OSError, ValueError):  # cut by the kill
                if (theirs := newest_step(self._folder.exits)) is not None:  # this host may have no metrics
                    steps.append(theirs)
        return JobEnd(code=int(code), reason=reason, step=max(steps, default=None))

    def _records(self) -> list[ExitRecord]:
        try:
            return read_exits(self._folder.exits) if self._folder else []
        except (OSError, ValueError, TypeError) as error:  # cut by a full disk, or of another version
            self._say(f"the ranks' records cannot be read: {error}")
            return []

    def _given_up(self, end: JobEnd, newest: int, times: int) -> str:
        """One message that says all: where it dies and of what, and how to go on."""
        at = "before its first step" if newest < 0 else f"without getting past step {newest}"
        suspect = "the data" if newest < 0 else f"the data that follows step {newest}"
        log, resume = "above", "the same command"
        if self._folder is not None:
            log, resume = str(self._folder.log), f"the same command with output_dir={self._folder.path}"
        return (
            f"given up: {times} times in a row the job ended {at}. The last end: {end}. "
            f"An end that comes back at one step points at {suspect}, or at the code. Log: {log}. "
            f"When that is mended, {resume} goes on from the newest checkpoint"
        )

    def _find_folder(self) -> bool:
        with suppress(OSError, ValueError, KeyError, TypeError):  # not written yet
            self._folder = RunFolder(Path(json.loads(self._status.read_text())["folder"]))
        return self._folder is not None

    def _write_record(self, *, job: int | None, code: int | None = None) -> None:
        """supervisor.json, for `octfm fleet`; `code` is null for as long as the supervisor lives."""
        if self._folder is None:
            return
        record = {
            "pid": os.getpid(),
            "job_pid": job,
            "started": self._started,
            "restarts": self._restarts,
            "host": socket.gethostname(),
            "command": redact_command(self._command),
            "code": code,
        }
        with suppress(OSError):  # a full disk must not end who watches over the run
            write_atomic(self._folder.path / "supervisor.json", json.dumps(record, indent=1) + "\n")

    def _say(self, text: str) -> None:
        """To stderr and to the run's log; either may be gone (a closed terminal, a full disk)."""
        line = f"supervisor: {time.strftime('%H:%M:%S')} {text}\n"
        with suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()
        if self._folder is not None:
            with suppress(OSError), self._folder.log.open("a") as log:
                log.write(line)


def logged_steps(metrics: Path) -> list[int]:
    """The steps of the last lines of metrics.jsonl; none without the file."""
    steps = []
    with suppress(OSError), metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _METRICS_TAIL_BYTES))
        for line in file:
            with suppress(ValueError, KeyError, TypeError):  # the first and the last one may be cut
                steps.append(int(json.loads(line)["step"]))
    return steps


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pretraining.supervise [options] -- COMMAND ...`."""
    parser = argparse.ArgumentParser(prog="pretraining.supervise", description="Runs a job until it is done.")
    default = Patience()
    parser.add_argument("--max-restarts", type=int, default=default.max_restarts, help="in a row without progress")
    parser.add_argument("--backoff", type=float, default=default.backoff_s, help="seconds before the first restart")
    told = "seconds from a stop signal to the kill; the job saves for half of it"
    parser.add_argument("--grace", type=float, default=default.grace_s, help=told)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --: the job")
    given = parser.parse_args(argv)
    try:
        patience = Patience(max_restarts=given.max_restarts, backoff_s=given.backoff, grace_s=given.grace)
    except ValueError as error:
        parser.error(str(error))
    if shutil.which(given.command[0]) is None:
        parser.error(f"{given.command[0]} is no command here")
    os.environ.setdefault("OCTFM_STARTED", time.strftime("%Y%m%d-%H%M%S"))  # every start finds the same run folder
    with tempfile.TemporaryDirectory(prefix="octfm-") as folder:
        return Supervisor(given.command, patience, Path(folder) / "status.json").run()


if __name__ == "__main__":
    sys.exit(main())
