"""CheckpointStore in a bucket of Google Cloud Storage, by google-cloud-storage alone: the only file that imports it.

An object appears whole or not at all by the service's own promise; what is left to us is never to overwrite data, to
look instead of guess when a reply was lost, and to give up within a deadline, since retries run per request.
"""

import base64
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import google_crc32c

from oct_foundation.checkpoints.location import GcsUri
from oct_foundation.checkpoints.os_errors import as_store_error
from oct_foundation.checkpoints.store import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    ObjectInfo,
    StoreError,
    Unavailable,
    check_key,
)

_REQUEST_S = 60.0  # of one request; a chunk of a resumable upload is one
_READ_BYTES = 1 << 20
Fetched = TypeVar("Fetched")
_REQUEST = re.compile(r"^[A-Z]+ \S+: ")
_QUIET_S = 10.0  # of retrying before a line says so
_log = logging.getLogger(__name__)


@dataclass
class _Call:
    """What is being tried, since when (seconds of the epoch), and how long it may be tried."""

    what: str
    start: float
    deadline_s: float
    told: bool = False


_CALL: ContextVar[_Call | None] = ContextVar("_CALL", default=None)


def _tell(error: Exception) -> None:
    """One line for a call that has been tried for _QUIET_S: until its deadline it would look like a hang."""
    call = _CALL.get()
    if call is None or call.told or time.time() - call.start < _QUIET_S:
        return
    call.told = True
    until = time.strftime("%H:%M:%S", time.localtime(call.start + call.deadline_s))
    _log.warning("cannot %s yet (%s); it is tried again until %s at the latest", call.what, _reason(error), until)


class GcsStore:
    """Objects below gs://bucket/prefix. `deadline_s` bounds the retries of one call; fork before it is first used."""

    def __init__(self, uri: GcsUri, deadline_s: float = 300.0) -> None:
        if deadline_s <= 0:
            raise ValueError(f"deadline_s is {deadline_s}; it must be above 0 seconds, e.g. 300")
        self.uri, self._deadline_s = uri, deadline_s

    def __str__(self) -> str:
        """The gs:// address, for messages."""
        return str(self.uri)

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Spools to the local disk, then uploads; see CheckpointStore.put."""
        blob = self._blob(key)
        with as_store_error("spool", f"{self}/{key}"), _spool() as spool:
            write(spool)
            spool.flush()
            with self._as_store_error("write", key):
                if blob.exists(timeout=_REQUEST_S, retry=self._retry):
                    raise Conflict(f"{self}/{key} exists already: data is never written twice")
                self._upload(key, Path(spool.name))

    def commit(self, key: str, data: bytes) -> None:
        """A small new object, or the same one once more; see CheckpointStore.commit."""
        from google.api_core.exceptions import PreconditionFailed

        with self._as_store_error("commit", key):
            try:
                self._blob(key).upload_from_string(
                    data, if_generation_match=0, checksum="crc32c", timeout=_REQUEST_S, retry=self._retry
                )
            except PreconditionFailed:  # also where our own upload won and its reply was lost
                if self.get_bytes(key) != data:
                    raise Conflict(f"{self}/{key} holds other bytes already") from None

    def replace(self, key: str, data: bytes) -> None:
        """A small object in place of the old one; see CheckpointStore.replace."""
        with self._as_store_error("replace", key):
            self._blob(key).upload_from_string(data, checksum="crc32c", timeout=_REQUEST_S, retry=self._retry)

    def open(self, key: str) -> BinaryIO:
        """The object, fetched to the local disk and compared with its crc32c, opened for reading; gone when closed."""
        with as_store_error("spool", f"{self}/{key}"), _spool() as spool:
            with self._as_store_error("open", key):
                self._once_more(lambda: self._download(key, spool))
            spool.flush()
            return Path(spool.name).open("rb")  # the name goes, the bytes stay until this is closed

    def get_bytes(self, key: str) -> bytes:
        """The object's content, compared with its crc32c."""
        with self._as_store_error("read", key):
            return self._once_more(
                lambda: self._blob(key).download_as_bytes(checksum="crc32c", timeout=_REQUEST_S, retry=self._retry)
            )

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object below the prefix, by key; unfinished uploads are no objects."""
        with self._as_store_error("list", prefix):
            blobs = self._client.list_blobs(
                self.uri.bucket, prefix=self._root + prefix, timeout=_REQUEST_S, retry=self._retry
            )
            found = [
                ObjectInfo(key=blob.name[len(self._root) :], size=blob.size, modified=blob.updated.timestamp())
                for blob in blobs
            ]
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Removes the object; an absent one counts as success, as after a lost reply."""
        with suppress(NotFound), self._as_store_error("delete", key):
            self._blob(key).delete(timeout=_REQUEST_S, retry=self._retry)

    def probe(self) -> None:
        """Writes, reads and deletes an object of this name only; no permission beyond a run's own is needed."""
        key, data = f"probe-{os.urandom(8).hex()}", os.urandom(64)
        self.commit(key, data)
        found = self.get_bytes(key)
        self.delete(key)
        if found != data:
            raise Unavailable(f"{self}: an object read back right after the write differs from what was written")

    def free_bytes(self) -> int | None:
        """A bucket is never full; the disk that uploads are spooled to may be."""
        with as_store_error("look at", tempfile.gettempdir()):
            return shutil.disk_usage(tempfile.gettempdir()).free

    def sweep(self, older_than_s: float) -> None:
        """Nothing to do: an upload that was never finished is no object, and the service forgets it in a week."""

    # --- the service

    @cached_property
    def _client(self) -> Any:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        try:  # a project is needed for making buckets only, and many credentials name none
            return storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "octfm"))
        except DefaultCredentialsError as error:
            raise Denied(
                f"no credentials for {self}: run `gcloud auth application-default login`, or give this machine a "
                f"service account"
            ) from error

    @cached_property
    def _retry(self) -> Any:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return partial(DEFAULT_RETRY.with_timeout(self._deadline_s), on_error=_tell)

    @property
    def _root(self) -> str:
        return f"{self.uri.prefix}/" if self.uri.prefix else ""

    def _blob(self, key: str) -> Any:
        return self._client.bucket(self.uri.bucket).blob(self._root + check_key(key))

    def _upload(self, key: str, path: Path) -> None:
        """Creates the object; once more where the reply of a chunk was lost and the client threw its upload away.

        Raises Conflict where other bytes are there, Unavailable where the deadline passes.
        """
        from google.api_core.exceptions import NotFound as Gone
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.exceptions import DataCorruption

        deadline = time.monotonic() + self._deadline_s
        while True:
            blob = self._blob(key)
            try:
                blob.upload_from_filename(
                    path, if_generation_match=0, checksum="crc32c", timeout=_REQUEST_S, retry=self._retry
                )
                return
            except (PreconditionFailed, Gone, DataCorruption) as error:  # look, do not guess
                if self._is_there(key, path):
                    return
                if isinstance(error, PreconditionFailed):
                    raise Conflict(f"{self}/{key} exists already: data is never written twice") from None
                if time.monotonic() > deadline:
                    raise Unavailable(f"cannot write {self}/{key} within {self._deadline_s:.0f} s") from error

    def _download(self, key: str, spool: BinaryIO) -> None:
        spool.seek(0)
        spool.truncate()
        self._blob(key).download_to_file(spool, checksum="crc32c", timeout=_REQUEST_S, retry=self._retry)

    def _once_more(self, fetch: Callable[[], Fetched]) -> Fetched:
        """What `fetch` brings; a second time where the bytes changed on the way, which is no damage at rest."""
        from google.cloud.storage.exceptions import DataCorruption

        try:
            return fetch()
        except DataCorruption:
            return fetch()

    def _is_there(self, key: str, path: Path) -> bool:
        """True if the object has the size and the crc32c of the file: our upload won, and its reply was lost.

        Raises NotFound where the bucket itself is gone.
        """
        from google.api_core.exceptions import NotFound as Gone

        blob = self._blob(key)
        try:
            blob.reload(timeout=_REQUEST_S, retry=self._retry)
        except Gone:
            if not self._client.bucket(self.uri.bucket).exists(timeout=_REQUEST_S, retry=self._retry):
                raise NotFound(f"bucket {self.uri.bucket} does not exist") from None
            return False
        return blob.size == path.stat().st_size and blob.crc32c == _crc32c(path)

    @contextmanager
    def _as_store_error(self, action: str, key: str) -> Iterator[None]:
        """What the client raises comes out as the StoreError that it means, with action and place."""
        from google.api_core import exceptions as api
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests.exceptions import RequestException

        place = f"{self}/{key}" if key else str(self)
        kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[StoreError]], ...] = (
            (api.NotFound, NotFound),
            ((api.Forbidden, api.Unauthorized, GoogleAuthError), Denied),
            (api.PreconditionFailed, Conflict),
            (DataCorruption, Corrupt),
            ((api.GoogleAPIError, InvalidResponse, RequestException, ConnectionError, TimeoutError), Unavailable),
        )
        outer = _CALL.set(_Call(f"{action} {place}", time.time(), self._deadline_s))
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            for causes, meaning in kinds:
                if isinstance(error, causes):
                    raise meaning(f"cannot {action} {place}: {_reason(error)}") from error
            raise
        finally:
            _CALL.reset(outer)


@contextmanager
def _spool() -> Iterator[BinaryIO]:
    """A named file that is gone afterwards: NamedTemporaryFile stays where the flush at its end meets a full disk."""
    with tempfile.TemporaryDirectory(prefix="octfm-") as folder, Path(folder, "spool").open("w+b") as file:
        yield file


def _reason(error: Exception) -> str:
    """One line: the kind and the service's own words, without the request that the client repeats before them."""
    message = str(getattr(error, "message", None) or error)
    lines = _REQUEST.sub("", message).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _crc32c(path: Path) -> str:
    """CRC-32C of a file in base64 of the big-endian number, as the service writes it."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            checksum.update(part)
    return base64.b64encode(checksum.digest()).decode()
