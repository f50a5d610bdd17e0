"""A run's checkpoints in a store: save, restore the newest intact one, prune.

Each checkpoint is a folder with `state.pt` and, written last, `manifest.json`. Nothing intact is given up before a
newer one is durable; what retention keeps is kept also when the disk is full.
"""

import json
import logging
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, BinaryIO

from oct_foundation.checkpoints.catalog import Catalog, Folder, State, Surveyed
from oct_foundation.checkpoints.host_state import FileDigest, check_on_host, num_bytes, write_state
from oct_foundation.checkpoints.manifest import (
    MANIFEST_FILE,
    QUARANTINE_FILE,
    STATE_FILE,
    CheckpointName,
    Manifest,
    finite_or_none,
)
from oct_foundation.checkpoints.owner import Ownership
from oct_foundation.checkpoints.retention import CheckpointSettings, expendable
from oct_foundation.checkpoints.store import CheckpointStore, Conflict, Corrupt, Full, NotFound, StoreError

LATEST_KEY = "latest.json"
# A save takes minutes at most; what lies unfinished for a day has lost its writer.
ORPHAN_AGE_S = 24 * 3600.0
# Where the place is ours nobody else can commit, and a crash loop may leave a state's worth of bytes at each start.
OWNED_ORPHAN_AGE_S = 600.0

_log = logging.getLogger(__name__)


def new_attempt() -> str:
    """A name for this start of the run; later starts sort behind earlier ones: 20261121T083015-1f9a3c."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


class CheckpointManager:
    """The only writer of a run's checkpoints; `attempt` tells this start of the run from every other.

    `run_id` is the one given until `restore` continues a saved run: from then on it is that run's. With an
    `ownership` nothing is committed or pruned without a look whether the place is still ours. may_quarantine: False
    for a rank that does not save, see Catalog.
    """

    def __init__(
        self,
        store: CheckpointStore,
        settings: CheckpointSettings,
        run_id: str,
        attempt: str | None = None,
        *,
        ownership: Ownership | None = None,
        may_quarantine: bool = True,
    ) -> None:
        self.store = store
        self.settings = settings
        self.run_id = run_id
        self.attempt = new_attempt() if attempt is None else attempt
        self.ownership = ownership
        self._catalog = Catalog(store, self.attempt, may_quarantine=may_quarantine)
        self._last_saved: Manifest | None = None
        self._protected: set[CheckpointName] = set()  # resumed from, or known as the newest intact one

    def save(self, step: int, state: State, metrics: dict[str, float], facts: dict[str, Any]) -> Manifest:
        """Writes the checkpoint after `step`, returns its manifest once durable; a second call is free.

        state: a tree on the host (see `to_host`); metrics: what `best_metric` is looked up in; facts: JSON
        values. Raises TypeError for state or facts that could not be read back, and a StoreError when it is
        not saved (TakenOver: another attempt owns the place now); the earlier checkpoints stay, nothing of this
        one does. On a full disk it prunes and tries once more. Trouble while pruning afterwards is a warning:
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
            time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            files={},
            metrics=finite_or_none(metrics),
            facts=facts,
        ).sealed()  # before the data is written: facts that JSON cannot hold shall cost nothing
        self._make_room(num_bytes(state))
        try:
            manifest = self._write(manifest, state)
        except Full as error:
            _log.warning("step %d found the disk full (%s): pruning, then once more", step, error)
            self.prune()
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
        return sorted({folder.name.step for folder in self._catalog.committed() if not folder.has(QUARANTINE_FILE)})

    def latest_intact(self) -> Manifest | None:
        """The manifest of the newest checkpoint that verifies; None when none was ever committed.

        Bad ones on the way get a `quarantine.json` if this manager may. Raises Corrupt, with every reason, when all are
        bad.
        """
        manifest = self._catalog.newest(self._catalog.verified)
        if manifest is not None:
            self._protected.add(manifest.name)
        return manifest

    def restore(self, which: int | CheckpointName | None = None) -> tuple[State, Manifest] | None:
        """State (tensors on the CPU) and manifest of the newest intact checkpoint; None without any.

        which: a step (its newest attempt) or one checkpoint; then nothing else is tried: NotFound or Corrupt
        instead. Raises Corrupt, with every reason, when checkpoints exist and all are bad: never silently
        from scratch.
        """
        found = self._catalog.newest(self._catalog.loaded) if which is None else self._catalog.named(which)
        if found is not None:
            self._protected.add(found[1].name)
            self.run_id = found[1].run
        return found

    def survey(self, *, verify: bool) -> list[Surveyed]:
        """Every committed checkpoint, oldest first, with what is wrong with it; nothing is changed.

        verify: reads all data and compares it with the manifests; else manifests only.
        """
        return self._catalog.survey(verify=verify)

    def prune(self) -> None:
        """Deletes what retention does not keep, manifest first, and what dead writers left behind.

        The checkpoint resumed from, the newest intact one and the last one saved stay whatever the settings
        say; so does everything in quarantine. Raises TakenOver before it deletes anything that is no longer ours.
        """
        self._check_owner()
        folders = {folder.name: folder for folder in self._catalog.folders()}
        manifests = []
        for folder in folders.values():
            if folder.has(MANIFEST_FILE) and not folder.has(QUARANTINE_FILE):
                try:
                    manifests.append(self._catalog.manifest(folder.name))
                except (Corrupt, NotFound):
                    continue  # for restore to judge: pruning deletes only what it can read
        last = set() if self._last_saved is None else {self._last_saved.name}
        for name in expendable(manifests, self.settings, self._protected | last):
            self._delete(folders[name])
        orphan_age_s = ORPHAN_AGE_S if self.ownership is None else OWNED_ORPHAN_AGE_S
        for folder in folders.values():
            if self._is_orphan(folder, orphan_age_s):
                self._delete(folder)
        self.store.sweep(orphan_age_s)

    def _make_room(self, size: int) -> None:
        """Prunes where less than two saves of `size` bytes fit; a warning where that is not enough: it is tried."""
        try:
            free = self.store.free_bytes()
            if free is None or free >= 2 * size:
                return
            self.prune()
            free = self.store.free_bytes()
        except StoreError as error:
            _log.warning("%s could not be pruned before a save: %s", self.store, error)
            return
        if free is not None and free < 2 * size:
            _log.warning(
                "little space for checkpoints in %s: %.1f MB are free, a save takes %.1f MB and two should fit. Free "
                "some, or lower checkpoint.keep_last, keep_best or raise keep_every",
                self.store,
                free / 1e6,
                size / 1e6,
            )

    def _write(self, manifest: Manifest, state: State) -> Manifest:
        """Data, then manifest; on failure neither."""
        name, digests = manifest.name, list[FileDigest]()

        def write(file: BinaryIO) -> None:
            digests.append(write_state(state, file))

        try:
            self.store.put(name.key(STATE_FILE), write)
            manifest = replace(manifest, files={STATE_FILE: digests[-1]}).sealed()
            self._check_owner()
            self.store.commit(name.key(MANIFEST_FILE), manifest.to_bytes())
        except Conflict:
            raise  # somebody else's bytes: not ours to remove
        except StoreError:
            self._discard(name)
            raise
        return manifest

    def _check_owner(self) -> None:
        if self.ownership is not None:
            self.ownership.check()

    def _discard(self, name: CheckpointName) -> None:
        try:
            for file in (MANIFEST_FILE, STATE_FILE):
                self.store.delete(name.key(file))
        except StoreError as error:
            _log.warning("the rest of a failed save stays in %s until it is pruned: %s", name.folder, error)

    def _delete(self, folder: Folder) -> None:
        self.store.delete(folder.name.key(MANIFEST_FILE))
        for info in folder.objects:
            self.store.delete(info.key)

    def _is_orphan(self, folder: Folder, age_s: float) -> bool:
        if folder.has(MANIFEST_FILE) or folder.has(QUARANTINE_FILE) or folder.name.attempt == self.attempt:
            return False
        return max(info.modified for info in folder.objects) < time.time() - age_s
