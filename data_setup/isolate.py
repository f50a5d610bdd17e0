"""Runs a job on many tasks in child processes that may die: a crash or a hang costs one task, never the run.

A 2 kB file can abort the interpreter from inside a foreign decoder, and no `except` helps. The child is a bare
interpreter, not a copy of this program: it imports the job's module only (0.3 s, no torch), so that the memory limit
means something. Jobs write large results themselves and send back small records.
"""

import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from subprocess import DEVNULL
from typing import Any, Generic, Literal, TypeVar

from data_setup.errors import StopPreparing

Task = TypeVar("Task")
Record = TypeVar("Record")

_CHILD = "import sys; sys.path[:] = sys.argv[2:]; from data_setup.isolate import serve; serve(int(sys.argv[1]))"
# Arrays of a scan are larger than what glibc keeps: each would be mapped anew and its pages zeroed, a quarter of all
# time (335 ms of CPU per 58 MB file, 229 with these). The memory stays the child's, within its limit.
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}
_START_TIMEOUT_S = 60.0  # 0.3 s on a quiet machine
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_END_TIMEOUT_S = 2.0  # an idle child leaves within milliseconds of being told


@dataclass(frozen=True, kw_only=True)
class IsolationLimits:
    """timeout_s of one task; memory_bytes of address space that a task may add to the child's own, 0 for any."""

    timeout_s: float = 120.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be above 0 seconds, e.g. 120")
        if self.memory_bytes < 0:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; it must be 0 (no limit) or more, e.g. {4 << 30}")


_DEFAULT_LIMITS = IsolationLimits()


@dataclass(frozen=True)
class Outcome(Generic[Record]):
    """What became of a task: the record, or how it failed, with the exit code or the exception's type, not its text;
    only StopPreparing keeps its text, which names nobody.
    """

    record: Record | None
    failure: Literal["died", "timeout", "raised", "stopped"] | None = None
    detail: str = ""


def serve(descriptor: int) -> None:
    """The child's main: takes the job and the memory limit, says "" when ready, answers until the parent is gone."""
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _die_with_parent()
    try:
        job, memory_bytes = connection.recv()
    except Exception as error:  # the job's module does not import; no file has been touched, so the text is safe
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send("")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pixels and names
    if memory_bytes and sys.platform == "linux":  # macOS accepts the limit and ignores it
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _address_space() + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)  # `ulimit -v` stands above us
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = Outcome(job(task))
        except StopPreparing as error:
            answer = Outcome(None, "stopped", str(error))
        except Exception as error:  # the worker's top: also StopIteration and MemoryError
            answer = Outcome(None, "raised", type(error).__name__)
        connection.send(answer)


def _die_with_parent() -> None:
    """A child that hangs in a decoder would outlive its parent: nobody is left to end it (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _address_space() -> int:
    """Bytes of address space that this process holds now (Linux)."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


class Worker(Generic[Task, Record]):
    """One child that is started when needed and replaced when it dies; use from one thread, close at the end."""

    def __init__(self, job: Callable[[Task], Record], limits: IsolationLimits) -> None:
        self._job = job
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._abandoned = False

    def run(self, task: Task) -> Outcome[Record]:
        """The outcome of one task, never an exception of it. After a death (not a time-out) the task runs once more:
        the machine may have been short of memory.
        """
        outcome = self._attempt(task)
        return self._attempt(task) if outcome.failure == "died" and not self._abandoned else outcome

    def abandon(self) -> None:
        """From another thread: ends the child at once and for good, whatever it is at."""
        self._abandoned = True
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """Ends the child; waits 2 s for its consent."""
        if self._child is None:
            return
        self._connection.close()
        try:
            self._child.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _attempt(self, task: Task) -> Outcome[Record]:
        if self._child is None:
            self._start()
        try:
            self._connection.send(task)
            if self._connection.poll(self._limits.timeout_s):  # also when the child is dead: recv then finds the end
                return self._connection.recv()
        except (EOFError, OSError):
            return self._end("died")
        return self._end("timeout")

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-c", _CHILD, str(theirs.fileno()), *sys.path]
        # Decoders write paths and values to stderr: nobody may read them.
        self._child = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            env={**os.environ, **_KEEP_MEMORY},
        )
        theirs.close()
        if self._abandoned:  # between the two lines above
            self._child.kill()
        try:
            self._connection.send((self._job, self._limits.memory_bytes))
            trouble = self._connection.recv() if self._connection.poll(_START_TIMEOUT_S) else "no answer"
        except (EOFError, OSError):
            trouble = "no answer"
        if trouble and not self._abandoned:
            self._end("timeout")
            raise RuntimeError(
                f"the worker process for {self._job.__module__} does not start ({trouble}); "
                "a package of this environment is broken or missing: run the set-up again"
            )

    def _end(self, failure: Literal["died", "timeout"]) -> Outcome[Record]:
        """Kills the child. Exit codes: -6 abort, -9 killed or out of memory, -11 segmentation fault."""
        assert self._child is not None
        if failure == "died":
            try:  # let it die its own death, for its exit code
                self._child.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        else:
            self._child.kill()
        detail = f"exit code {self._child.wait()}"
        self._connection.close()
        self._child = None
        return Outcome(None, failure, detail)


def run_isolated(
    job: Callable[[Task], Record],
    tasks: Sequence[Task],
    num_workers: int,
    limits: IsolationLimits = _DEFAULT_LIMITS,
) -> Iterator[Outcome[Record]]:
    """The outcomes of `job` over `tasks`, in their order; otherwise as `as_completed`."""
    arriving = as_completed(job, tasks, num_workers, limits)
    return _in_order(arriving, len(tasks))


def as_completed(
    job: Callable[[Task], Record],
    tasks: Sequence[Task],
    num_workers: int,
    limits: IsolationLimits = _DEFAULT_LIMITS,
) -> Iterator[tuple[int, Outcome[Record]]]:
    """(position, outcome) of `job` over `tasks` as they are done, computed by `num_workers` children at a time.

    job: a function at the top of an importable module; tasks and records must pickle. Raises ValueError otherwise.
    Children end when the iterator is closed or exhausted, or when this process dies.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
    if job.__module__ == "__main__" or "<" in job.__qualname__:
        raise ValueError(f"job {job.__qualname__} must be a top-level function of an importable module")
    return _outcomes(job, tasks, num_workers, limits)


def _outcomes(
    job: Callable[[Task], Record], tasks: Sequence[Task], num_workers: int, limits: IsolationLimits
) -> Iterator[tuple[int, Outcome[Record]]]:
    """The iterator itself: a thread per worker; raises what a thread met."""
    waiting: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Outcome[Record] | BaseException]] = queue.SimpleQueue()
    for numbered in enumerate(tasks):
        waiting.put(numbered)
    stop = threading.Event()
    workers = [Worker(job, limits) for _ in range(min(num_workers, len(tasks)))]
    threads = [threading.Thread(target=_work, args=(worker, waiting, done, stop), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            number, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield number, outcome
    finally:
        stop.set()
        for worker in workers:
            worker.abandon()
        for thread in threads:
            thread.join()


def _work(worker: Worker, waiting: queue.SimpleQueue, done: queue.SimpleQueue, stop: threading.Event) -> None:
    """A thread: feeds one worker until no task is left, then closes it."""
    try:
        while not stop.is_set():
            try:
                number, task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, worker.run(task)))
            except Exception as error:  # the thread's top: a task that does not pickle, a child that does not start
                done.put((number, error))
                return
    finally:
        worker.close()


def _in_order(arriving: Iterator[tuple[int, Outcome[Record]]], count: int) -> Iterator[Outcome[Record]]:
    """The outcomes 0 .. count - 1, each as soon as its turn has come."""
    early: dict[int, Outcome[Record]] = {}
    with closing(arriving):  # type: ignore[type-var]
        for number in range(count):
            while number not in early:
                arrived, outcome = next(arriving)
                early[arrived] = outcome
            yield early.pop(number)
