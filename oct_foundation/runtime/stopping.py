"""How a run learns that it shall stop: signals and notices set a flag; the loop looks at it and all ranks agree.

Two ways to hear a signal. Where the main thread is ours, `set_wakeup_fd` tells a thread at once, even while the main
thread is inside a C call. In a spawned rank it is not ours (torch_xla runs the rank in another thread, where
signal.signal raises): there the launcher has blocked the signals, the rank inherits the mask and waits for them.
"""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import ClassVar

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.rank_exit import RankExit

# TERM: schedulers, `octfm fleet stop`, the supervisor. INT: Ctrl-C. USR1: the launcher to its ranks.
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
# Google's Spot machines are taken 30 s after the notice; what is not durable by then is lost.
GRACE_S = 30.0
# A machine that shuts down signals every process, and so does the supervisor: one request that arrives twice.
DOUBLED_S = 2.0


class StopRequest:
    """A rank's flag. From the first request on the rank has `grace_s` to save; then, or at a second request, it leaves.

    Set `saved` once the state is durable: what still takes too long then costs nothing.
    """

    def __init__(self, exit: RankExit, grace_s: float = GRACE_S) -> None:
        self._exit, self._grace_s = exit, grace_s
        self._asked = threading.Event()
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self.reason, self.saved = "", False

    @property
    def asked(self) -> bool:
        """True from the first request on."""
        return self._asked.is_set()

    def ask(self, reason: str) -> None:
        """The first call sets the flag and starts the grace; a second one, not right after it, ends the process."""
        with self._lock:
            if self.asked:
                if time.monotonic() - self._asked_at > DOUBLED_S:
                    self._leave(f"asked to stop twice ({reason})")
                return
            self.reason, self._asked_at = reason, time.monotonic()
            self._asked.set()
        timer = threading.Timer(self._grace_s, self._leave, [f"not done {self._grace_s:.0f} s after {reason}"])
        timer.daemon = True
        timer.start()

    def _leave(self, reason: str) -> None:
        self._exit.now(ExitCode.STOPPED if self.saved else ExitCode.STOPPED_UNSAVED, reason)

    def listen(self) -> None:
        """From now on a stop signal is a request, whichever way this process hears it."""
        if SignalListener.installed is not None:
            SignalListener.installed.divert(self.ask)
            return

        def wait_for_blocked_signals() -> None:
            while True:
                self.ask(signal.Signals(signal.sigwait(STOP_SIGNALS)).name)

        threading.Thread(target=wait_for_blocked_signals, name="stop-signals", daemon=True).start()


class SignalListener:
    """In a process whose main thread is ours: `divert` names what a thread calls, at once, for a stop signal.

    Until then a signal raises KeyboardInterrupt in the main thread, as Ctrl-C does everywhere in Python. There is one
    in a process, as there is one set of handlers; spawned ranks have none.
    """

    installed: ClassVar["SignalListener | None"] = None

    def __init__(self) -> None:
        SignalListener.installed = self
        self._on_signal: Callable[[str], None] | None = None
        self._reading, writing = socket.socketpair()
        writing.setblocking(False)
        self._writing = writing  # kept open
        for number in STOP_SIGNALS:
            signal.signal(number, self._in_main_thread)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()

    def divert(self, on_signal: Callable[[str], None]) -> None:
        """From now on signals call `on_signal` with their name."""
        self._on_signal = on_signal

    def _in_main_thread(self, number: int, frame: object) -> None:
        if self._on_signal is None:
            raise KeyboardInterrupt(signal.Signals(number).name)

    def _listen(self) -> None:
        while number := self._reading.recv(1):
            if self._on_signal is not None and number[0] in STOP_SIGNALS:
                self._on_signal(signal.Signals(number[0]).name)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Children started in this block, by this thread, are born with the stop signals blocked.

    Python's resource tracker unblocks them when it starts, so it is started first.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_stop_signals() -> None:
    """For children of a rank that shall die of a signal as usual: loader workers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def forward_to_ranks() -> Callable[[str], None]:
    """For the launcher: the first request asks every rank, a second one, not right after it, kills them."""
    asked_at: list[float] = []

    def forward(name: str) -> None:
        if asked_at and time.monotonic() - asked_at[0] < DOUBLED_S:
            return
        how = signal.SIGKILL if asked_at else signal.SIGUSR1
        asked_at.append(time.monotonic())
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, how)

    return forward
