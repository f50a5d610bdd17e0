"""The interface between a run's checkpoints and the place where they lie, and how a place can fail.

An object is a name (`key`, parts joined by "/") and bytes; it appears whole or not at all. Data and markers
are written once, only hints are replaced: so a reader can never meet a half-written or a changed checkpoint.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class StoreError(Exception):
    """A checkpoint store could not do what was asked; the subclass says who or what can mend it."""


class NotFound(StoreError):
    """There is no such object."""


class Denied(StoreError):
    """The permission is missing: a human has to grant it."""


class Unavailable(StoreError):
    """The place does not answer or answers with an error: it may come back."""


class Full(StoreError):
    """No space or quota is left."""


class Conflict(StoreError):
    """The key holds other bytes already."""


class Corrupt(StoreError):
    """The bytes are there, but they are not the bytes that were written."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a listing says about an object: key, bytes, when it was stored (seconds since the epoch)."""

    key: str
    size: int
    modified: float


class CheckpointStore(Protocol):
    """Whole objects under keys; methods raise StoreErrors. tests/contracts holds every store to it."""

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Stores what `write` writes (append only, no seek) as a new object, durable on return.

        Raises Conflict when the key is taken. When `write` raises, nothing is stored and nothing is left
        behind; an OSError of `write` comes out as the StoreError that it means.
        """
        ...

    def commit(self, key: str, data: bytes) -> None:
        """Stores a small new object, durable on return; the same bytes there already count as success.

        Raises Conflict when the key holds other bytes.
        """
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Stores a small object in place of whatever is there: for hints only."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A seekable, read-only file with the object's bytes; the caller closes it. Raises NotFound."""
        ...

    def get_bytes(self, key: str) -> bytes:
        """A small object's bytes. Raises NotFound."""
        ...

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All complete objects whose key begins with `prefix` (plain text, as in a bucket), sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; an absent one counts as success."""
        ...

    def probe(self) -> None:
        """Writes, reads and deletes a new small object: a useless place is known before training starts."""
        ...

    def free_bytes(self) -> int | None:
        """What a `put` can still take: of the disk, for a bucket of its spool; None where the place does not tell."""
        ...

    def sweep(self, older_than_s: float) -> None:
        """Removes what killed writers left unfinished and nobody touched for `older_than_s` seconds."""
        ...


def check_key(key: str) -> str:
    """`key` itself. Raises ValueError unless it is parts of [A-Za-z0-9._-], no leading dot, joined by "/"."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"store key {key!r}: parts of letters, digits, '.', '_', '-' joined by '/', no leading dot")
    return key
