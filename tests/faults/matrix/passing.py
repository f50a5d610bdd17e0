"""A store that hands every call to a real one and lets a row stand at each: to tell, to wait, to fail, to die."""

from collections.abc import Callable
from typing import BinaryIO, TypeVar

from oct_foundation.checkpoints.store import CheckpointStore, ObjectInfo

Result = TypeVar("Result")


class PassingStore:
    """A CheckpointStore that makes each call through `around`; the rows' stores change that only."""

    def __init__(self, inner: CheckpointStore) -> None:
        self.inner = inner

    def __str__(self) -> str:
        return str(self.inner)

    def around(self, name: str, key: str, call: Callable[[], Result]) -> Result:
        """Makes the call `name` about `key`, a prefix for `list`, "" where there is none."""
        return call()

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        self.around("put", key, lambda: self.inner.put(key, write))

    def commit(self, key: str, data: bytes) -> None:
        self.around("commit", key, lambda: self.inner.commit(key, data))

    def replace(self, key: str, data: bytes) -> None:
        self.around("replace", key, lambda: self.inner.replace(key, data))

    def open(self, key: str) -> BinaryIO:
        return self.around("open", key, lambda: self.inner.open(key))

    def get_bytes(self, key: str) -> bytes:
        return self.around("get_bytes", key, lambda: self.inner.get_bytes(key))

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        return self.around("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        self.around("delete", key, lambda: self.inner.delete(key))

    def probe(self) -> None:
        self.around("probe", "", self.inner.probe)

    def free_bytes(self) -> int | None:
        return self.around("free_bytes", "", self.inner.free_bytes)

    def sweep(self, older_than_s: float) -> None:
        self.around("sweep", "", lambda: self.inner.sweep(older_than_s))


class Death(BaseException):
    """The end of the process at this place: no `except` of ours may stop it."""


class Mortal(PassingStore):
    """Dies right before or right after its `last`-th call, counted from 0; None: never.

    calls: what was asked, as "name key"; done: what was done of it.
    """

    def __init__(self, inner: CheckpointStore, last: int | None = None, after: bool = False) -> None:
        super().__init__(inner)
        self.last, self.after = last, after
        self.calls: list[str] = []
        self.done: list[str] = []
        self.has_died = False

    def around(self, name: str, key: str, call: Callable[[], Result]) -> Result:
        number = len(self.calls)
        self.calls.append(f"{name} {key}")
        if self.has_died or (number == self.last and not self.after):
            self._die()
        result = call()
        self.done.append(self.calls[-1])
        if number == self.last:
            self._die()
        return result

    def _die(self) -> None:
        self.has_died = True
        raise Death
