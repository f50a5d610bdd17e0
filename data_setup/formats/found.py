"""What every reader of a non-DICOM format shares: its return type and the checks of errors.Reason that need no format.

The readers decode the containers themselves, with struct, numpy and Pillow. Of the libraries, importing and using
eyepy costs 0.4 s and 150 MiB of address space in every child process, oct-converter 1.1 s and 290 MiB, and neither
can be told a byte budget; both stay the oracles of the tests.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_setup.content import check_content
from data_setup.errors import BadFile, Reason
from data_setup.volume import Laterality, ReadOptions, Volume

_EVEN_STEPS = 0.10  # steps between scan lines that differ by less count as even, as for DICOM
_PARALLEL_COSINE = 0.9998  # 1.1 degrees; 24 radial scans are 7.5 degrees apart
_SAME_LINE = 1e-6  # far below the 0.002 of the finest voxel, in mm or in degrees
_CHATTY = ("PIL", "nibabel.global")  # loggers that tell paths, tags and header values


class FoundVolume(NamedTuple):
    """A verified volume and the patient's id as the file spells it: to be turned into a keyed code at once."""

    volume: Volume
    patient: str | None


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes; raises BadFile(missing_file, empty_file) without the path of OSError."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise BadFile(Reason.EMPTY_FILE, "the file has 0 bytes")
            yield file, size
    except OSError as error:
        raise BadFile(Reason.MISSING_FILE, "the file cannot be opened or read", type(error).__name__) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings and log lines of Pillow and nibabel for the time of a read."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_shape(shape: Sequence[int], voxel_bytes: int, options: ReadOptions) -> None:
    """Check 8 and 9 before a pixel is touched: raises BadFile(invalid_header) for an axis below 1, BadFile(too_large)
    above the budget.
    """
    if min(shape) < 1:
        raise BadFile(Reason.INVALID_HEADER, f"the header says a shape of {tuple(shape)}")
    needed = math.prod(shape) * voxel_bytes
    if needed > options.max_bytes:
        raise BadFile(Reason.TOO_LARGE, f"{needed:,} bytes for {tuple(shape)}, the budget is {options.max_bytes:,}")


def check_held(needed: int, size: int) -> None:
    """Raises BadFile(pixel_data_truncated) where a file of `size` bytes cannot hold the `needed` that it promises."""
    if needed > size:
        raise BadFile(Reason.PIXEL_DATA_TRUNCATED, f"the file lacks {needed - size:,} of {needed:,} bytes")


def judged(volume: Volume, patient: str | None, options: ReadOptions) -> FoundVolume:
    """Checks 12 and 13 of a decoded volume; raises BadFile(constant_image, mostly_blank, not_volumetric)."""
    check_content(volume.voxels)
    if volume.volumetric is False and not options.include_nonvolumetric:
        frames = len(volume.voxels)
        raise BadFile(Reason.NOT_VOLUMETRIC, f"{frames} frame(s) that are no stack of parallel planes")
    return FoundVolume(volume, patient)


def those_that_pass(scans: Iterable[Callable[[], FoundVolume]]) -> list[FoundVolume]:
    """The volumes among the scans of one file; raises the first BadFile where none passes, BadFile(no_pixel_data)
    where there are none. A visit holds line and circle scans beside its volume, and one of them refuses no other.
    """
    volumes: list[FoundVolume] = []
    refused: BadFile | None = None
    for scan in scans:
        try:
            volumes.append(scan())
        except BadFile as bad:
            refused = refused or bad
    if not volumes:
        raise refused or BadFile(Reason.NO_PIXEL_DATA, "the file holds no B-scan")
    return volumes


def known(length: float | None) -> float | None:
    """A positive finite length; zero and 3.4e38 mean unknown in the field."""
    return float(length) if length is not None and 0 < length < 1e6 else None


def eye(side: str | None) -> Laterality | None:
    """R for OD, L for OS; None for anything else."""
    match (side or "").strip().upper():
        case "OD" | "R":
            return "R"
        case "OS" | "L":
            return "L"
        case _:
            return None


def text(raw: bytes) -> str | None:
    """A zero-terminated string of a header; None where it is blank. Latin-1, since an id must survive an umlaut."""
    return raw.split(b"\0", 1)[0].decode("latin-1").strip() or None


def bits_needed(voxels: np.ndarray) -> int:
    """Bits, 8 to 16, that hold every value: 12 bits in a 16-bit type taken for 16 would be 16 times too dark."""
    return max(8, int(voxels.max()).bit_length())


def planes(lines: np.ndarray) -> tuple[float | None, bool | None]:
    """(distance between neighbours, verdict) of scan lines float [D, 2, 2] = [frame, start or end, x or y].

    True for parallel, evenly spaced lines; False for one line, lines that turn, or two in one place; None where
    positions are absent or uneven. The distance, in the unit of the lines, is known only with True.
    """
    if len(lines) == 1:
        return None, False
    if not (np.abs(lines) < 1e6).all() or not lines.any():
        return None, None
    along = lines[:, 1] - lines[:, 0]
    lengths = np.linalg.norm(along, axis=1)
    if lengths.min() < _SAME_LINE:  # a circle has no direction; its neighbours may have one
        return None, False
    direction = along / lengths[:, None]
    if np.abs(direction @ direction[0]).min() < _PARALLEL_COSINE:
        return None, False
    normal = np.array([-direction[0, 1], direction[0, 0]])
    offsets = lines.mean(axis=1) @ normal
    if np.diff(np.sort(offsets)).min() < _SAME_LINE:
        return None, False
    steps = np.diff(offsets)
    mean = float(steps.mean())
    even = np.abs(steps - mean).max() <= _EVEN_STEPS * abs(mean)
    return (abs(mean), True) if even else (None, None)
