"""Rows 12, 13 and 19: what lies in the store is not what was written there, or was never ours."""

import hashlib
import io
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from oct_foundation.checkpoints.host_state import FileDigest
from oct_foundation.checkpoints.manager import LATEST_KEY, new_attempt
from oct_foundation.checkpoints.manifest import MANIFEST_FILE, QUARANTINE_FILE, STATE_FILE, CheckpointName, Manifest
from oct_foundation.checkpoints.store import Corrupt, StoreError
from tests.faults.matrix.oracle import SMALL, Watch, is_right, open_manager, save, state_of
from tests.faults.matrix.places import Place, open_store
from tests.faults.matrix.record import Record


def touch(path: str) -> str:
    """What a canary does when it is unpickled."""
    Path(path).touch()
    return path


class Canary:
    """Leaves a file at `path` as soon as anyone unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return touch, (str(self.path),)


def commit_pickle(place: Place, step: int, state: dict[str, Any]) -> CheckpointName:
    """A committed checkpoint of any state, with a manifest in which everything is right."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = CheckpointName(step=step, attempt=new_attempt())
    digest = FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = Manifest(
        run="run",
        step=step,
        attempt=name.attempt,
        time_utc="2026-11-21T00:00:00+00:00",
        files={STATE_FILE: digest},
        metrics={},
        facts={},
    )
    place.write(name.key(STATE_FILE), content)
    place.write(name.key(MANIFEST_FILE), manifest.sealed().to_bytes())
    return name


def flipped(content: bytes, offset: int, bit: int) -> bytes:
    """The same with one bit turned."""
    return content[:offset] + bytes([content[offset] ^ 1 << bit]) + content[offset + 1 :]


def restored_older(watch: Watch, older: int, damage: str, bad: CheckpointName) -> bool:
    """Restores as the next start does; True if the damage was seen: the older step came back, whole, with a note
    beside the bad one. Counts what went wrong.
    """
    record = watch.record
    try:
        found = open_manager(watch.store).restore()
    except StoreError as error:
        record.lose("unloadable", f"{damage}: step {older} was intact: {error}")
        return False
    if found is None:
        record.lose("unloadable", f"{damage}: nothing found, step {older} was intact")
        return False
    state, manifest = found
    if manifest.step > older:
        record.lose("undetected", f"{damage}: restored all the same")
        return False
    if manifest.step < older:
        record.lose("went back", f"{damage}: step {manifest.step} instead of {older}")
    if not is_right(state, manifest.step, manifest.attempt):
        record.lose("undetected", f"{damage}: step {manifest.step} with other values")
    noted = bad.key(QUARANTINE_FILE) in watch.place.names()
    return record.require(noted, f"{damage}: no {QUARANTINE_FILE} beside it") and manifest.step == older


def run_flips(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """One bit at `rounds` offsets of a state, and of a manifest: the next older is restored, and nothing was
    unpickled. The state holds a canary that torch is told to trust: unpickled, it would sing.
    """
    marker = Path(tempfile.mkdtemp()) / "unpickled"
    torch.serialization.add_safe_globals([touch])
    watch = Watch(place, record)
    older = save(open_manager(watch.store), 1, SMALL)
    name = commit_pickle(place, 2, {**state_of(2, "canary", SMALL), "canary": Canary(marker)})
    found = open_manager(watch.store).restore()
    record.require(found is not None and found[1].step == 2 and marker.exists(), "the canary is dumb: no proof")
    marker.unlink(missing_ok=True)
    for file in (STATE_FILE, MANIFEST_FILE):
        key = name.key(file)
        content = place.read(key)
        # A space of the manifest's JSON may become another one, which changes nothing.
        offsets = [at for at, byte in enumerate(content) if file == STATE_FILE or not chr(byte).isspace()]
        for offset in rng.sample(offsets, rounds):
            bit = rng.randrange(8)
            place.write(key, flipped(content, offset, bit))
            damage = f"bit {bit} of byte {offset} of {file}"
            record.fired[f"flip in {file}"] += restored_older(watch, older, damage, name)
            if marker.exists():
                record.lose("undetected", f"{damage}: found only after unpickling")
                marker.unlink()
            if name.key(QUARANTINE_FILE) in place.names():
                place.remove(name.key(QUARANTINE_FILE))
            record.rounds += 1
        place.write(key, content)
        record.require_fired(f"flip in {file}", rounds)


DAMAGES = {
    f"{file} {how}": (file, how)
    for file in (STATE_FILE, MANIFEST_FILE)
    for how in ("empty", "cut", "longer", "missing", "binary")
}
FOREIGN = {
    "notes.txt": b"mine",
    "step-twelve/manifest.json": b"{}",
    "step-00000099-x/state.pt": b"data without manifest",
    "step-00000098-x/readme.md": b"no file of ours",
    "export/best_checkpoint.pt": b"",
    LATEST_KEY: b"nonsense",
}


def damage(place: Place, key: str, how: str, rng: random.Random) -> None:
    """Does to an object what disks, copies and people do."""
    content = place.read(key)
    match how:
        case "empty":
            place.write(key, b"")
        case "cut":
            place.write(key, content[: rng.randrange(1, len(content))])
        case "longer":
            place.write(key, content + b"x")
        case "binary":
            place.write(key, rng.randbytes(len(content)))
        case "missing":
            place.remove(key)


def run_damages(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` times each damage to the newest of two, to all, foreign files, and a hint alone."""
    for _ in range(rounds):
        for title, (file, how) in DAMAGES.items():
            _damage_newest(place.fresh(), title, file, how, rng, record)
        _damage_all(place.fresh(), rng, record)
        _foreign_files(place.fresh(), record)
        _hint_alone(place.fresh(), record)
    record.require(record.fired.total() == record.rounds, f"{record.fired.total()} of {record.rounds} went as expected")


def _saved(place: Place, record: Record) -> tuple[Watch, list[CheckpointName]]:
    watch = Watch(place, record)
    manager = open_manager(watch.store)
    return watch, [CheckpointName(step=save(manager, step, SMALL), attempt=manager.attempt) for step in (1, 2)]


def _damage_newest(place: Place, title: str, file: str, how: str, rng: random.Random, record: Record) -> None:
    watch, (_, newest) = _saved(place, record)
    damage(place, newest.key(file), how, rng)
    record.rounds += 1
    if (file, how) == (MANIFEST_FILE, "missing"):  # it alone makes a checkpoint: there is none to be bad
        record.fired[title] += watch.look() == 1
    else:
        record.fired[title] += restored_older(watch, 1, title, newest)


def _damage_all(place: Place, rng: random.Random, record: Record) -> None:
    watch, names = _saved(place, record)
    for name in names:
        damage(place, name.key(STATE_FILE), "cut", rng)
    record.rounds += 1
    for start in ("the first start", "the second start"):
        try:
            found = open_manager(watch.store).restore()
            record.lose("undetected", f"all damaged: {start} got {found if found is None else found[1].step}")
            return
        except Corrupt as error:
            told = all(name.folder in str(error) for name in names)
            record.require(told, f"all damaged: {start} does not name each: {error}")
    record.fired["all damaged"] += 1


def _foreign_files(place: Place, record: Record) -> None:
    watch, (_, newest) = _saved(place, record)
    for key, content in FOREIGN.items():
        place.write(key, content)
    watch.acknowledge(newest.step)
    record.rounds += 1
    record.fired["foreign files"] += watch.look() == newest.step
    watch.acknowledge(save(open_manager(watch.store), 3, SMALL))
    watch.look()
    gone = [key for key in FOREIGN if key not in place.names()]
    record.require(not gone, f"foreign files were deleted: {gone}")


def _hint_alone(place: Place, record: Record) -> None:
    place.write(LATEST_KEY, b'{"step": 7, "attempt": "a", "sha256": ""}\n')
    record.rounds += 1
    found = open_manager(open_store(place.address)).restore()
    if record.require(found is None, "a hint without a checkpoint was taken for one"):
        record.fired["hint alone"] += 1


def run_hostile_pickle(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """A committed checkpoint, right to the last hash, that runs code when unpickled: refused, the older one taken."""
    marker = Path(tempfile.mkdtemp()) / "code-has-run"
    for _ in range(rounds):
        watch = Watch(place.fresh(), record)
        older = save(open_manager(watch.store), 1, SMALL)
        name = commit_pickle(watch.place, 2, {"w": torch.zeros(5), "canary": Canary(marker)})
        record.fired["pickle refused"] += restored_older(watch, older, "a pickle that runs code", name)
        if marker.exists():
            record.lose("undetected", "the code of a pickle has run")
        torch.load(io.BytesIO(watch.place.read(name.key(STATE_FILE))), weights_only=False)
        record.require(marker.exists(), "the pickle runs no code even where it may: no proof")
        marker.unlink(missing_ok=True)
        record.rounds += 1
    record.require_fired("pickle refused", rounds)
