"""A process as others on its host can know it: is the one that wrote this note still running?

Two containers of one machine may share a host name and count the same pids: kernel and pid namespace tell them apart.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A process: its pid, the kernel and pid namespace that the pid belongs to ("" where unknown), and when the
    kernel started it (clock ticks since boot), so that a pid used again is not taken for it.
    """

    host: str
    kernel: str
    pid: int
    started: int

    @classmethod
    def this_process(cls) -> "Writer":
        """The calling process; on systems without /proc its kernel stays unknown."""
        pid, host = os.getpid(), socket.gethostname()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            kernel = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        except OSError:
            return cls(host=host, kernel="", pid=pid, started=0)
        return cls(host=host, kernel=kernel, pid=pid, started=_state_and_start(pid)[1])

    def is_alive(self) -> bool:
        """Whether it still runs; its kernel and namespace must be ours. A zombie does not run."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        try:
            state, started = _state_and_start(self.pid)
        except ProcessLookupError:
            return False  # it ended while we looked
        except FileNotFoundError:
            return True  # /proc may hide the processes of other users
        return state not in "ZX" and started == self.started


def _state_and_start(pid: int) -> tuple[str, int]:
    """State letter and start time in clock ticks since boot of a process of this namespace: proc(5), fields 3 and 22.

    Raises FileNotFoundError where there is none, or none to be seen.
    """
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    return after_name[0], int(after_name[19])
