"""A run's checkpoints in a store: save, find the newest intact one, restore, prune.

Each checkpoint is a folder with `state.pt` and, written last, `manifest.json`; a folder without manifest is
none. Nothing is ever unpickled before its size and sha256 fit, and nothing intact is given up before a newer
one is durable.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple, TypeVar

from oct_foundation.checkpoints.host_state import FileDigest, check_on_host, read_state, verify, write_state
from oct_foundation.checkpoints.manifest import (
    MANIFEST_FILE,
    QUARANTINE_FILE,
    STATE_FILE,
    CheckpointName,
    Manifest,
    finite_or_none,
)
from oct_foundation.checkpoints.retention import CheckpointSettings, expendable
from oct_foundation.checkpoints.store import (
    CheckpointStore,
    Conflict,
    Corrupt,
    NotFound,
    ObjectInfo,
    StoreError,
    Unavailable,
)

LATEST_KEY = "latest.json"
# A save takes minutes at most; what lies unfinished for a day has lost its writer.
ORPHAN_AGE_S = 24 * 3600.0

State = dict[str, Any]
Found = TypeVar("Found")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The objects of one checkpoint, committed or not."""

    name: CheckpointName
    objects: tuple[ObjectInfo, ...]

    def has(self, file: str) -> bool:
        return any(info.key == self.name.key(file) for info in self.objects)


class Surveyed(NamedTuple):
    """A committed checkpoint, its manifest where that can be read, and what is wrong with it, "" if nothing is."""

    name: CheckpointName
    manifest: Manifest | None
    trouble: str


def new_attempt() -> str:
    """A name for this start of the run; later starts sort behind earlier ones: 20261121T083015-1f9a3c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class CheckpointManager:
    """The only writer of a run's checkpoints; `attempt` tells this start of the run from every other.

    `run_id` is the one given until `restore` continues a saved run: from then on it is that run's.
    """

    def __init__(
        self, store: CheckpointStore, settings: CheckpointSettings, run_id: str, attempt: str | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self.run_id = run_id
        self.attempt = new_attempt() if attempt is None else attempt
        self._last_saved: Manifest | None = None
        self._protected: set[CheckpointName] = set()  # resumed from, or known as the newest intact one

    def save(self, step: int, state: State, metrics: dict[str, float], facts: dict[str, Any]) -> Manifest:
        """Writes the checkpoint after `step`, returns its manifest once durable; a second call is free.

        state: a tree on the host (see `to_host`); metrics: what `best_metric` is looked up in; facts: JSON
        values. Raises TypeError for state or facts that could not be read back, and a StoreError when it is
        not saved; the earlier checkpoints stay, nothing of this one does. Trouble while pruning is a warning:
        the save has happened.
        """
        name = CheckpointName(step=step, attempt=self.attempt)
        if self._last_saved is not None and self._last_saved.name == name:
            return self._last_saved
        check_on_host(state)
        manifest = Manifest(
            run=self.run_id,
            step=step,
            attempt=self.attempt,
            time_utc=_now(),
            files={},
            metrics=finite_or_none(metrics),
            facts=facts,
        ).sealed()  # before the data is written: facts that JSON cannot hold shall cost nothing
        manifest = self._write(manifest, state)
        self._last_saved = manifest
        try:
            hint = {"step": step, "attempt": self.attempt, "sha256": manifest.sha256}
            self.store.replace(LATEST_KEY, json.dumps(hint).encode() + b"\n")
            self.prune()
        except StoreError as error:
            _log.warning("checkpoint of step %d is saved, but older ones could not be pruned: %s", step, error)
        return manifest

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint that is not in quarantine, rising; nothing is verified."""
        return sorted({folder.name.step for folder in self._committed() if not folder.has(QUARANTINE_FILE)})

    def latest_intact(self) -> Manifest | None:
        """The manifest of the newest checkpoint that verifies; None when none was ever committed.

        Bad ones on the way get a `quarantine.json`. Raises Corrupt, with every reason, when all are bad.
        """
        manifest = self._newest(self._verified)
        if manifest is not None:
            self._protected.add(manifest.name)
        return manifest

    def restore(self, which: int | CheckpointName | None = None) -> tuple[State, Manifest] | None:
        """State (tensors on the CPU) and manifest of the newest intact checkpoint; None without any.

        which: a step (its newest attempt) or one checkpoint; then nothing else is tried: NotFound or Corrupt
        instead. Raises Corrupt, with every reason, when checkpoints exist and all are bad: never silently
        from scratch.
        """
        found = self._newest(self._loaded) if which is None else self._named(which)
        if found is not None:
            self._protected.add(found[1].name)
            self.run_id = found[1].run
        return found

    def survey(self, *, verify: bool) -> list[Surveyed]:
        """Every committed checkpoint, oldest first, with what is wrong with it; nothing is changed.

        verify: reads all data and compares it with the manifests; else manifests only.
        """
        examine = self._verified if verify else self._manifest
        found = []
        for folder in self._committed():
            manifest, trouble = None, "in quarantine" if folder.has(QUARANTINE_FILE) else ""
            try:
                manifest = examine(folder.name)
            except (Corrupt, NotFound) as error:
                trouble = str(error)
            found.append(Surveyed(folder.name, manifest, trouble))
        return found

    def prune(self) -> None:
        """Deletes what retention does not keep, manifest first, and what writers dead for a day left behind.

        The checkpoint resumed from, the newest intact one and the last one saved stay whatever the settings
        say; so does everything in quarantine.
        """
        folders = {folder.name: folder for folder in self._folders()}
        manifests = []
        for folder in folders.values():
            if folder.has(MANIFEST_FILE) and not folder.has(QUARANTINE_FILE):
                try:
                    manifests.append(self._manifest(folder.name))
                except (Corrupt, NotFound):
                    continue  # for restore to judge: pruning deletes only what it can read
        last = set() if self._last_saved is None else {self._last_saved.name}
        for name in expendable(manifests, self.settings, self._protected | last):
            self._delete(folders[name])
        for folder in folders.values():
            if self._is_orphan(folder):
                self._delete(folder)
        self.store.sweep(ORPHAN_AGE_S)

    # --- writing

    def _write(self, manifest: Manifest, state: State) -> Manifest:
        """Data, then manifest; on failure neither."""
        name, digests = manifest.name, list[FileDigest]()

        def write(file: BinaryIO) -> None:
            digests.append(write_state(state, file))

        try:
            self.store.put(name.key(STATE_FILE), write)
            manifest = replace(manifest, files={STATE_FILE: digests[-1]}).sealed()
            self.store.commit(name.key(MANIFEST_FILE), manifest.to_bytes())
        except Conflict:
            raise  # somebody else's bytes: not ours to remove
        except StoreError:
            self._discard(name)
            raise
        return manifest

    def _discard(self, name: CheckpointName) -> None:
        try:
            for file in (MANIFEST_FILE, STATE_FILE):
                self.store.delete(name.key(file))
        except StoreError as error:
            _log.warning("the rest of a failed save stays in %s for a day: %s", name.folder, error)

    def _delete(self, folder: _Folder) -> None:
        self.store.delete(folder.name.key(MANIFEST_FILE))
        for info in folder.objects:
            self.store.delete(info.key)

    def _is_orphan(self, folder: _Folder) -> bool:
        if folder.has(MANIFEST_FILE) or folder.has(QUARANTINE_FILE) or folder.name.attempt == self.attempt:
            return False
        return max(info.modified for info in folder.objects) < time.time() - ORPHAN_AGE_S

    # --- reading

    def _folders(self) -> list[_Folder]:
        grouped: dict[CheckpointName, list[ObjectInfo]] = {}
        for info in self.store.list("step-"):
            if name := CheckpointName.of_key(info.key):
                grouped.setdefault(name, []).append(info)
        return [_Folder(name=name, objects=tuple(objects)) for name, objects in sorted(grouped.items())]

    def _committed(self) -> list[_Folder]:
        return [folder for folder in self._folders() if folder.has(MANIFEST_FILE)]

    def _newest(self, examine: Callable[[CheckpointName], Found]) -> Found | None:
        """What `examine` makes of the newest checkpoint that it does not find corrupt."""
        reasons, num_vanished = [], 0
        for folder in reversed(self._committed()):
            if folder.has(QUARANTINE_FILE):
                reasons.append(f"{folder.name.folder}: in quarantine since an earlier start")
                continue
            try:
                return examine(folder.name)
            except NotFound:
                num_vanished += 1
            except Corrupt as error:
                self._quarantine(folder.name, str(error))
                reasons.append(f"{folder.name.folder}: {error}")
        if num_vanished:  # pruned since the listing, so a newer one is there by now
            return self._newest(examine)
        if not reasons:
            return None
        raise Corrupt(
            f"none of the {len(reasons)} checkpoints in {self.store} is intact: {'; '.join(reasons)}. "
            f"To have one checked again, delete its {QUARANTINE_FILE}; to start afresh, name another folder"
        )

    def _named(self, which: int | CheckpointName) -> tuple[State, Manifest]:
        names = [folder.name for folder in self._committed()]
        wanted = [name for name in names if which in (name, name.step)]
        if not wanted:
            steps = sorted({name.step for name in names})
            raise NotFound(f"{self.store} holds no checkpoint of {which}; committed steps: {steps or 'none'}")
        name = max(wanted)
        try:
            return self._loaded(name)
        except Corrupt as error:
            self._quarantine(name, str(error))
            raise Corrupt(f"{self.store}/{name.folder} is not intact: {error}") from error

    def _manifest(self, name: CheckpointName) -> Manifest:
        manifest = Manifest.from_bytes(self.store.get_bytes(name.key(MANIFEST_FILE)))
        if manifest.name != name or set(manifest.files) != {STATE_FILE}:
            raise Corrupt(f"its manifest is of {manifest.name.folder} with files {sorted(manifest.files)}")
        return manifest

    def _verified(self, name: CheckpointName) -> Manifest:
        manifest = self._manifest(name)
        self._with_state(name, lambda file: verify(file, manifest.files[STATE_FILE]))
        return manifest

    def _loaded(self, name: CheckpointName) -> tuple[State, Manifest]:
        manifest = self._manifest(name)
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
        _log.warning("checkpoint %s is not intact, it goes into quarantine: %s", name.folder, reason)
        note = {"reason": reason, "time_utc": _now(), "by": self.attempt}
        try:
            self.store.commit(name.key(QUARANTINE_FILE), json.dumps(note, indent=2).encode() + b"\n")
        except Conflict:
            return  # the note of an earlier start stays
        except StoreError as error:
            _log.warning("no quarantine note for %s: %s", name.folder, error)
