"""What the supervisor needs of the operating system: a child in a process group of its own that does not outlive us,
the end of everything that is left of such a group, and our own signals as a queue. Standard library only.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEFTOVER_WAIT_S = 2.0  # loader workers leave within 0.1 s of their parent's end
KILLED_WAIT_S = 5.0  # one that is killed in the midst of a write holds files and devices until that ends
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SignalQueue:
    """Signals to this process, read in order from a pipe: none interrupts anything, none is lost."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        for end in (self._reading, writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writing)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        # A terminal that goes away stops no run. The job inherits this, as under nohup.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, timeout_s: float | None) -> list[signal.Signals]:
        """The stop signals that have come within `timeout_s`, None for ever; a child's end ends the wait, too."""
        ready, _, _ = select.select([self._reading], [], [], timeout_s)
        arrived = os.read(self._reading, 4096) if ready else b""
        return [signal.Signals(number) for number in arrived if number in STOP_SIGNALS]


def start_in_own_group(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A child whose pid is also the number of its process group: all of the job and nothing else.

    Ctrl-C reaches the foreground group only, that is us alone. Raises OSError where `command` cannot be started.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # a background group that reads a terminal would be stopped
        process_group=0,
        env=environment,
        preexec_fn=_tied_to(os.getpid()),
    )


def _tied_to(parent: int) -> Callable[[], None]:
    """What the child runs before exec: when the parent dies, even of kill -9, the child gets TERM (Linux)."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ours only notes it
        if library is not None:
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # died before the line above
            os._exit(1)

    return tie


def end_leftovers(group: int) -> list[int]:
    """For a group whose first process has just ended: waits for the others, kills those that stay, returns these."""
    if not Path("/proc/self/stat").exists():  # macOS: nothing to count with
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        return []
    left = _members_after(group, LEFTOVER_WAIT_S)
    if left:  # while it has members, the number of a group is given to nobody else
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        _members_after(group, KILLED_WAIT_S)
    return left


def _members_after(group: int, seconds: float) -> list[int]:
    """The living processes of a group once there are none, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while (members := group_members(group)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return members


def group_members(group: int) -> list[int]:
    """The living processes of a group (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # ended meanwhile
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(entry.name))
    return sorted(found)
