"""One DICOM file -> one verified volume in the axis order of the project, or BadFile with the first check that
fails.

This is where row, column and frame become [D, H, W] (B-scan, depth, lateral); nothing after it swaps axes again.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread

from data_setup.dicom.elements import quiet_pydicom
from data_setup.dicom.header import read_header
from data_setup.dicom.pixels import read_pixels
from data_setup.errors import BadFile, Reason
from data_setup.volume import Volume


def read_volume(
    path: str | Path,
    *,
    any_sop_class: bool = False,
    include_nonvolumetric: bool = False,
    allow_burned_in: bool = False,
    max_bytes: int = 1 << 30,
) -> Volume:
    """Reads, checks and decodes a file; needs the file's bytes and up to `max_bytes` of memory.

    Options admit other SOP classes, radial and circular scans, burned-in annotation; the largest real OCT volume is
    260 MB, the default budget 1 GiB. Raises BadFile, and nothing else, for whatever is wrong with the file.
    """
    with quiet_pydicom(), _open(path) as (file, size):
        header = read_header(
            file, size, any_sop_class=any_sop_class, allow_burned_in=allow_burned_in, max_bytes=max_bytes
        )
        voxels = read_pixels(file, size, header)
    if header.pattern.volumetric is False and not include_nonvolumetric:
        raise BadFile(Reason.NOT_VOLUMETRIC, f"{header.frames} frame(s) that are no stack of parallel planes")
    return Volume(
        voxels=voxels,
        bits_stored=header.bits_stored,
        spacing_mm=header.pattern.spacing_mm,
        laterality=header.pattern.laterality,
        vendor=header.vendor,
        model=header.model,
        protocol=header.protocol,
        volumetric=header.pattern.volumetric,
    )


def patient_code(path: str | Path, key: bytes) -> str | None:
    """16 hex digits of the HMAC-SHA256 of the file's PatientID, None where it is blank; the id never leaves this
    call.

    An unkeyed or openly salted hash of a four-digit id is undone in milliseconds. Raises BadFile if it cannot be
    read.
    """
    with quiet_pydicom(), _open(path) as (file, _):
        try:
            patient = str(dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "")
        except Exception as error:
            raise BadFile(Reason.INVALID_HEADER, "PatientID cannot be read", type(error).__name__) from None
    if not patient.strip():
        return None
    return hmac.new(key, b"patient:" + patient.strip().encode(), hashlib.sha256).hexdigest()[:16]


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes; raises BadFile(missing_file) without the path that OSError would print."""
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadFile(Reason.MISSING_FILE, "the file cannot be opened or read", type(error).__name__) from None
