"""Google Cloud Storage for the data: lists, fetches whole objects, mirrors a folder. The only file that knows gcsfs.

A cut download looks like a damaged scan, so each object is fetched whole, in the generation that was listed, and
compared with the listing's size and crc32c; gcsfs compares nothing by itself. Used in the process that needs it:
fsspec hangs after a fork.
"""

import base64
import logging
import os
import posixpath
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c

from data_setup.errors import BadFile, Reason, StopPreparing
from data_setup.sources import GCS_SCHEME, InputFile, Stated, is_shadow

_ATTEMPTS, _ATTEMPT_S = 2, 34.0  # on top of six per request that gcsfs makes in 31 to 36 s
_PAUSE_S = 5.0
_QUIET_S = 10.0  # without an answer before a line says so
_ARRIVALS = 3  # times that an object may arrive wrong before that is its own fault
_REQUEST_S, _SLOWEST_BYTES_PER_S = 60.0, 500_000  # allowed per fetch: 60 s + 2 s per MB
_CONNECTIONS = 8

_Result = TypeVar("_Result")
log = logging.getLogger(__name__)


def list_files(uri: str) -> list[InputFile]:
    """Every object below gs://bucket/prefix with what the bucket states of it; raises ValueError, StopPreparing."""
    root = _path(uri)
    found = _ask(uri, lambda: _filesystem().find(root, detail=True, refresh=True, timeout=600))
    return [
        InputFile(
            key=name[len(root) :].lstrip("/") or posixpath.basename(name),
            location=GCS_SCHEME + name,
            stated=Stated(int(info["size"]), info.get("crc32c"), info.get("generation")),
        )
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/") and not is_shadow(name)
    ]


def read_bytes(uri: str) -> bytes:
    """The object at gs://bucket/name; raises ValueError where there is none, StopPreparing."""
    return _ask(uri, lambda: _filesystem().cat_file(_path(uri), timeout=_REQUEST_S * 5))


def fetch(uri: str, stated: Stated, target: Path) -> None:
    """Writes an object, whole and as it was listed, to `target`.

    Raises BadFile(missing_file) where it is gone or was replaced since, BadFile(transfer_mismatch) where it arrives
    wrong three times, StopPreparing where the bucket fails or the disk is full.
    """
    allowed_s = _REQUEST_S + (stated.bytes or 0) / _SLOWEST_BYTES_PER_S
    for _ in range(_ARRIVALS):
        try:
            content = _ask(
                uri,
                lambda: _filesystem().cat_file(_path(uri), generation=stated.generation, timeout=allowed_s),
                quiet_s=_QUIET_S + allowed_s - _REQUEST_S,
            )
        except ValueError:
            raise BadFile(Reason.MISSING_FILE, "the object is gone from its bucket, or was replaced") from None
        found = _differs(content, stated)
        if not found:
            try:
                target.write_bytes(content)
            except OSError as error:
                raise StopPreparing(f"a fetched file cannot be written: {error.strerror}") from None
            return
    raise BadFile(Reason.TRANSFER_MISMATCH, found)


def crc32c(content: bytes) -> str:
    """CRC-32C in base64 of the big-endian number, as Google Cloud Storage writes it."""
    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


def mirror(folder: Path, names: list[str], uri: str) -> int:
    """Copies files (names below `folder`) to gs://bucket/prefix in their order, the last one when all others are
    there. Objects of equal size and crc32c stay. Returns how many were copied; raises StopPreparing.
    """
    there = {file.key: file.stated for file in list_files(uri)}

    def copy(name: str) -> bool:
        content = (folder / name).read_bytes()
        stated = there.get(name)
        if stated is not None and not _differs(content, stated):
            return False
        target = _path(f"{uri.rstrip('/')}/{name}")
        quiet_s = _QUIET_S + len(content) / _SLOWEST_BYTES_PER_S
        _ask(uri, lambda: _filesystem().pipe_file(target, content, timeout=600), quiet_s=quiet_s)
        info = _ask(uri, lambda: _filesystem().info(target, refresh=True, timeout=_REQUEST_S))
        if trouble := _differs(content, Stated(int(info["size"]), info.get("crc32c"))):
            raise StopPreparing(f"a copy in {uri} is not what was sent ({trouble}); the same command tries again")
        return True

    *most, last = names
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        copied = sum(pool.map(copy, most))
    return copied + copy(last)


def download(uri: str, folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Copies all objects below gs://bucket/prefix into `folder`, each verified; those already there stay.

    Returns `folder`; raises ValueError where there is nothing, StopPreparing.
    """
    files = list_files(uri)
    if not files:
        raise ValueError(f"{uri} holds nothing")

    def copy(file: InputFile) -> None:
        target = folder / file.key
        if target.is_file() and target.stat().st_size == file.stated.bytes and file.key.endswith(".npy"):
            return  # volumes are written once under their id; the index may change
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        assert file.location is not None
        try:
            fetch(file.location, file.stated, temporary)
        except BadFile as bad:
            raise StopPreparing(f"an object below {uri} cannot be copied: {bad.found}") from None
        os.replace(temporary, target)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for done, _ in enumerate(pool.map(copy, files), start=1):
            if progress is not None:
                progress(done, len(files))
    return folder


def _differs(content: bytes, stated: Stated) -> str:
    """What is wrong with bytes that arrived, "" if nothing is."""
    if stated.bytes is not None and len(content) != stated.bytes:
        return f"{len(content):,} bytes arrived, the listing says {stated.bytes:,}"
    if stated.crc32c and crc32c(content) != stated.crc32c:
        return "the bytes that arrived have another crc32c than the listing says"
    return ""


def _path(uri: str) -> str:
    """bucket/name of gs://bucket/name; raises ValueError for a missing or impossible bucket."""
    path = uri.removeprefix(GCS_SCHEME).rstrip("/")
    bucket = path.partition("/")[0]
    if len(bucket) < 3 or bucket.lower() in ("none", "null") or bucket != bucket.lower():
        raise ValueError(f"{uri} names no bucket; write gs://bucket/folder")
    return path


@cache
def _filesystem() -> Any:
    """The client of this process: made where it is used, since it does not survive a fork."""
    # Asking for the bucket's type over gRPC takes 30-60 s per operation where only HTTP is answered (an emulator, a
    # proxy); buckets of the rapid class need it: set the variable to true for those.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)  # its messages hold the names of objects
    token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None
    return gcsfs.GCSFileSystem(token=token, use_listings_cache=False, skip_instance_cache=True)


def _ask(uri: str, request: Callable[[], _Result], quiet_s: float | None = None) -> _Result:
    """The answer to a request, after retries with growing pauses; a line where there is none after quiet_s (_QUIET_S).

    Raises ValueError where the bucket answers that there is nothing, StopPreparing where it refuses or is silent; the
    texts name the bucket only.
    """
    bucket = GCS_SCHEME + _path(uri).partition("/")[0]
    how = ""
    with _told_when_silent(bucket, _QUIET_S if quiet_s is None else quiet_s):
        for _ in range(_ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                if not _bucket_exists(bucket):
                    raise StopPreparing(f"bucket {bucket} does not exist, or not any more") from None
                raise ValueError(f"{uri} does not exist") from None
            except Exception as error:  # gcsfs, aiohttp, google.auth and fsspec have a dozen unrelated types
                how = _describe(error)
                if _is_refusal(error):
                    raise StopPreparing(f"bucket {bucket} refuses access ({how}): {_PERMISSION}") from None
            time.sleep(_PAUSE_S * random.random())
    raise StopPreparing(f"bucket {bucket} does not answer ({how})")


@contextmanager
def _told_when_silent(bucket: str, quiet_s: float) -> Iterator[None]:
    """One line where what is inside takes longer than quiet_s: gcsfs retries for minutes without a word."""
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + _ATTEMPTS * (_ATTEMPT_S + _PAUSE_S)))
    text = "bucket %s: no answer for %.0f s; it is asked again until about %s, longer where it hangs, then this stops"
    timer = threading.Timer(quiet_s, log.warning, (text, bucket, quiet_s, until))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_PERMISSION = (
    "the account needs storage.objects.get and .list there (role Storage Object Viewer), and .create to write; "
    "`gcloud auth application-default login` renews a login"
)


def _is_refusal(error: Exception) -> bool:
    """True for what no retry mends: 401, 403, no credentials."""
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return code in (401, 403) or isinstance(error, PermissionError) or str(error).startswith("Forbidden")


def _describe(error: Exception) -> str:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return f"HTTP {code}" if isinstance(code, int) else type(error).__name__


def _bucket_exists(bucket: str) -> bool:
    """False only where the service says so."""
    try:
        _filesystem().ls(_path(bucket), refresh=True, timeout=_REQUEST_S)
    except FileNotFoundError:
        return False
    except Exception:  # a silent service is no proof
        return True
    return True
