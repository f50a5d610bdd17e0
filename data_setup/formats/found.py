"""What the readers of non-DICOM formats share: their return type, the terms on which they call a library, the checks.

The libraries know the containers; nothing of theirs is trusted with a damaged file. Readers look at magic and sizes
first, and what hangs or eats memory all the same is ended by data_setup.isolate.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_setup.content import check_content
from data_setup.errors import BadFile, Reason
from data_setup.volume import Laterality, ReadOptions, Volume


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
def library(name: str) -> Iterator[None]:
    """Import and call a library in here: it prints, logs and warns of nothing, for it would tell names and paths, and
    whatever it raises becomes BadFile(decode_failed, too_large); ImportError passes.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    except (BadFile, ImportError):
        raise
    except MemoryError:
        raise BadFile(Reason.TOO_LARGE, f"{name} needs more memory than it is given") from None
    except Exception as error:  # no library documents what it raises on a damaged file
        raise BadFile(Reason.DECODE_FAILED, f"{name} cannot read the file", type(error).__name__) from None
    finally:
        logging.disable(disabled)


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


def bits_needed(voxels: np.ndarray) -> int:
    """Bits, 8 to 16, that hold every value: 12 bits in a 16-bit type taken for 16 would be 16 times too dark."""
    return max(8, int(voxels.max()).bit_length())
