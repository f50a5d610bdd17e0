"""What lies in a store, read side: checkpoints, whether they are whole, the newest one that is.

A folder without manifest is no checkpoint. Nothing is unpickled before its size and sha256 fit; what does not fit gets
a note beside it, is never deleted, and the next older one is tried.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple, TypeVar

from oct_foundation.checkpoints.host_state import read_state, verify
from oct_foundation.checkpoints.manifest import MANIFEST_FILE, QUARANTINE_FILE, STATE_FILE, CheckpointName, Manifest
from oct_foundation.checkpoints.store import (
    CheckpointStore,
    Conflict,
    Corrupt,
    NotFound,
    ObjectInfo,
    StoreError,
    Unavailable,
)

State = dict[str, Any]
Found = TypeVar("Found")
_LOOKS = 10  # at a place that changes meanwhile: with 1, 33 of 5,500 reads beside a writer without pause were old
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The objects of one checkpoint, committed or not."""

    name: CheckpointName
    objects: tuple[ObjectInfo, ...]

    def has(self, file: str) -> bool:
        """Whether one of its objects is `file`."""
        return any(info.key == self.name.key(file) for info in self.objects)


class Surveyed(NamedTuple):
    """A committed checkpoint, its manifest where that can be read, and what is wrong with it, "" if nothing is."""

    name: CheckpointName
    manifest: Manifest | None
    trouble: str


class Catalog:
    """The checkpoints of one store as `reader` (an attempt, for quarantine notes) finds them; nothing is remembered.

    may_quarantine: False for the ranks that read what rank 0 has found intact. A bad read of one host is no damage,
    and its note would send all later starts one checkpoint back.
    """

    def __init__(self, store: CheckpointStore, reader: str, *, may_quarantine: bool = True) -> None:
        self.store, self.reader, self._may_quarantine = store, reader, may_quarantine

    def folders(self) -> list[Folder]:
        """Every checkpoint that was begun, oldest first."""
        grouped: dict[CheckpointName, list[ObjectInfo]] = {}
        for info in self.store.list("step-"):
            if name := CheckpointName.of_key(info.key):
                grouped.setdefault(name, []).append(info)
        return [Folder(name=name, objects=tuple(objects)) for name, objects in sorted(grouped.items())]

    def committed(self) -> list[Folder]:
        """Those with a manifest, oldest first."""
        return [folder for folder in self.folders() if folder.has(MANIFEST_FILE)]

    def newest(self, examine: Callable[[CheckpointName], Found]) -> Found | None:
        """What `examine` makes of the newest checkpoint that it does not find corrupt; None when there is none.

        Raises Corrupt, with every reason, when all are bad.
        """
        found, has_looked = None, False
        for _ in range(_LOOKS):
            committed = self.committed()
            try:
                found, has_looked = self._newest_of(committed, examine), True
            except NotFound:  # pruned since the listing: there is a newer one by now, and an older one is no answer
                continue
            # A listing is no snapshot: the last one may be pruned behind it while its successor appears before it.
            if {folder.name for folder in self.committed()} <= {folder.name for folder in committed}:
                break
        if not has_looked:
            raise Unavailable(f"the checkpoints in {self.store} are pruned faster than they can be read")
        return found

    def _newest_of(self, committed: list[Folder], examine: Callable[[CheckpointName], Found]) -> Found | None:
        """See `newest`, of these; raises NotFound where one is gone."""
        reasons = []
        for folder in reversed(committed):
            if folder.has(QUARANTINE_FILE):
                reasons.append(f"{folder.name.folder}: in quarantine since an earlier start")
                continue
            try:
                return examine(folder.name)
            except Corrupt as error:
                self._quarantine(folder.name, str(error))
                reasons.append(f"{folder.name.folder}: {error}")
        if not reasons:
            return None
        raise Corrupt(
            f"none of the {len(reasons)} checkpoints in {self.store} is intact: {'; '.join(reasons)}. "
            f"To have one checked again, delete its {QUARANTINE_FILE}; to start afresh, name another folder"
        )

    def named(self, which: int | CheckpointName) -> tuple[State, Manifest]:
        """State and manifest of a step (its newest attempt) or of one checkpoint; raises NotFound or Corrupt."""
        names = [folder.name for folder in self.committed()]
        wanted = [name for name in names if which in (name, name.step)]
        if not wanted:
            steps = sorted({name.step for name in names})
            raise NotFound(f"{self.store} holds no checkpoint of {which}; committed steps: {steps or 'none'}")
        name = max(wanted)
        try:
            return self.loaded(name)
        except Corrupt as error:
            self._quarantine(name, str(error))
            raise Corrupt(f"{self.store}/{name.folder} is not intact: {error}") from error

    def survey(self, *, verify: bool) -> list[Surveyed]:
        """Every committed checkpoint, oldest first, with what is wrong with it; see CheckpointManager.survey."""
        examine = self.verified if verify else self.manifest
        found = []
        for folder in self.committed():
            manifest, trouble = None, "in quarantine" if folder.has(QUARANTINE_FILE) else ""
            try:
                manifest = examine(folder.name)
            except (Corrupt, NotFound) as error:
                trouble = str(error)
            found.append(Surveyed(folder.name, manifest, trouble))
        return found

    def manifest(self, name: CheckpointName) -> Manifest:
        """Its manifest. Raises NotFound; Corrupt where it is damaged or of another checkpoint."""
        manifest = Manifest.from_bytes(self.store.get_bytes(name.key(MANIFEST_FILE)))
        if manifest.name != name or set(manifest.files) != {STATE_FILE}:
            raise Corrupt(f"its manifest is of {manifest.name.folder} with files {sorted(manifest.files)}")
        return manifest

    def verified(self, name: CheckpointName) -> Manifest:
        """Its manifest, after all data was read and compared with it."""
        manifest = self.manifest(name)
        self._with_state(name, lambda file: verify(file, manifest.files[STATE_FILE]))
        return manifest

    def loaded(self, name: CheckpointName) -> tuple[State, Manifest]:
        """State (tensors on the CPU) and manifest."""
        manifest = self.manifest(name)
        return self._with_state(name, lambda file: read_state(file, manifest.files[STATE_FILE])), manifest

    def _with_state(self, name: CheckpointName, use: Callable[[BinaryIO], Found]) -> Found:
        try:
            file = self.store.open(name.key(STATE_FILE))
        except NotFound as error:
            self.store.get_bytes(name.key(MANIFEST_FILE))  # NotFound again: pruned while we read, which is no damage
            raise Corrupt(f"its {STATE_FILE} is missing") from error
        with file:
            try:
                return use(file)
            except OSError as error:
                raise Unavailable(f"cannot read {self.store}/{name.key(STATE_FILE)}: {error}") from error

    def _quarantine(self, name: CheckpointName, reason: str) -> None:
        """Leaves a note beside a bad checkpoint, which is never deleted; a read-only place is no obstacle."""
        if not self._may_quarantine:
            _log.warning("checkpoint %s is not intact as it is read here: %s", name.folder, reason)
            return
        _log.warning("checkpoint %s is not intact, it goes into quarantine: %s", name.folder, reason)
        note = {"reason": reason, "time_utc": datetime.now(UTC).isoformat(timespec="seconds"), "by": self.reader}
        try:
            self.store.commit(name.key(QUARANTINE_FILE), json.dumps(note, indent=2).encode() + b"\n")
        except Conflict:
            return  # the note of an earlier start stays
        except StoreError as error:
            _log.warning("no quarantine note for %s: %s", name.folder, error)
