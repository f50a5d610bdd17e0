"""Who may write into a run's place: one attempt at a time, named by the file with the highest number in `owner/`.

A start claims the place by making the next number, which exactly one of several can; the owner renews its own file
while it lives, and looks for a higher number before every commit and prune. So one that slept through a takeover,
wherever it fell asleep, ends and harms nothing. No clock of another host is trusted: who watches an owner looks
whether its file changes.
"""

import json
import logging
import re
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from oct_foundation.checkpoints.store import CheckpointStore, Conflict, NotFound, StoreError
from oct_foundation.checkpoints.writer import Writer

OWNER_KEY = "owner"
_NUMBERED = re.compile(rf"{OWNER_KEY}/(\d{{8}})\.json")
_LONGEST_POLL_S = 2.0
# A renewal that hangs in a dead store must not hold up the end of a run.
_RELEASE_S = 5.0

_log = logging.getLogger(__name__)


class OwnedElsewhere(StoreError):
    """Another attempt writes here: a human has to stop it or to name another place."""


class TakenOver(StoreError):
    """Another attempt has taken this place from us: we may not write any more."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What an owner's file says; `sequence` makes every renewal another text, whatever the clock does.

    The file of an owner that has left stays, as `released`: without its number one that it took over from would wake
    up, find nobody, and write on.
    """

    attempt: str
    writer: Writer
    sequence: int
    renewed_utc: str
    released: bool = False

    def __str__(self) -> str:
        """For messages."""
        return f"attempt {self.attempt} (process {self.writer.pid} on {self.writer.host}, seen {self.renewed_utc})"

    def to_bytes(self) -> bytes:
        """Readable JSON."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Owner | None":
        """None for a file that no version of ours has written."""
        try:
            found = json.loads(data)
            writer = Writer(**found.pop("writer"))
            return cls(writer=writer, **found)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


class Ownership:
    """The claim of `attempt` on the place of `store`: claim(), start_renewing(), check() before each commit, release().

    taken_over: what check() or a renewal has found, None while the place is ours. renew_s: time between renewals;
    patience_s: how long an owner of another host may be silent before its place is taken. `writer`: who claims.
    """

    def __init__(
        self,
        store: CheckpointStore,
        attempt: str,
        *,
        renew_s: float = 20.0,
        patience_s: float = 60.0,
        writer: Writer | None = None,
    ) -> None:
        if not 0 < 2 * renew_s <= patience_s:
            raise ValueError(
                f"renew_s is {renew_s:g}, patience_s {patience_s:g}; two renewals must fit into the patience, e.g. "
                "20 and 60 seconds: else one late renewal loses the place"
            )
        self.attempt = attempt
        self.taken_over: TakenOver | None = None
        self._store, self._renew_s, self._patience_s = store, renew_s, patience_s
        self._writer = Writer.this_process() if writer is None else writer
        self._number, self._sequence = 0, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """True once another attempt was seen to own the place: nothing may be written any more."""
        return self.taken_over is not None

    def claim(self) -> None:
        """Makes the place ours where nobody has it or its owner is dead; waits up to `patience_s` to find that out.

        Raises OwnedElsewhere where the owner lives or another start was first, and the StoreError of a place that
        cannot be read or written.
        """
        numbers = self._numbers()
        last = max(numbers, default=0)
        if (data := self._read(last)) is not None and not _is_released(data):
            self._outlive(last, data)
        try:
            self._store.commit(_key(last + 1), self._next())
        except Conflict:
            raise self._refusal(self._read(last + 1)) from None
        self._number = last + 1
        for number in numbers:
            try:
                self._store.delete(_key(number))
            except StoreError as error:
                _log.warning("the file of a former owner stays: %s", error)

    def start_renewing(self) -> None:
        """Shows every `renew_s`, in a thread, that we live; ends, with `lost`, where another attempt owns the place."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_renewing, name="owner", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raises TakenOver where another attempt owns the place, the StoreError of one that cannot be read.

        A file of ours that somebody removed is no takeover: the next renewal writes it again.
        """
        if self.taken_over is None and (data := self._standing()) is not None:
            owner = Owner.from_bytes(data)
            if owner is None or owner.attempt != self.attempt:
                self.taken_over = TakenOver(
                    f"{self._store} was taken over by {_describe(data)}, since we were silent for longer than it "
                    "waits. Nothing more is written here; only one of the two runs may go on"
                )
        if self.taken_over is not None:
            raise self.taken_over

    def release(self) -> None:
        """Gives the place back, so that the next start need not wait; no claim but ours; trouble is a warning."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_RELEASE_S)
        try:
            self.check()
            if self._number:
                self._store.replace(_key(self._number), self._next(released=True))
        except TakenOver:
            return
        except StoreError as error:
            _log.warning("%s keeps our name, the next start on another host will wait: %s", self._store, error)

    def _outlive(self, number: int, data: bytes) -> None:
        """Returns when that owner is known or held to be dead, or has left; raises OwnedElsewhere where it lives."""
        owner = Owner.from_bytes(data)
        deadline = time.monotonic() + self._patience_s
        if not self._has_ended(owner):  # which may be dying: killed, but still in the kernel
            _log.warning(
                "%s belongs to %s: watching for up to %g s whether it still shows that it lives",
                self._store,
                _describe(data),
                self._patience_s,
            )
        while not self._has_ended(owner):
            if time.monotonic() >= deadline:
                _log.warning("%s: %s was silent for %g s: taking over", self._store, _describe(data), self._patience_s)
                return
            time.sleep(min(_LONGEST_POLL_S, self._patience_s / 10))
            now = self._read(number)
            if now is None or _is_released(now):
                return
            if now != data and not self._has_ended(owner):
                raise self._refusal(now)
        _log.warning("%s belonged to %s, which has ended: taking over", self._store, owner)

    def _has_ended(self, owner: Owner | None) -> bool:
        """True where its process can be looked for and is dead; what lives may hang, so that proves nothing."""
        return owner is not None and owner.writer.kernel == self._writer.kernel != "" and not owner.writer.is_alive()

    def _refusal(self, data: bytes | None) -> OwnedElsewhere:
        owner = None if data is None else Owner.from_bytes(data)
        stop = "" if owner is None else f" (on {owner.writer.host}: kill {owner.writer.pid})"
        return OwnedElsewhere(
            f"{self._store} is being written by {_describe(data)}, and two runs must not share a place. Stop that one"
            f"{stop} or give this run another output_dir"
        )

    def _keep_renewing(self) -> None:
        silent = False  # one line per outage
        while not self._stop.wait(self._renew_s):
            try:
                self.check()
                self._store.replace(_key(self._number), self._next())
                silent = False
            except TakenOver as error:
                _log.error("%s", error)
                return
            except StoreError as error:
                if not silent:
                    _log.warning("our claim is not renewed; trying again every %g s: %s", self._renew_s, error)
                silent = True

    def _numbers(self) -> list[int]:
        keys = [info.key for info in self._store.list(f"{OWNER_KEY}/")]
        return [int(found[1]) for key in keys if (found := _NUMBERED.fullmatch(key))]

    def _standing(self) -> bytes | None:
        """The file of whoever owns the place; None where nobody does."""
        numbers = self._numbers()
        return self._read(max(numbers)) if numbers else None

    def _read(self, number: int) -> bytes | None:
        try:
            return self._store.get_bytes(_key(number))
        except NotFound:
            return None

    def _next(self, *, released: bool = False) -> bytes:
        self._sequence += 1
        return Owner(
            attempt=self.attempt,
            writer=self._writer,
            sequence=self._sequence,
            renewed_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            released=released,
        ).to_bytes()


def _key(number: int) -> str:
    return f"{OWNER_KEY}/{number:08d}.json"


def _is_released(data: bytes) -> bool:
    owner = Owner.from_bytes(data)
    return owner is not None and owner.released


def _describe(data: bytes | None) -> str:
    """For messages: the owner, or what is known of it."""
    return str((None if data is None else Owner.from_bytes(data)) or "an attempt that cannot be read")
