"""On which mount a path lies, and whether that keeps what a checkpoint needs from a folder.

What enters is the text of /proc/mounts, proc(5); so the answer is a pure function.
"""

import re
from pathlib import Path
from typing import NamedTuple

_OCTAL = re.compile(r"\\([0-7]{3})")  # space, tab, newline and backslash in a mount point
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs"})


class Mount(NamedTuple):
    """Where a file system is mounted, and its type."""

    point: Path
    kind: str


def mount_of(path: Path, mounts: str) -> Mount | None:
    """The mount that an absolute path without symbolic links lies on; None where the text names none."""
    found = None
    for line in mounts.splitlines():
        _, raw, kind, *_ = line.split(" ")
        point = Path(_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), raw))
        # Of the deepest ones the last: it was mounted over the others.
        if path.is_relative_to(point) and (found is None or len(point.parts) >= len(found.point.parts)):
            found = Mount(point, kind)
    return found


def doubt_about(mount: Mount) -> str | None:
    """Why checkpoints are better not kept there, and where instead; None where nothing speaks against it."""
    if mount.kind.startswith("fuse"):
        return (
            f"{mount.point} is mounted by {mount.kind}: whether a file appears whole and survives a crash is up to "
            "that program. For a bucket give gs://bucket/prefix, else a folder of a local disk"
        )
    if mount.kind in _NETWORK:
        return (
            f"{mount.point} is a network mount ({mount.kind}): a save waits while its server is away, and a reply that "
            "gets lost can turn a done write into an error. A local disk or gs://bucket/prefix is safer"
        )
    return None
