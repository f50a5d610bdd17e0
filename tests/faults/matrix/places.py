"""Where a row's checkpoints lie, seen from two sides: as a store through which runs save, and as raw objects that the
row damages behind their back.
"""

import logging
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import GcsUri, LocalPath, parse_ckpt_dir
from oct_foundation.checkpoints.store import CheckpointStore
from tests.faults.gcs_emulator import GcsEmulator

StoreKind = Literal["local", "gcs"]
DEADLINE_S = 20.0  # of a call: a few retries, which begin at 1 s


def open_store(address: str, deadline_s: float = DEADLINE_S) -> CheckpointStore:
    """The store at a `ckpt_dir`, as a run opens it."""
    match parse_ckpt_dir(address):
        case LocalPath(path=path):
            return LocalStore(path)
        case GcsUri() as uri:
            return GcsStore(uri, deadline_s)
    raise ValueError(f"{address!r} is no place")


@dataclass(frozen=True)
class LocalPlace:
    """A run's folder `root`."""

    root: Path
    kind: StoreKind = "local"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead a process here."""
        return {}

    @property
    def address(self) -> str:
        """What a run would be given as ckpt_dir."""
        return str(self.root)

    def fresh(self) -> "LocalPlace":
        """An empty place beside this one."""
        return LocalPlace(self.root.with_name(f"run-{secrets.token_hex(4)}"))

    def names(self) -> list[str]:
        """Every object, also unfinished ones, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return (self.root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Puts bytes where no run would: over an object, or foreign ones."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def remove(self, key: str) -> None:
        """Takes an object away."""
        (self.root / key).unlink()


@dataclass(frozen=True)
class BucketPlace:
    """A run's prefix in a bucket of the emulator; runs reach it through the fault proxy, or round it: 40 ms a request
    faster.
    """

    emulator: GcsEmulator
    bucket: str
    through_proxy: bool
    prefix: str = "runs/one"
    kind: StoreKind = "gcs"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead a process here."""
        url = self.emulator.url if self.through_proxy else self.emulator.direct_url
        return {**self.emulator.environment, "STORAGE_EMULATOR_HOST": url}

    @property
    def address(self) -> str:
        """What a run would be given as ckpt_dir."""
        return f"gs://{self.bucket}/{self.prefix}"

    def fresh(self) -> "BucketPlace":
        """An empty prefix in a new bucket."""
        return replace(self, bucket=self.emulator.create_bucket(f"run-{secrets.token_hex(6)}"))

    def names(self) -> list[str]:
        """Every object, sorted."""
        root = f"{self.prefix}/"
        return [name.removeprefix(root) for name in self.emulator.names(self.bucket, root)]

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return self.emulator.get(self.bucket, f"{self.prefix}/{key}")

    def write(self, key: str, content: bytes) -> None:
        """Puts bytes where no run would: over an object, or foreign ones; round the proxy."""
        self.emulator.put(self.bucket, f"{self.prefix}/{key}", content)

    def remove(self, key: str) -> None:
        """Takes an object away, round the proxy."""
        self.emulator.delete(self.bucket, f"{self.prefix}/{key}")


Place = LocalPlace | BucketPlace


def enter(variables: dict[str, str]) -> None:
    """Makes this process, one of a row, see the place; before the store is first used. What the row provokes need not
    be logged: it is in the record.
    """
    os.environ.update(variables)
    logging.disable(logging.CRITICAL)
