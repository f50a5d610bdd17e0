"""How a run learns that it shall stop: signals and notices set a flag; the loop looks at it and all ranks agree.

Two ways to hear a signal. Where the main thread is ours, `set_wakeup_fd` tells a thread at once, even while the main
thread is inside a C call. In a spawned rank it is not ours (torch_xla runs the rank in another thread, where
signal.signal raises): there the launcher has blocked the signals, the rank inherits the mask and waits for them.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process, resource_tracker
from typing import ClassVar

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.rank_exit import RankExit

# TERM: schedulers, `octfm fleet stop`, the supervisor. INT: Ctrl-C. USR1: the launcher to its ranks.
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
# Google's Spot machines are taken 30 s after the notice; what is not durable by then is lost.
GRACE_S = 30.0
# Within this time a second Ctrl-C is the terminal's signal to the whole group, or a bouncing key.
DOUBLED_S = 2.0
_REPEAT_S = 0.5


class StopRequest:
    """A rank's flag. From the first request on the rank has `grace_s` to save; then it leaves with `late_code`.

    Whoever has made the state durable sets `late_code`: what still takes too long then costs nothing. A request that
    is repeated changes nothing (a Spot notice is followed by the machine's TERM), but for a person's second Ctrl-C.
    """

    def __init__(self, exit: RankExit, grace_s: float = GRACE_S) -> None:
        self._exit, self._grace_s = exit, grace_s
        self._asked = threading.Event()
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self.reason, self.late_code = "", ExitCode.STOPPED_UNSAVED

    @property
    def save_within_s(self) -> float:
        """The part of the grace that a save may take: 5 s may pass until all ranks know, the rest is for leaving."""
        return max(self._grace_s - 10.0, self._grace_s / 2)

    @property
    def asked(self) -> bool:
        """True from the first request on."""
        return self._asked.is_set()

    def ask(self, reason: str) -> None:
        """The first call sets the flag and starts the grace."""
        with self._lock:
            if self.asked:
                if is_insistence(reason, self._asked_at):
                    self._leave("asked to stop at once (a second Ctrl-C)")
                return
            self.reason, self._asked_at = reason, time.monotonic()
            self._asked.set()
        timer = threading.Timer(self._grace_s, self._leave, [f"not done {self._grace_s:.0f} s after {reason}"])
        timer.daemon = True
        timer.start()

    def _leave(self, reason: str) -> None:
        self._exit.now(self.late_code, reason)

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


def is_insistence(name: str, asked_at: float) -> bool:
    """Whether this is a second Ctrl-C of a person, and not the echo of the first one."""
    return name == signal.SIGINT.name and time.monotonic() - asked_at > DOUBLED_S


def forward_to_ranks() -> Callable[[str], None]:
    """For the launcher: passes a request on to every rank, those being started included; a second Ctrl-C, too."""
    asked_at: list[float] = []

    def keep_asking() -> None:
        while True:
            _signal_children(signal.SIGUSR1)  # ranks do not mind repetition
            time.sleep(_REPEAT_S)

    def forward(name: str) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            threading.Thread(target=keep_asking, name="ask ranks", daemon=True).start()
        elif is_insistence(name, asked_at[0]):
            _signal_children(signal.SIGINT)

    return forward


def _signal_children(number: signal.Signals) -> None:
    """To the children as multiprocessing knows them; `active_children()` would reap them under their spawner's nose."""
    for child in list(process._children):  # type: ignore[attr-defined]
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)
