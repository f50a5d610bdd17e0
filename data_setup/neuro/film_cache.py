"""Arrays that took minutes to derive, kept as safetensors under a key of every setting and every input file.

A cache is never trusted: each array's checksum is compared, and what does not fit is made again. Arrays are mapped,
not read, so that processes of one machine share them.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the same settings and files shall give other arrays


class Cached(NamedTuple):
    """Arrays, and what is known about them in words and numbers that JSON holds."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def cache_key(settings: Mapping[str, Any], files: Sequence[Path]) -> str:
    """16 hex digits of all settings and of each file's path, size and time of change."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([_FORMAT, settings, stats], sort_keys=True).encode()).hexdigest()[:16]


def save(path: Path, cached: Cached) -> None:
    """Writes it whole or not at all."""
    import torch
    from safetensors.torch import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in cached.arrays.items()}
    metadata = {
        "facts": json.dumps(cached.facts),
        "crc32": json.dumps({name: _crc32(array) for name, array in arrays.items()}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, temporary, metadata)
    os.chmod(temporary, path.parent.stat().st_mode & 0o666)  # safetensors lets nobody else of a team read it
    os.replace(temporary, path)
    log.info("%s holds the derived arrays, %.1f MB; delete it whenever you like", path, path.stat().st_size / 1e6)


def load(path: Path) -> Cached | None:
    """None where there is none, and with a warning where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no mapping
        facts, sums = json.loads(metadata["facts"]), json.loads(metadata["crc32"])
        damaged = sorted(name for name in sums if name not in arrays or _crc32(arrays[name]) != sums[name])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        log.warning("the cache %s is damaged (%s) and is made again", path, error)
        return None
    if damaged:
        log.warning("the cache %s is damaged (%s) and is made again", path, ", ".join(damaged))
        return None
    return Cached(arrays, facts)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: the first derives, the others then load. Where the file system has no locks, no order.

    Raises ValueError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ValueError(f"the cache folder {folder} cannot be written ({error}); set data.cache_dir") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): each process derives the film for itself", folder, error)
        yield


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """16 hex digits that change with any value, type or shape."""
    parts = [
        (name, str(array.dtype), array.shape, _crc32(np.ascontiguousarray(array))) for name, array in arrays.items()
    ]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]
