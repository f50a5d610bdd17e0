"""What runs on this host, read from /proc: processes of a job, and who holds TPU chips and ports."""

from __future__ import annotations

import glob
import os
import re
import socket
from contextlib import suppress

# In the environment of a job's first process, and so of all its descendants: <job>/<worker>.
TAG_VARIABLE = "OCTFM_JOB"
# v4 and older have accel, v5 and newer vfio (whose control file /dev/vfio/vfio is no chip).
CHIP_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
LISTENING = "0A"


class Refused(Exception):
    """What the worker will not do, and how a person mends it."""


def boot_id() -> str:
    """Changes when the host starts anew; with it pids and start times mean nothing any more."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_ticks(pid: int, *, remains_too: bool = False) -> int | None:
    """When the process started, in ticks since boot; None where there is none.

    remains_too: also of one that has ended and that its parent has not waited for.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()  # a command may hold spaces and brackets
    except (OSError, ValueError):
        return None
    return int(fields[19]) if remains_too or fields[0] not in "ZX" else None


def pids() -> list[int]:
    """All processes of the host."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def tagged() -> dict[str, list[int]]:
    """Job tag -> its living processes, as far as their environment may be read: one's own, or all for root."""
    found: dict[str, list[int]] = {}
    prefix = os.fsencode(TAG_VARIABLE) + b"="
    for pid in pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:  # ended meanwhile, or somebody else's
            continue
        for variable in variables:
            if variable.startswith(prefix) and start_ticks(pid) is not None:
                found.setdefault(os.fsdecode(variable[len(prefix) :]), []).append(pid)
    return found


def describe(pid: int) -> str:
    """`pid 123 (python -m pretraining.train ..)`, the command cut at 80 characters."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = "ended meanwhile"
    return f"pid {pid} ({command[:80]})"


def chip_files(patterns: tuple[str, ...] = CHIP_FILES) -> list[str]:
    """Device files of TPU chips on this host."""
    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def chip_holders(patterns: tuple[str, ...] = CHIP_FILES) -> list[str]:
    """`/dev/accel0 is held by pid ..`, one entry per chip and process."""
    chips = {os.path.realpath(path): path for path in chip_files(patterns)}
    if not chips:
        return []
    return [f"{chips[target]} is held by {describe(pid)}" for pid, target in _open_files() if target in chips]


def port_holders(ports: list[int]) -> list[str]:
    """`port 8476 is held by pid ..`, for each of `ports` on which somebody listens."""
    listening = _listening_sockets()
    taken = {port: listening[port] for port in ports if port in listening}
    if not taken:
        return []
    by_inode = {f"socket:[{inode}]": port for port, inodes in taken.items() for inode in inodes}
    holders: dict[int, set[str]] = {port: set() for port in taken}
    for pid, target in _open_files():
        if target in by_inode:
            holders[by_inode[target]].add(describe(pid))
    nobody = "a process of another user (as root: ss -ltnp)"
    return ["port {} is held by {}".format(port, ", ".join(sorted(holders[port])) or nobody) for port in sorted(taken)]


def num_gpus() -> int:
    """NVIDIA GPUs, by their device files."""
    return len([path for path in glob.glob("/dev/nvidia*") if re.match(r"/dev/nvidia\d+$", path)])


def host_name() -> str:
    """The host's own name."""
    return socket.gethostname()


def _open_files() -> list[tuple[int, str]]:
    """(pid, what a descriptor points to), as far as we may look."""
    found = []
    for pid in pids():
        folder = f"/proc/{pid}/fd"
        with suppress(OSError):  # ended meanwhile, or somebody else's
            found += [(pid, _target(os.path.join(folder, name))) for name in os.listdir(folder)]
    return found


def _target(descriptor: str) -> str:
    """Nothing for one that was closed while we looked."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


def _listening_sockets() -> dict[int, list[str]]:
    """Port -> inodes of the TCP sockets that listen there."""
    found: dict[int, list[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:  # no IPv6 here
            continue
        for row in rows:
            if row[3] == LISTENING:
                found.setdefault(int(row[1].rpartition(":")[2], 16), []).append(row[9])
    return found
