"""Rows 6, 7 and 11: a network that breaks connections, a service that refuses for a while, replies that get lost."""

import random
from collections import Counter
from dataclasses import dataclass

from google.cloud.storage import blob as client_settings

from oct_foundation.checkpoints.manifest import MANIFEST_FILE, STATE_FILE
from oct_foundation.checkpoints.owner import Ownership
from oct_foundation.checkpoints.store import Corrupt, StoreError, Unavailable
from tests.faults.fault_proxy import Action, Fault
from tests.faults.matrix.oracle import SMALL, VALUES_2MB, Watch, open_manager, save
from tests.faults.matrix.places import BucketPlace, Place, open_store
from tests.faults.matrix.record import Record

_UPLOAD = "^(POST|PUT) .*upload"
_VALUES_9MB = 9 * VALUES_2MB // 2  # the client uploads in chunks from 8 MiB on
_CHUNK = 4 << 20  # the client's own is 100 MiB: a state of 9 MB would have no chunk in the middle, one of 477 MB has
_NUM_CHUNKS = 3


BAD_DOWNLOADS: tuple[Action, ...] = ("cut", "truncate", "flip", "status")
BAD_FOR_EVER: tuple[Action, ...] = ("truncate", "flip")


def _bucket(place: Place) -> BucketPlace:
    assert isinstance(place, BucketPlace)
    return place


def _started(watch: Watch) -> None:
    """Two saves without faults, so that from the third on there is something to prune."""
    manager = open_manager(watch.store)
    for step in (1, 2):
        watch.acknowledge(save(manager, step, SMALL))


def run_trouble(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` saves, of 2 and of 9 MB, each through a burst of refusals or a cut at a random offset."""
    proxy = _bucket(place).emulator.proxy
    watch = Watch(place, record)
    _started(watch)
    manager = open_manager(open_store(place.address))
    for _ in range(rounds):
        num_values = rng.choice((VALUES_2MB, VALUES_2MB, _VALUES_9MB))
        if rng.random() < 0.5:
            kind, fault = "cut", Fault(match=_UPLOAD, action="cut", after=rng.randrange(4 * num_values))
        else:
            status, match = rng.choice((503, 429)), rng.choice((_UPLOAD, "^GET ", "^DELETE "))
            kind = f"burst of {status}"
            fault = Fault(match=match, action="status", status=status, skip=rng.randrange(2), times=rng.randint(1, 2))
        proxy.inject(fault)
        watch.acknowledge(save(manager, watch.newest + 1, num_values))
        _count(proxy.unused(), kind, record)
        proxy.inject()
        watch.look()
        record.rounds += 1


def _count(unused: list[Fault], kind: str, record: Record) -> None:
    if record.require(not unused, f"{kind} never happened: {unused}"):
        record.fired[kind] += 1


@dataclass(frozen=True, kw_only=True)
class LostReply:
    """Which request of a save is done and not answered: the first that matches after `skip`."""

    match: str
    skip: int = 0
    num_values: int = SMALL


# The small uploads of a save come in the order state, manifest, hint.
LOST_REPLIES = {
    "small state": LostReply(match="^POST .*uploadType=multipart"),
    "manifest": LostReply(match="^POST .*uploadType=multipart", skip=1),
    "hint": LostReply(match="^POST .*uploadType=multipart", skip=2),
    "start of a large state": LostReply(match="^POST .*uploadType=resumable", num_values=_VALUES_9MB),
    "middle chunk": LostReply(match="^PUT .*upload", skip=_NUM_CHUNKS // 2, num_values=_VALUES_9MB),
    "final chunk": LostReply(match="^PUT .*upload", skip=_NUM_CHUNKS - 1, num_values=_VALUES_9MB),
    "delete": LostReply(match="^DELETE "),
}


def run_lost_replies(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` saves for each kind of request: each succeeds, and its step has one state and one manifest."""
    client_settings._DEFAULT_CHUNKSIZE = _CHUNK  # of this process only
    proxy = _bucket(place).emulator.proxy
    watch = Watch(place, record)
    _started(watch)
    manager = open_manager(open_store(place.address))
    for kind, lost in LOST_REPLIES.items():
        for _ in range(rounds):
            step = watch.newest + 1
            proxy.inject(Fault(match=lost.match, action="lose_reply", skip=lost.skip))
            watch.acknowledge(save(manager, step, lost.num_values))
            _count(proxy.unused(), kind, record)
            proxy.inject()
            files = Counter(name.partition("/")[2] for name in place.names() if name.startswith(f"step-{step:08d}-"))
            record.require(files == {STATE_FILE: 1, MANIFEST_FILE: 1}, f"{kind}: step {step} has {files}")
            watch.look()
            record.rounds += 1
    for _ in range(rounds):
        _claim_with_lost_reply(_bucket(place).fresh(), record)
        record.rounds += 1


def _claim_with_lost_reply(place: BucketPlace, record: Record) -> None:
    """A start whose owner file is written and not answered has the place, and can give it back."""
    ownership = Ownership(open_store(place.address), "attempt")
    place.emulator.proxy.inject(Fault(match="^POST .*upload", action="lose_reply"))
    ownership.claim()
    _count(place.emulator.proxy.unused(), "owner", record)
    ownership.check()
    ownership.release()
    try:
        Ownership(open_store(place.address), "next").claim()
    except StoreError as error:
        record.require(False, f"after its release the place is not free: {error}")


def run_downloads(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` restores for each fault: one bad answer is asked for once more; bad ones for ever are an error."""
    proxy = _bucket(place).emulator.proxy
    for action in BAD_DOWNLOADS:
        for _ in range(rounds):
            watch = Watch(place.fresh(), record)
            _started(watch)
            file, size = rng.choice(((STATE_FILE, 4 * SMALL), (MANIFEST_FILE, 200)))
            proxy.inject(Fault(match=rf"{file}\?alt=media", action=action, after=rng.randrange(size)))
            watch.look()
            _count(proxy.unused(), action, record)
            proxy.inject()
            record.rounds += 1
    for action in BAD_FOR_EVER:
        place = place.fresh()
        _started(Watch(place, record))
        proxy.inject(Fault(match="alt=media", action=action, after=50, times=None))
        try:
            open_manager(open_store(place.address, deadline_s=5)).restore()
            record.lose("undetected", f"restored though every download suffers {action}")
        except (Corrupt, Unavailable):
            _count(proxy.unused(), f"{action} for ever", record)
        proxy.inject()
        record.rounds += 1
