"""Training state on its way to and from a file: copied to the host, written with a hash, read when it fits.

What goes in is a tree of dicts, lists, tensors, bool, int, float, str and None: exactly what torch.load gives
back under weights_only=True. Anything else fails when it is saved, not months later when it is loaded.
"""

import hashlib
import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch

from oct_foundation.checkpoints.store import Corrupt

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """What a manifest promises about a file: its bytes and their sha256 in hex."""

    size: int
    sha256: str


def to_host(live: Any, host: Any = None) -> Any:
    """Copies `live` (on any device) into host memory and returns the copy; step on as soon as it is back.

    host: what an earlier call returned. Its tensors are written over where shape and dtype fit, for the first
    copy of 0.5 GB costs 1.4 s, one into memory in use 0.04 s. CUDA copies are asynchronous: synchronise
    before reading them. Raises TypeError, naming the place, for an object that torch.load(weights_only=True)
    would refuse; nothing has been copied then.
    """
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    tree = _paired(live, host, "state", copies)
    with torch.no_grad():
        for copy, tensor in copies:
            copy.copy_(tensor, non_blocking=tensor.is_cuda)
    return tree


def _paired(live: Any, host: Any, where: str, copies: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """The tree of host tensors for `live`; each goes into `copies` with the tensor that it is to hold."""
    if isinstance(live, torch.Tensor):
        if not (isinstance(host, torch.Tensor) and host.shape == live.shape and host.dtype == live.dtype):
            host = torch.empty(live.shape, dtype=live.dtype, pin_memory=live.is_cuda)
        copies.append((host, live))
        return host
    if isinstance(live, dict):
        old = host if isinstance(host, dict) else {}
        return {_key(k, where): _paired(v, old.get(k), f"{where}[{k!r}]", copies) for k, v in live.items()}
    if isinstance(live, list | tuple):
        olds = host if isinstance(host, list) and len(host) == len(live) else [None] * len(live)
        return [_paired(v, old, f"{where}[{i}]", copies) for i, (v, old) in enumerate(zip(live, olds, strict=True))]
    return _plain(live, where)


def num_bytes(state: Any) -> int:
    """Bytes of all tensors in such a tree: a file of it is a few hundred bytes per tensor longer."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(num_bytes(value) for value in state.values())
    return sum(num_bytes(value) for value in state) if isinstance(state, list) else 0


def check_on_host(state: Any, where: str = "state") -> None:
    """Raises TypeError, naming the place, unless `state` is such a tree as `to_host` returns."""
    if isinstance(state, torch.Tensor):
        if state.device.type != "cpu" or type(state) is not torch.Tensor:
            raise TypeError(f"{where} is a {type(state).__name__} on {state.device}: pass the state through to_host")
    elif isinstance(state, dict):
        for key, value in state.items():
            check_on_host(value, f"{where}[{_key(key, where)!r}]")
    elif isinstance(state, list):
        for index, value in enumerate(state):
            check_on_host(value, f"{where}[{index}]")
    else:
        _plain(state, where)


def _key(key: Any, where: str) -> Any:
    if type(key) not in (int, str):
        raise TypeError(f"{where} has a key of type {type(key).__name__}: only str and int come back from a checkpoint")
    return key


def _plain(value: Any, where: str) -> Any:
    if value is not None and type(value) not in (
        bool,
        int,
        float,
        str,
    ):  # not isinstance: np.float64 is a float
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__name__}: a checkpoint holds dict, list, "
            "tensor, bool, int, float, str and None only"
        )
    return value


class _HashingFile:
    """Passes bytes on and hashes what was meant; a hash read back from disk would bless a bad write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self._size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> FileDigest:
        return FileDigest(size=self._size, sha256=self._sha256.hexdigest())


def write_state(state: dict[str, Any], file: BinaryIO) -> FileDigest:
    """Writes `state` with torch.save to an open file; raises that file's OSError where torch wraps it."""
    hashing = _HashingFile(file)
    try:
        torch.save(state, cast(BinaryIO, hashing))
    except RuntimeError as error:
        # A full disk reaches us as "unexpected pos" or another RuntimeError, with the OSError further down
        # the chain.
        if cause := _os_error_behind(error):
            raise cause from error
        raise
    return hashing.digest()


def _os_error_behind(error: BaseException) -> OSError | None:
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def verify(file: BinaryIO, promised: FileDigest) -> None:
    """Reads an open file to its end; raises Corrupt unless it has the promised size and sha256."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if size != promised.size:
        raise Corrupt(f"it has {size} bytes, its manifest says {promised.size}")
    if digest.hexdigest() != promised.sha256:
        raise Corrupt("its sha256 is not that of its manifest")


def read_state(file: BinaryIO, promised: FileDigest) -> dict[str, Any]:
    """The state in an open file, tensors on the CPU; nothing is unpickled before size and sha256 are right.

    Raises Corrupt for other bytes, and for a file that weights_only refuses: one that would run code, for
    example.
    """
    verify(file, promised)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Corrupt(f"its bytes are as written, but torch cannot load them: {str(error).splitlines()[0]}") from error
