"""One DICOM file -> one verified volume in the axis order of the project, or BadFile with the first check that
fails.

This is where row, column and frame become [D, H, W] (B-scan, depth, lateral); nothing after it swaps axes again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread

from data_setup.dicom.deflated import inflated
from data_setup.dicom.elements import quiet_pydicom
from data_setup.dicom.header import read_header
from data_setup.dicom.pixels import read_pixels
from data_setup.errors import BadFile, Reason
from data_setup.volume import ReadOptions, Volume

_ID_BYTES = 1 << 30


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
    options = ReadOptions(
        any_sop_class=any_sop_class,
        include_nonvolumetric=include_nonvolumetric,
        allow_burned_in=allow_burned_in,
        max_bytes=max_bytes,
    )
    with quiet_pydicom(), _open(path) as (file, size):
        file, size = inflated(file, size, max_bytes)
        header = read_header(file, size, options)
        voxels = read_pixels(file, size, header)
    if header.pattern.volumetric is False and not options.include_nonvolumetric:
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


def read_patient_id(path: str | Path) -> str | None:
    """PatientID as the file spells it, None where it is blank; only for making a keyed code of it at once.

    Raises BadFile if it cannot be read.
    """
    with quiet_pydicom(), _open(path) as (file, size):
        file, _ = inflated(file, size, _ID_BYTES)
        file.seek(0)
        try:
            found = dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID")
        except Exception as error:
            raise BadFile(Reason.INVALID_HEADER, "PatientID cannot be read", type(error).__name__) from None
    return str(found or "").strip() or None


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes; raises BadFile(missing_file) without the path that OSError would print."""
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadFile(Reason.MISSING_FILE, "the file cannot be opened or read", type(error).__name__) from None
