"""What an OSError means for a checkpoint: missing, forbidden, full, or perhaps better later."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from oct_foundation.checkpoints.store import Denied, Full, NotFound, StoreError, Unavailable

# EFBIG: RLIMIT_FSIZE or the file system's largest file; for a checkpoint the same trouble as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# ENOTDIR: a part of the path is a file.
_NOT_FOUND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


@contextmanager
def as_store_error(action: str, place: object) -> Iterator[None]:
    """An OSError of the body comes out as the StoreError that it means, with action, place and cause."""
    try:
        yield
    except OSError as error:
        raise _meaning(error)(f"cannot {action} {place}: {error.strerror or error}") from error


def _meaning(error: OSError) -> type[StoreError]:
    match error.errno:
        case number if number in _FULL:
            return Full
        case number if number in _DENIED:
            return Denied
        case number if number in _NOT_FOUND:
            return NotFound
        case _:
            return Unavailable
