"""One input file -> prepared uint8 .npy files and small records; this runs in the child process that may die.

The only place where a patient's id is looked at: it becomes a keyed code here and goes no further.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.errors import BadFile, Reason, StopPreparing
from data_setup.resample import Fit, crop, resize, to_uint8
from data_setup.scan_reader import ScanFormat, promises_a_scan, read_scans
from data_setup.sources import Stated, is_gcs
from data_setup.volume import ReadOptions, Volume

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """What the child needs: where the file is and what its listing states, its id, the folder of the arrays, their
    size [D, H, W] and how it is reached, what to read, the key of the codes.
    """

    location: str | None
    stated: Stated
    id: str
    folder: Path
    image_size: tuple[int, int, int]
    fit: Fit
    formats: tuple[ScanFormat, ...]
    options: ReadOptions
    key: bytes


def keyed_id(key: bytes, source_path: str) -> str:
    """16 hex digits of the HMAC-SHA256 of a path below the source: names a file in logs without naming a person."""
    return hmac.new(key, b"file:" + os.fsencode(source_path), hashlib.sha256).hexdigest()[:16]


def patient_code(key: bytes, patient: str | None) -> str | None:
    """16 hex digits of the HMAC-SHA256 of a patient's id, None where it is blank.

    An unkeyed or openly salted hash of a four-digit id is undone in milliseconds.
    """
    if patient is None or not patient.strip():
        return None
    return hmac.new(key, b"patient:" + patient.strip().encode(), hashlib.sha256).hexdigest()[:16]


def prepare_file(task: PrepareTask) -> list[Record]:
    """Fetches, reads, checks, resizes and writes one file; a record per volume in it, or that of its rejection.

    Raises StopPreparing where the bucket or the disk fails.
    """
    try:
        with _local_copy(task) as path:
            found = read_scans(path, task.formats, task.options)
    except BadFile as bad:
        foreign = bad.reason is Reason.NOT_DICOM and not promises_a_scan(task.location or "", task.formats)
        return [{**rejected(task.id, bad), "foreign": foreign, **_source(task)}]
    records = []
    for number, scan in enumerate(found, start=1):
        volume_id = task.id if number == 1 else f"{task.id}-{number}"
        grey = to_uint8(scan.volume.voxels, scan.volume.bits_stored)
        prepared = crop(grey, task.image_size) if task.fit == "crop" else resize(grey, task.image_size)
        _save(task.folder / f"{volume_id}.npy", prepared)
        records.append(
            {
                "id": volume_id,
                "status": "accepted",
                "format": scan.format,
                **_source(task),
                "sha256": hashlib.sha256(prepared.data).hexdigest(),
                **_facts(scan.volume, task.image_size, task.fit),
                "patient": patient_code(task.key, scan.patient) or task.id,
            }
        )
    return records


def rejected(file_id: str, bad: BadFile) -> Record:
    """The record of a refused file."""
    return {
        "id": file_id,
        "status": "rejected",
        "reason": str(bad.reason),
        "message": bad.message,
        "detail": bad.detail or None,
    }


def decoder_failure(file_id: str, how: str) -> Record:
    """The record of a file whose decoder did not come back: `how` it ended."""
    return rejected(file_id, BadFile(Reason.DECODE_FAILED, "the process that decoded the file did not finish", how))


@contextmanager
def _local_copy(task: PrepareTask) -> Iterator[Path]:
    """The file on disk; an object of a bucket is there for the time of the block. Raises BadFile, StopPreparing."""
    if task.location is None:
        raise BadFile(Reason.MISSING_FILE, "the list names no file, or one that its bucket does not hold")
    if not is_gcs(task.location):
        path = Path(task.location)
        _check_size(path, task.stated)
        yield path
        return
    from data_setup.gcs import fetch

    suffix = "".join(Path(task.location).suffixes[-2:])
    path = task.folder / f"{task.id}.fetched.tmp{suffix}"  # readers of other formats look at the suffix
    try:
        fetch(task.location, task.stated, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check_size(path: Path, stated: Stated) -> None:
    """Raises BadFile(transfer_mismatch) where a list states another size or checksum than the file on disk has."""
    if stated == Stated():
        return
    try:
        size = path.stat().st_size
        content = path.read_bytes() if stated.crc32c else b""
    except OSError as error:
        raise BadFile(Reason.MISSING_FILE, "the file cannot be opened or read", type(error).__name__) from None
    if stated.bytes is not None and size != stated.bytes:
        raise BadFile(Reason.TRANSFER_MISMATCH, f"the file has {size:,} bytes, the list says {stated.bytes:,}")
    if stated.crc32c:
        from data_setup.gcs import crc32c

        if crc32c(content) != stated.crc32c:
            raise BadFile(Reason.TRANSFER_MISMATCH, "the file has another crc32c than the list says")


def _source(task: PrepareTask) -> Record:
    return {"bytes": task.stated.bytes, "crc32c": task.stated.crc32c}


def _facts(volume: Volume, image_size: tuple[int, int, int], fit: Fit) -> Record:
    """What the index says of a volume: JSON values, [D, H, W] throughout."""
    shape = volume.voxels.shape
    return {
        "source_shape": list(shape),
        "shape": list(image_size),
        "source_spacing_mm": list(volume.spacing_mm),
        "spacing_mm": [
            spacing if spacing is None or fit == "crop" else spacing * old / new
            for spacing, old, new in zip(volume.spacing_mm, shape, image_size, strict=True)
        ],
        "bits": volume.bits_stored,
        "vendor": volume.vendor,
        "model": volume.model,
        "protocol": volume.protocol,
        "laterality": volume.laterality,
        "volumetric": volume.volumetric,
    }


def _save(target: Path, array: np.ndarray) -> None:
    """Writes an .npy that is whole or absent under its name after a kill; against a power cut the parent syncs it,
    while this process decodes the next file. Raises StopPreparing.
    """
    temporary = target.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        how = error.strerror or f"{error}; is the disk full?"  # numpy counts what it could write
        raise StopPreparing(f"a prepared volume cannot be written: {how}") from None
