"""Row 5: the disk is full when a save begins, in its midst, and right before its end.

A small tmpfs that is really full; where this process may not mount one, a limit on the size of files. A bucket's
saves meet the disk where they are spooled.
"""

import ctypes
import os
import random
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oct_foundation.checkpoints.store import Full
from tests.faults.matrix.oracle import VALUES_2MB, Watch, open_manager, save
from tests.faults.matrix.places import LocalPlace, Place, open_store
from tests.faults.matrix.record import Record

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_DISK_BYTES = 16 << 20
_SAVE_BYTES = 4 * VALUES_2MB
FILLS = {"at 0 %": 0.0, "at 30 %": 0.3, "at 99 %": 0.99}


def mount_small_disk(folder: Path, *options: str) -> bool:
    """A tmpfs of 16 MB at `folder`, which ends with this process; False where that is not allowed."""
    folder.mkdir(parents=True)
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    commands = (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", ",".join((f"size={_DISK_BYTES}", *options)), "tmpfs", str(folder)],
    )
    return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """A disk with `room` bytes left, but for part of a page."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))
    yield
    ballast.unlink()


@contextmanager
def limited(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: what a full disk looks like without one (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_full_disk(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` saves for each amount of room: each fails as Full, leaves nothing, and the one after it works."""
    disk = Path(tempfile.mkdtemp()) / "disk"
    is_mounted = mount_small_disk(disk)
    record.facts.append("a full tmpfs" if is_mounted else "RLIMIT_FSIZE, since no tmpfs could be mounted")
    if isinstance(place, LocalPlace):
        place = LocalPlace(disk / "run")
    else:
        tempfile.tempdir = str(disk)  # of this process only
    watch = Watch(place, record)
    manager = open_manager(open_store(place.address))
    for step in (1, 2):
        watch.acknowledge(save(manager, step))
    for kind, fraction in FILLS.items():
        for _ in range(rounds):
            before = place.names(), sorted(os.listdir(disk))
            room = int(fraction * _SAVE_BYTES)
            with filled(disk, room) if is_mounted else limited(room):
                try:
                    save(manager, watch.newest + 1)
                    record.complaints.append(f"a save {kind} succeeded on a full disk")
                except Full:
                    record.fired[kind] += 1
            after = place.names(), sorted(os.listdir(disk))
            record.require(after == before, f"a failed save {kind} changed {before} to {after}")
            watch.look()
            watch.acknowledge(save(manager, watch.newest + 1))
            record.rounds += 1
        record.require_fired(kind, rounds)
