"""Ranks that look after one another: who leaves early says why, and takes the others along within seconds.

Beside training and without collectives: a TCPStore at rank 0 holds the first failure and one counter of signs of life
per rank. In each rank one thread talks with the store, and a second one watches the first: a call to a store whose
host is gone never comes back (`TCPStore.add` knows no timeout).
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from oct_foundation.runtime.exits import ExitCode, ExitRecord
from oct_foundation.runtime.rank_exit import PATIENCE_S, RankExit

CONNECT_S = 15.0  # for each address of rank 0; ranks of one start are here within seconds of each other
STDERR = 2
FAILURE, NONE = "failure", "none"
GOODBYE = -1
GOODBYE_S = 5.0
LAST_WORK_S = 120.0  # of rank 0: its summary, and W&B, which has limits that sum up to 95 s


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a rank posts on leaving, or rank 0 in the name of a rank that is silent."""

    rank: int
    code: int
    reason: str


class Siblings:
    """One rank's end of the exchange. `beat_s`: between two looks; `silence_s`: a rank without a sign of life is lost.

    20 s, because a thread cannot beat while another one holds the GIL: loading a large library from a slow disk or
    unpickling an index may take 10 s. On one host the launcher mostly sees a death at once, but not always: a pool of
    CPython 3.11 may not watch the process that it has started last.
    """

    def __init__(
        self, rank: int, world_size: int, exit: RankExit, *, beat_s: float = 1.0, silence_s: float = 20.0
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._exit, self._beat_s, self._silence_s = exit, beat_s, silence_s
        self._own_failure: _Failure | None = None
        self._over = threading.Event()  # this rank, or rank 0, is done: silence is no longer death
        self._wake, self._posted = threading.Event(), threading.Event()
        self._answered = 0.0
        self._store: dist.TCPStore | None = None
        self._talker: threading.Thread | None = None

    def start(self, gather: Callable[[Any], list[Any]]) -> None:
        """Opens the store at rank 0, connects the others, begins to beat. Nothing in a world of one.

        `gather`: one picklable object of every rank, in the order of ranks. Raises ConnectionError on all ranks
        when one of them cannot reach rank 0.
        """
        if self.world_size == 1:
            return
        people = gather((socket.gethostname(), os.getpid()))
        hosts = {host for host, _ in people}
        store, address = self._open(alone=len(hosts) == 1) if self.rank == 0 else (None, None)
        names, port = gather(address)[0]
        store = store or _connect(names, port)
        unreached = [rank for rank, found in enumerate(gather(store is not None)) if not found]
        if store is None or unreached:
            raise ConnectionError(
                f"rank(s) {', '.join(map(str, unreached))} cannot reach rank 0 at {' or '.join(names)}, port {port}: "
                "set MASTER_ADDR to an address of rank 0's host, and allow TCP between the hosts on all ports"
            )
        self._store = store  # until the process ends: the others may still read rank 0's goodbye
        self._exit.on_leave.append(self._post)
        self._talker = threading.Thread(target=self._talk, args=(store, people), daemon=True, name="siblings: talk")
        self._talker.start()
        threading.Thread(target=self._watch_answers, daemon=True, name="siblings: watch").start()

    def stop(self) -> None:
        """Says goodbye, so that the others do not take the coming silence for death; the last call before the end.

        Rank 0 holds the store, and waits up to GOODBYE_S until the others have read its goodbye. The others wait for
        that goodbye: torchrun takes the first end with a code for a failure, and would cut off rank 0's last work.
        """
        if self.rank != 0 and self._talker is not None:
            self._over.wait(LAST_WORK_S)
        self._over.set()
        self._wake.set()
        if self._talker is not None:
            self._talker.join(2 * GOODBYE_S)

    def _open(self, *, alone: bool) -> tuple[dist.TCPStore, tuple[list[str], int]]:
        """Rank 0: the store on a free port and where to find it; not open to the network when all are on one host."""
        names = ["127.0.0.1"] if alone else [*filter(None, [os.environ.get("MASTER_ADDR")]), socket.gethostname()]
        listener = socket.create_server(("127.0.0.1" if alone else "", 0))
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=CONNECT_S),
            master_listen_fd=listener.detach(),
        )
        store.set(FAILURE, NONE)
        for rank in range(self.world_size):  # a key that is missing would make a reader wait
            store.set(_beats(rank), "0")
        return store, (names, port)

    def _talk(self, store: dist.TCPStore, people: list[tuple[str, int]]) -> None:
        """The thread that owns the store's client."""
        silence = _Silence(self.world_size, self._silence_s, self._beat_s)
        try:
            while not (self._over.is_set() or self._own_failure):
                self._exchange(store, silence, people)
                self._wake.wait(self._beat_s)
            if self._own_failure:
                self._tell(store, self._own_failure)
            self._part(store, GOODBYE_S if self._over.is_set() else PATIENCE_S)
        except dist.DistError as error:
            if not (self._over.is_set() or self._own_failure):
                reason = f"rank 0 is gone, without a word ({_first_line(error)})"
                self._exit.now(ExitCode.FAILED, reason, cause=False)
        finally:
            self._posted.set()

    def _exchange(self, store: dist.TCPStore, silence: "_Silence", people: list[tuple[str, int]]) -> None:
        """One sign of life, one look at the others."""
        store.add(_beats(self.rank), 1)
        failure, beats = self._read(store)
        self._answered = time.monotonic()
        lost = silence.first_silent(beats) if self.rank == 0 else None
        if failure is None and lost is not None:
            failure = self._tell(store, _silent(lost, people[lost], self._silence_s))
        if failure is not None:
            self._follow(store, failure)
        if self.rank != 0 and beats[0] == GOODBYE:  # the last collective is done: nobody waits for anybody
            self._over.set()
            self._wake.set()

    def _read(self, store: dist.TCPStore) -> tuple[_Failure | None, list[int]]:
        """The first failure, and all ranks' counters at rank 0; elsewhere only rank 0's."""
        posted = store.get(FAILURE).decode()
        failure = None if posted == NONE else _Failure(**json.loads(posted))
        ranks = range(self.world_size) if self.rank == 0 else range(1)
        return failure, [int(store.get(_beats(rank))) for rank in ranks]

    def _tell(self, store: dist.TCPStore, failure: _Failure) -> _Failure:
        """Posts `failure` unless another one came first; returns the first."""
        return _Failure(**json.loads(store.compare_set(FAILURE, NONE, json.dumps(asdict(failure)))))

    def _follow(self, store: dist.TCPStore, failure: _Failure) -> NoReturn:
        """Leaves because another rank did; after the watchdog's code with the stacks, which show who waits for whom."""
        if failure.code == ExitCode.NO_PROGRESS:
            print(f"rank {self.rank}, when rank {failure.rank} made no progress:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
        self._part(store, PATIENCE_S, but=failure.rank)
        self._exit.now(failure.code, f"rank {failure.rank} left first: {failure.reason}", cause=False)

    def _part(self, store: dist.TCPStore, limit_s: float, but: int = 0) -> None:
        """No sign of life from here on. Rank 0 keeps the store until the others have read the news, and parted too."""
        store.set(_beats(self.rank), str(GOODBYE))
        waiting = set(range(1, self.world_size)) - {but} if self.rank == 0 else set()
        deadline = time.monotonic() + limit_s
        while waiting and time.monotonic() < deadline:
            waiting = {rank for rank in waiting if int(store.get(_beats(rank))) != GOODBYE}
            time.sleep(0.05)

    def _post(self, record: ExitRecord) -> None:
        """For `RankExit.on_leave`: hands the reason to the thread that talks, and waits until it is posted."""
        if record.cause and not self._over.is_set():
            self._own_failure = _Failure(rank=self.rank, code=record.code, reason=record.reason)
            self._wake.set()
            self._posted.wait(PATIENCE_S)

    def _watch_answers(self) -> None:
        """The second thread: leaves when the store has not answered for `silence_s`; time asleep does not count."""
        quiet_s, answered, looked = 0.0, self._answered, time.monotonic()
        while not self._over.wait(self._beat_s):
            now = time.monotonic()
            asleep = now - looked > _asleep_s(self._beat_s)
            quiet_s = 0.0 if asleep or answered != self._answered else quiet_s + now - looked
            answered, looked = self._answered, now
            if quiet_s > self._silence_s:
                reason = f"rank 0 has not answered for {quiet_s:.0f} s: stopped, or its host is gone"
                self._exit.now(ExitCode.FAILED, reason, cause=False)


class _Silence:
    """At rank 0: since when each rank's counter stands still."""

    def __init__(self, world_size: int, silence_s: float, beat_s: float) -> None:
        self._silence_s, self._beat_s = silence_s, beat_s
        self._beats = [0] * world_size
        self._looked = time.monotonic()
        self._moved = [self._looked] * world_size

    def first_silent(self, beats: list[int]) -> int | None:
        """The rank that is silent for too long, if any. After a sleep of this process all start anew."""
        now = time.monotonic()
        asleep = now - self._looked > _asleep_s(self._beat_s)
        self._looked = now
        for rank, count in enumerate(beats):
            if asleep or count != self._beats[rank] or count == GOODBYE:
                self._beats[rank], self._moved[rank] = count, now
        return next((rank for rank, moved in enumerate(self._moved) if now - moved > self._silence_s), None)


def _asleep_s(beat_s: float) -> float:
    """Two looks further apart than this: the process was stopped, or the machine slept, and with it the others."""
    return 3 * beat_s + 1


def _connect(names: list[str], port: int) -> dist.TCPStore | None:
    """A client of rank 0's store by the first of its names that leads there; None if none does."""
    for name in names:
        try:
            return dist.TCPStore(name, port, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))
        except dist.DistError as error:
            print(
                f"rank 0 is not to be reached at {name}, port {port}: {_first_line(error)}", file=sys.stderr, flush=True
            )
    return None


def _silent(rank: int, who: tuple[str, int], silence_s: float) -> _Failure:
    host, pid = who
    news = f"rank {rank} on host {host}, pid {pid} gives no sign of life for {silence_s:.0f} s"
    reason = f"{news}: killed, or its host is gone"
    return _Failure(rank=rank, code=int(ExitCode.FAILED), reason=reason)


def _beats(rank: int) -> str:
    return f"beats/{rank}"


def _first_line(error: Exception) -> str:
    """Without the stack of C++ frames that torch appends."""
    return str(error).partition("\n")[0]
