"""Row 9: a place that cannot hold checkpoints is refused before any work is done, with a message that names it."""

import random
import subprocess
import tempfile
import time
from pathlib import Path

from oct_foundation.checkpoints.location import parse_ckpt_dir
from oct_foundation.checkpoints.opening import probe
from oct_foundation.checkpoints.store import Denied, NotFound
from tests.faults.fault_proxy import Fault
from tests.faults.matrix.full_disk import mount_small_disk
from tests.faults.matrix.places import BucketPlace, LocalPlace, Place, open_store
from tests.faults.matrix.record import Record

UNSET = (None, "", "None", "none", "NULL", "~", " ")
MISSPELT = (
    "gs://None/x",
    "gs://null",
    "gs:///x",
    "gs://",
    "gs:/bucket/x",
    "gs://bucket/None",
    "gs://Bucket/x",
    "gs://$BUCKET/x",
    "s3://bucket/x",
    "${output_dir}/x",
    "../x",
    "None/x",
    "/data/null/x",
)
_AT_ONCE_S = 15.0


def run_start(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """Each spelling and each unusable place, `rounds` times."""
    bad = Path(tempfile.mkdtemp())
    read_only = mount_small_disk(bad / "disk")
    if read_only:
        subprocess.run(["mount", "-o", "remount,ro", str(bad / "disk")], check=True)
    elif isinstance(place, LocalPlace):
        record.facts.append("no read-only disk could be mounted: that case did NOT run")
    (bad / "file").write_text("a file")
    for _ in range(rounds):
        for spelling in UNSET:
            meant = parse_ckpt_dir(spelling)
            if record.require(meant is None, f"{spelling!r} became the place {meant}"):
                record.fired["unset spelling"] += 1
        for spelling in MISSPELT:
            _refused(spelling, ValueError, repr(spelling), "bad spelling", record)
        if isinstance(place, BucketPlace):
            _refused("gs://no-such-bucket-here/x", NotFound, "no-such-bucket-here", "bucket is missing", record)
            place.emulator.proxy.inject(Fault(match=".", action="status", status=403, times=None))
            _refused(place.address, Denied, place.address, "403", record)
            record.require(place.emulator.proxy.unused() == [], "403 was never answered")
            place.emulator.proxy.inject()
        else:
            _refused(str(bad / "file" / "x"), NotFound, str(bad), "a file in the way", record)
            if read_only:
                _refused(str(bad / "disk" / "x"), Denied, str(bad), "read-only disk", record)
        record.rounds += 1
    open_store(place.address).probe()
    record.require(place.names() == [], f"the probe of a good place leaves {place.names()}")


def _refused(ckpt_dir: str, error: type[Exception], named: str, kind: str, record: Record) -> None:
    """Opens and probes the place as a start does."""
    begun = time.monotonic()
    try:
        probe(open_store(ckpt_dir))
        record.lose("undetected", f"{ckpt_dir!r} was taken for a place to save to")
    except error as refusal:
        told = named in str(refusal) and "checkpoint.ckpt_dir" in str(refusal)
        record.require(told, f"the refusal of {ckpt_dir!r} does not name it: {refusal}")
        record.fired[kind] += 1
    seconds = time.monotonic() - begun
    record.require(seconds < _AT_ONCE_S, f"{ckpt_dir!r} was refused after {seconds:.0f} s")
