"""One input file -> one prepared uint8 .npy and a small record; this runs in the child process that may die.

The only place where a patient's id is looked at: it becomes a keyed code here and goes no further.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.dicom import BadFile, Reason, Volume, read_volume
from data_setup.dicom.read import patient_code
from data_setup.resample import resize, to_uint8

# Names that promise DICOM; a .json or .vol beside the scans is no damaged scan.
_DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """What the child needs: the file, its id, where the array goes, its size [D, H, W], read options, the key."""

    path: Path
    id: str
    target: Path
    image_size: tuple[int, int, int]
    read_options: dict[str, Any]
    key: bytes


def keyed_id(key: bytes, source_path: str) -> str:
    """16 hex digits of the HMAC-SHA256 of a path below the source: names a file in logs without naming a person."""
    return hmac.new(key, b"file:" + os.fsencode(source_path), hashlib.sha256).hexdigest()[:16]


def prepare_file(task: PrepareTask) -> dict[str, Any]:
    """Reads, checks, resizes and writes one file; the record of an accepted file, or of a rejected one with its
    reason.

    Raises OSError where the target cannot be written.
    """
    try:
        volume = read_volume(task.path, **task.read_options)
        patient = patient_code(task.path, task.key)
    except BadFile as bad:
        foreign = bad.reason is Reason.NOT_DICOM and task.path.suffix.lower() not in _DICOM_SUFFIXES
        return {**rejected(task.id, bad), "foreign": foreign}
    _save(task.target, resize(to_uint8(volume.voxels, volume.bits_stored), task.image_size))
    return {**_accepted(task, volume), "patient": patient or task.id}


def rejected(file_id: str, bad: BadFile) -> dict[str, Any]:
    """The record of a refused file."""
    reason = str(bad.reason)
    return {
        "id": file_id,
        "status": "rejected",
        "reason": reason,
        "message": bad.message,
        "detail": bad.detail or None,
    }


def decoder_failure(file_id: str, how: str) -> dict[str, Any]:
    """The record of a file whose decoder did not come back: `how` it ended."""
    return rejected(file_id, BadFile(Reason.DECODE_FAILED, "the process that decoded the file did not finish", how))


def _accepted(task: PrepareTask, volume: Volume) -> dict[str, Any]:
    """The record of a prepared volume: JSON values, [D, H, W] throughout."""
    shape = volume.voxels.shape
    return {
        "id": task.id,
        "status": "accepted",
        "source_shape": list(shape),
        "shape": list(task.image_size),
        "source_spacing_mm": list(volume.spacing_mm),
        "spacing_mm": [
            None if spacing is None else spacing * old / new
            for spacing, old, new in zip(volume.spacing_mm, shape, task.image_size, strict=True)
        ],
        "bits": volume.bits_stored,
        "vendor": volume.vendor,
        "model": volume.model,
        "protocol": volume.protocol,
        "laterality": volume.laterality,
        "volumetric": volume.volumetric,
    }


def _save(target: Path, array: np.ndarray) -> None:
    """Writes an .npy so that it is either whole or absent under its name."""
    temporary = target.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
