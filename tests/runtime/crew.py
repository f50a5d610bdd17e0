"""Real processes for the tests of what lives beside a rank: forked from a server that has imported torch once."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from oct_foundation.runtime.exits import ExitRecord, read_exits
from oct_foundation.runtime.rank_exit import RankExit

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch.distributed"])


@dataclass
class Crew:
    """Processes of one test; `folder` holds what they write."""

    folder: Path
    processes: list[BaseProcess]

    def kill(self, rank: int, signal_number: int) -> None:
        os.kill(self.processes[rank].pid, signal_number)

    def await_ready(self) -> None:
        wait_for(lambda: len(list(self.folder.glob("ready-*"))) == len(self.processes), "all ranks to be ready")

    def codes(self, limit_s: float = 120.0, but: tuple[int, ...] = ()) -> list[int | None]:
        """Exit codes; fails when a rank other than `but` is alive after `limit_s`."""
        waited = [process for rank, process in enumerate(self.processes) if rank not in but]
        deadline = time.monotonic() + limit_s
        for process in waited:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"still alive after {limit_s} s; it said:\n{self.stderr()}"
        return [process.exitcode for process in self.processes]

    def records(self) -> dict[int, ExitRecord]:
        return {record.rank: record for record in read_exits(self.folder / "exits")}

    def stderr(self, rank: int | None = None) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob(f"stderr-{'*' if rank is None else rank}")))

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def muster(folder: Path, num_ranks: int, duty: Callable, *arguments) -> Crew:
    """Starts `duty(exit, *arguments)` in one process per rank; `exit.rank` tells which."""
    processes = [FORKS.Process(target=_serve, args=(folder, rank, duty, arguments)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    return Crew(folder, processes)


def _serve(folder: Path, rank: int, duty: Callable, arguments: tuple) -> None:
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    duty(RankExit(rank=rank, folder=folder / "exits"), *arguments)


def report_ready(exit: RankExit) -> None:
    (exit.folder.parent / f"ready-{exit.rank}").touch()


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Also true of a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def hold_the_gil(seconds: int) -> None:
    """A C call that sleeps and keeps the GIL: no other Python thread of this process runs."""
    import ctypes

    ctypes.PyDLL(None).sleep(seconds)


STOP, GO_ON, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
