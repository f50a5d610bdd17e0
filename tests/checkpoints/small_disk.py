"""A small tmpfs for tests that need a disk which is really full, or really read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A tmpfs of 8 MB at `folder` for the time of the block; skips the test where this user may not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=8m", *options)), "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("NO MOUNT COMMAND HERE: the behaviour of a real small disk was NOT tested")
    if done.returncode != 0:
        pytest.skip(f"NO TMPFS COULD BE MOUNTED ({done.stderr.strip()}): a real small disk was NOT tested")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
