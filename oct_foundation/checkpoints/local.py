"""CheckpointStore in a folder: temporary name beside the target, fsync, link or rename, fsync of the folder.

A key is the path below the root. Temporary names begin with a dot, which no key does; so a listing never
shows them.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from oct_foundation.checkpoints.os_errors import as_store_error
from oct_foundation.checkpoints.store import Conflict, ObjectInfo, Unavailable, check_key

# File systems without hard links (exFAT, several FUSE mounts) answer link() with one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# Some mounts refuse fsync of a folder: they have nothing to flush there.
_NO_DIR_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


class LocalStore:
    """Objects as files below `root`, which is made at the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        """The folder, for messages."""
        return str(self.root)

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Streams a new file; see CheckpointStore.put."""
        target = self._path(key)
        with as_store_error("write", target):
            if target.exists():
                raise Conflict(f"{target} exists already: data is never written twice")
            with self._temporary(target, write) as temporary:
                try:
                    _publish_new(temporary, target)
                except FileExistsError as error:
                    raise Conflict(f"{target} exists already: data is never written twice") from error

    def commit(self, key: str, data: bytes) -> None:
        """A new small file, or the same one once more; see CheckpointStore.commit."""
        target = self._path(key)
        with (
            as_store_error("commit", target),
            self._temporary(target, lambda file: _write_all(file, data)) as temporary,
        ):
            try:
                _publish_new(temporary, target)
            except FileExistsError as error:
                if target.read_bytes() != data:
                    raise Conflict(f"{target} holds other bytes already") from error

    def replace(self, key: str, data: bytes) -> None:
        """A small file in place of the old one; see CheckpointStore.replace."""
        target = self._path(key)
        with (
            as_store_error("replace", target),
            self._temporary(target, lambda file: _write_all(file, data)) as temporary,
        ):
            os.replace(temporary, target)
            _fsync_folder(target.parent)

    def open(self, key: str) -> BinaryIO:
        """The file, opened for reading."""
        target = self._path(key)
        with as_store_error("open", target):
            return target.open("rb")

    def get_bytes(self, key: str) -> bytes:
        """The file's content."""
        target = self._path(key)
        with as_store_error("read", target):
            return target.read_bytes()

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every file below the root whose key begins with `prefix`, by key; temporary ones are no objects."""
        found = []
        with as_store_error("list", self.root):
            for path in self._files():
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not path.name.startswith("."):
                    with suppress(FileNotFoundError):  # deleted between the listing and the look
                        status = path.stat()
                        found.append(ObjectInfo(key=key, size=status.st_size, modified=status.st_mtime))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Removes the file, and its folder when that is empty then: a bucket has no empty folders either."""
        target = self._path(key)
        with as_store_error("delete", target):
            with suppress(FileNotFoundError, NotADirectoryError):
                target.unlink()
            if target.parent != self.root:
                with suppress(OSError):
                    target.parent.rmdir()

    def probe(self) -> None:
        """Writes, reads and deletes a file of this name only."""
        key = f"probe-{secrets.token_hex(8)}"
        data = secrets.token_bytes(64)
        self.commit(key, data)
        found = self.get_bytes(key)
        self.delete(key)
        if found != data:
            raise Unavailable(f"{self.root}: a file read back right after the write differs from what was written")

    def free_bytes(self) -> int | None:
        """What this user may still write on the disk of the root; quotas of the user are not seen."""
        with as_store_error("look at", self.root):
            folder = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
            usage = shutil.disk_usage(folder)
            return usage.free if usage.total else None

    def sweep(self, older_than_s: float) -> None:
        """Removes temporary files, and empty folders, that nobody has touched for `older_than_s` seconds.

        A kill before or while the data is written leaves a folder with nothing, or only a temporary file, in it.
        """
        latest = time.time() - older_than_s
        with as_store_error("sweep", self.root), suppress(FileNotFoundError):  # something that goes by itself
            for path in self._files():
                if path.name.startswith(".") and path.name.endswith(".tmp") and path.stat().st_mtime <= latest:
                    path.unlink()
                    os.utime(path.parent, (latest, latest))  # as old as what was in it
            for folder in filter(Path.is_dir, self.root.iterdir()):
                if folder.stat().st_mtime <= latest:
                    with suppress(OSError):  # not empty
                        folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root, onerror=_unless_absent):
            yield from (Path(folder, name) for name in names)

    @contextmanager
    def _temporary(self, target: Path, write: Callable[[BinaryIO], None]) -> Iterator[Path]:
        """A flushed file beside `target` with what `write` wrote; gone at the end, whatever happens."""
        _make_folder(target.parent)
        path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            with path.open("xb") as file:  # mode 0666 less the umask: colleagues may read; mkstemp would give 0600
                write(file)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _publish_new(temporary: Path, target: Path) -> None:
    """Gives the flushed file its name; FileExistsError if taken: link() refuses where rename() overwrites."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
        os.rename(temporary, target)
    _fsync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    """Makes `folder` and its parents durable: a new name lives in its parent, so the parent is flushed."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIR_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
