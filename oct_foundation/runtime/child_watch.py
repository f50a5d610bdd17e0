"""In the launcher: how much memory each child had, so that one that the kernel kills is named with the numbers.

A pool knows only that it is broken. Whether the kernel killed for lack of memory stands in the counters of the cgroup;
how large the child was can be read only while it lives.
"""

import os
import signal
import threading
from multiprocessing import process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

REMEDY = (
    "fewer loader workers (data.loader.num_workers) or a smaller batch (batch.per_core_batch_size) need less memory"
)
# The kernel keeps some for itself, and the last look may be half a second old.
NEARLY_FULL = 0.9
CGROUPS, MEMBERSHIP, HOST_COUNTERS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/vmstat")


class ChildWatch:
    """Looks at the children of this process while the block runs. `look_s`: between two looks."""

    def __init__(self, *, look_s: float = 0.5, cgroups: list[Path] | None = None) -> None:
        self._look_s = look_s
        self._cgroups = cgroup_folders() if cgroups is None else cgroups
        self._resident: dict[BaseProcess, int | None] = {}
        self._deaths: list[BaseProcess] = []
        self._kills_before, self._host_kills_before = oom_kills(self._cgroups), _counter(HOST_COUNTERS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="child watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._end()

    def post_mortem(self) -> str | None:
        """One sentence per child that died by a signal, in the order of their deaths; None when there is none.

        Ends the watch: to be called when the pool is done with its children, inside the block or after it.
        A SIGTERM beside another signal is left out: that is how a broken pool ends the children that were well.
        """
        self._end()
        self._look()
        signals = {child: -child.exitcode for child in self._deaths if child.exitcode and child.exitcode < 0}
        if set(signals.values()) - {signal.SIGTERM}:
            signals = {child: number for child, number in signals.items() if number != signal.SIGTERM}
        return " ".join(self._sentence(child, number) for child, number in signals.items()) or None

    def _end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        self._look()
        while not self._over.wait(self._look_s):
            self._look()

    def _look(self) -> None:
        """Sizes of the living. Not by `active_children()`, which reaps: a spawner that waits for the same child at
        that moment would find no exit code. The Process objects are kept, since whoever reaps leaves the code there.
        """
        for child in list(process._children):  # type: ignore[attr-defined]
            self._resident.setdefault(child, None)
        for child in [child for child in self._resident if child not in self._deaths]:
            if size := _resident_bytes(child.pid):
                self._resident[child] = size
            else:  # it has ended, reaped or not
                self._deaths.append(child)

    def _sentence(self, child: BaseProcess, number: int) -> str:
        size = self._resident[child]
        held = "of unknown size" if size is None else f"with {_gib(size)} resident"
        limit = cgroup_limit(self._cgroups)
        memory = f"host memory {_gib(_host_bytes())}" + (f", limit of the cgroup {_gib(limit)}" if limit else "")
        sentence = f"process {child.pid} ({held}; {memory}) was killed by signal {number} ({_signal_name(number)})"
        return f"{sentence}: {self._why_killed()}; {REMEDY}." if number == signal.SIGKILL else f"{sentence}."

    def _why_killed(self) -> str:
        """What the counters and the sizes say about a signal 9."""
        if oom_kills(self._cgroups) > self._kills_before:
            return "out of memory, by the cgroup's own count of such kills"
        together = sum(size or 0 for size in [*self._resident.values(), _resident_bytes(os.getpid())])
        available = min(_host_bytes(), cgroup_limit(self._cgroups) or _host_bytes())
        if together > NEARLY_FULL * available:
            return f"likely out of memory, since all ranks here together had {_gib(together)}"
        if _counter(HOST_COUNTERS) > self._host_kills_before:
            return "likely out of memory, since the kernel has killed a process of this host for it meanwhile"
        return "by the kernel for lack of memory, or by someone"


def cgroup_folders(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> list[Path]:
    """The folders with this process's memory limits, its own first, then those around it; none outside Linux.

    Lines of `membership` are `id:controllers:path`; version 2 has one line, `0::path`. In a container the path may be
    that of the host, and only the folder at the top exists.
    """
    lines = [line.split(":", 2) for line in _lines(membership)]
    version_1 = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    top = root / "memory" if version_1 else root
    paths = version_1 or [path for number, _, path in lines if number == "0"]
    own = [top / path.lstrip("/") for path in paths[:1]]
    around = [folder for start in own for folder in start.parents if folder.is_relative_to(top)]
    return [folder for folder in own + around if folder.is_dir()]


def cgroup_limit(folders: list[Path]) -> int | None:
    """The smallest limit in bytes (memory.max, in version 1 memory.limit_in_bytes); None where there is none."""
    files = [folder / name for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [int(line) for file in files for line in _lines(file) if line != "max"]
    return min((limit for limit in limits if limit < _host_bytes()), default=None)  # version 1 has 2^63 for none


def oom_kills(folders: list[Path]) -> int:
    """How many processes of this cgroup the kernel has killed for lack of memory; 0 where nobody counts."""
    return sum(_counter(folder / name) for folder in folders[:1] for name in ("memory.events", "memory.oom_control"))


def _counter(file: Path) -> int:
    """The row `oom_kill N` of a file of counters; 0 without it."""
    return sum(int(row[1]) for line in _lines(file) if len(row := line.split()) == 2 and row[0] == "oom_kill")


def _resident_bytes(pid: int | None) -> int | None:
    """VmRSS; None for a process that has ended, and outside Linux."""
    sizes = [int(line.split()[1]) * 1024 for line in _lines(Path(f"/proc/{pid}/status")) if line.startswith("VmRSS:")]
    return sizes[0] if sizes else None


def _lines(file: Path) -> list[str]:
    """Of a file that the kernel may not have, or not show: then none."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), "unknown")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
