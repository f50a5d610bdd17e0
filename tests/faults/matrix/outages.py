"""Rows 8 and 10: the store is slow, dead, forbidden or gone while training goes on beside it.

The stall is measured in the thread that trains: the time of one step with `BackgroundSaver.save` and a look at
`fatal`, less the 10 ms that the step itself sleeps.
"""

import errno
import os
import random
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.store import Denied, NotFound, StoreError, Unavailable
from tests.faults.fault_proxy import Fault
from tests.faults.matrix.full_disk import mount_small_disk
from tests.faults.matrix.oracle import VALUES_2MB, Watch, open_manager, state_of
from tests.faults.matrix.passing import PassingStore
from tests.faults.matrix.places import BucketPlace, LocalPlace, Place, open_store
from tests.faults.matrix.record import Record

LONGEST_STALL_S = 0.5
_STEP_S = 0.01
_VALUES_20MB = 10 * VALUES_2MB
_INTERVAL_S = 0.3
_SLOW_S = 5 * _INTERVAL_S
_DEADLINE_S = 2.0
_MAX_FAILURES = 3


class Disk(PassingStore):
    """A local store whose disk answers late, or not at all: with EIO, as a failing one does."""

    def __init__(self, place: Place) -> None:
        super().__init__(open_store(place.address, _DEADLINE_S))
        self.late_s, self.is_dead, self.num_hits = 0.0, False, 0

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        def troubled(file: BinaryIO) -> None:
            write(file)
            self.num_hits += bool(self.late_s or self.is_dead)
            time.sleep(self.late_s)
            if self.is_dead:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.inner.put(key, troubled)


class Training:
    """Steps of 10 ms; every `interval_s` one of them saves. longest_stall_s is over all its steps."""

    def __init__(self, place: Place, record: Record, num_values: int) -> None:
        self.store = Disk(place)
        self.saver = BackgroundSaver(open_manager(self.store), _MAX_FAILURES)
        self.watch, self._num_values = Watch(place, record), num_values
        self.longest_stall_s, self.step = 0.0, 0
        self.saver.prepare(state_of(0, "", num_values))

    def run(self, saves: int) -> None:
        """Trains until so many saves were due, or until the saver says that the run has to end."""
        for _ in range(saves):
            self.step += 1
            state = state_of(self.step, self.saver.manager.attempt, self._num_values)
            due = time.monotonic() + _INTERVAL_S
            self._take_step(lambda state=state: self.saver.save(self.step, state, {}, {}))  # type: ignore[misc]
            while time.monotonic() < due:
                self._take_step(lambda: None)
            if self.saver.fatal is not None:
                return

    def settle(self) -> None:
        """Waits for the save in flight, and looks at what is there."""
        self.saver.close()
        self.watch.look()

    def run_until_fatal(self) -> StoreError | None:
        """Trains on through failing saves; what ends the run."""
        for _ in range(_MAX_FAILURES):
            self.watch.record.require(self.saver.fatal is None, "the run ends before the limit of failures")
            self.run(1)
            self.saver.close()
        return self.saver.fatal

    def _take_step(self, work: Callable[[], object]) -> None:
        begun = time.monotonic()
        time.sleep(_STEP_S)
        work()
        _ = self.saver.fatal
        self.longest_stall_s = max(self.longest_stall_s, time.monotonic() - begun - _STEP_S)


def run_slow_and_dead(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` times a store that takes 5 intervals for a save, and one that is dead until it comes back.

    Up to three more times where training stood still each time: our code does that always, a busy machine now and then.
    """
    stalls_s: list[float] = []
    while len(stalls_s) < rounds or (len(stalls_s) < rounds + 3 and min(stalls_s) >= LONGEST_STALL_S):
        training = Training(place.fresh(), record, _VALUES_20MB)
        training.run(1)
        training.settle()
        _slow(training, record)
        _dead(training, record)
        stalls_s.append(training.longest_stall_s)
        record.rounds += 1
    told = ", ".join(f"{stall_s:.3f}" for stall_s in stalls_s)
    record.facts.append(f"longest stall of the training thread in each round, states of 20 MB: {told} s")
    record.require(min(stalls_s) < LONGEST_STALL_S, f"training stood still in each round, for {told} s")


def _slow(training: Training, record: Record) -> None:
    place, skipped = training.watch.place, training.saver.num_skipped
    if isinstance(place, BucketPlace):
        rate = int(4 * _VALUES_20MB / _SLOW_S)
        place.emulator.proxy.inject(Fault(match="^PUT .*upload", action="slow", bytes_per_s=rate, times=None))
    training.store.late_s = 0.0 if isinstance(place, BucketPlace) else _SLOW_S
    training.run(8)
    training.settle()
    if isinstance(place, BucketPlace):
        record.require(place.emulator.proxy.unused() == [], "no upload was slow")
        place.emulator.proxy.inject()
    training.store.late_s = 0.0
    record.fired["save skipped"] += training.saver.num_skipped - skipped
    record.require(training.saver.num_skipped - skipped >= 3, "hardly a save came too early: the store was not slow")
    record.require(training.saver.num_failed == 0, f"a slow store failed {training.saver.num_failed} saves")


def _dead(training: Training, record: Record) -> None:
    place = training.watch.place
    if isinstance(place, BucketPlace):
        upstream, place.emulator.proxy.upstream = place.emulator.proxy.upstream, ("127.0.0.1", 9)  # nobody is there
        place.emulator.proxy.inject(Fault(match=".", action="lose_reply", times=None))  # for what is connected already
    training.store.is_dead = not isinstance(place, BucketPlace)
    failed, begun = training.saver.num_failed, time.monotonic()
    fatal = training.run_until_fatal()
    seconds = (time.monotonic() - begun) / _MAX_FAILURES
    record.require(isinstance(fatal, Unavailable), f"a dead store ends the run with {fatal!r}")
    record.fired["save failed"] += training.saver.num_failed - failed
    record.require(seconds < 8 * _DEADLINE_S, f"a save to a dead store took {seconds:.0f} s")
    if isinstance(place, BucketPlace):
        place.emulator.proxy.upstream = upstream
        record.require(place.emulator.proxy.unused() == [], "no connection was lost")
        place.emulator.proxy.inject()
    training.store.is_dead = False
    training.run(1)
    training.saver.close()
    record.require(training.saver.fatal is None, "the store is back, and the run has to end all the same")
    training.watch.acknowledge(training.step)
    training.watch.look()


def run_revoked(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` times each: in mid-run the permission goes, or the place itself; the run ends after the third save."""
    for _ in range(rounds):
        if isinstance(place, BucketPlace):
            _revoked(place.fresh(), _forbid, _allow, Denied, record)
            _revoked(place.fresh(), _remove_bucket, None, NotFound, record)
        else:
            _revoked(place.fresh(), _put_file_in_the_way, _clear_the_way, NotFound, record)
            disk = Path(tempfile.mkdtemp()) / "disk"
            if mount_small_disk(disk):
                _revoked(LocalPlace(disk / "run"), _make_read_only, _make_writable, Denied, record)
            else:
                record.facts.append("no disk could be mounted: read-only in mid-run did NOT run")
        record.rounds += 1
    record.require_fired("run ended", 2 * rounds)


def _revoked(
    place: Place,
    revoke: Callable[[Place], None],
    restore: Callable[[Place], None] | None,
    expected: type[StoreError],
    record: Record,
) -> None:
    training = Training(place, record, VALUES_2MB)
    training.run(2)
    training.settle()
    revoke(place)
    fatal = training.run_until_fatal()
    if record.require(isinstance(fatal, expected), f"{revoke.__name__} ends the run with {fatal!r}"):
        record.fired["run ended"] += 1
        record.require(place.address in str(fatal) or "bucket" in str(fatal), f"the place is not named: {fatal}")
    if restore is not None:
        restore(place)
        training.watch.look()


def _forbid(place: Place) -> None:
    assert isinstance(place, BucketPlace)
    place.emulator.proxy.inject(Fault(match=".", action="status", status=403, times=None))


def _allow(place: Place) -> None:
    assert isinstance(place, BucketPlace)
    place.emulator.proxy.inject()


def _remove_bucket(place: Place) -> None:
    assert isinstance(place, BucketPlace)
    for name in place.names():
        place.remove(name)
    url = f"{place.emulator.direct_url}/storage/v1/b/{place.bucket}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


def _put_file_in_the_way(place: Place) -> None:
    assert isinstance(place, LocalPlace)
    place.root.rename(place.root.with_suffix(".away"))
    place.root.write_text("a file where the folder was")


def _clear_the_way(place: Place) -> None:
    assert isinstance(place, LocalPlace)
    place.root.unlink()
    place.root.with_suffix(".away").rename(place.root)


def _make_read_only(place: Place) -> None:
    assert isinstance(place, LocalPlace)
    subprocess.run(["mount", "-o", "remount,ro", str(place.root.parent)], check=True)


def _make_writable(place: Place) -> None:
    assert isinstance(place, LocalPlace)
    subprocess.run(["mount", "-o", "remount,rw", str(place.root.parent)], check=True)
