"""A NIfTI file, opened and checked by its header alone; voxels are read when asked for.

nibabel does the byte order, the scale factors and the slicing. What it leaves to the caller is here: damage told by
reason, units that are wrong, and the turn to the closest canonical axes (first axis left to right, second back to
front, third feet to head).
"""

import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.neuro.errors import NeuroFileError, NeuroReason

SPACING_RANGE_MM = (0.1, 15.0)  # ex vivo scans go down to 0.1 mm; slices of old EPI are up to 10 mm apart
_LONGEST_TR_S = 60.0  # no scanner repeats so slowly: a larger figure is milliseconds under the unit "sec"
_MM = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_CUT = (EOFError, zlib.error, OSError, ValueError)  # what nibabel and gzip raise where the voxels end early


@dataclass(frozen=True, kw_only=True)
class NiftiFile:
    """shape without trailing axes of length 1; spacing_mm of the three stored axes; tr_s of the fourth, or None.

    notes: what was odd in the header and how it was taken.
    """

    image: Any
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    tr_s: float | None
    notes: tuple[str, ...]

    def voxels(self, frames: slice | list[int] | None = None) -> np.ndarray:
        """float32 [X, Y, Z], or [X, Y, Z, n] of a series: all frames, or those asked for. Scale factors are applied.

        Raises NeuroFileError(truncated, not_finite).
        """
        series = len(self.shape) > 3
        tail = (0,) * (len(self.image.shape) - len(self.shape))
        try:
            if not series or frames is None or isinstance(frames, slice):
                chosen = (slice(None),) * 3 + ((frames or slice(None),) if series else ()) + tail
                stored = np.asarray(self.image.dataobj[chosen], np.float32)
            else:  # one read each: a run is never held whole
                parts = [self.image.dataobj[(slice(None),) * 3 + (frame, *tail)] for frame in frames]
                stored = np.stack(parts, axis=-1).astype(np.float32)
        except _CUT as error:
            raise NeuroFileError(
                NeuroReason.TRUNCATED, f"the voxels end early or are damaged ({type(error).__name__})"
            ) from None
        if not np.isfinite(stored).all():
            bad = int(stored.size - np.isfinite(stored).sum())
            raise NeuroFileError(NeuroReason.NOT_FINITE, f"{bad:,} of {stored.size:,} voxels are NaN or infinite")
        return stored

    def canonical(self, voxels: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
        """The voxels [X, Y, Z, ...] turned to the closest canonical axes, and the spacing in mm of those axes."""
        from nibabel.orientations import apply_orientation, io_orientation

        turn = io_orientation(self.image.affine)
        if np.isnan(turn).any():
            raise NeuroFileError(NeuroReason.WRONG_DIMS, "the affine drops an axis, so nothing says where left is")
        spacing = [0.0, 0.0, 0.0]
        for stored_axis, axis in enumerate(turn[:, 0].astype(int)):
            spacing[axis] = self.spacing_mm[stored_axis]
        return apply_orientation(voxels, turn), (spacing[0], spacing[1], spacing[2])


def open_nifti(path: Path) -> NiftiFile:
    """Checks that need no voxel. Raises NeuroFileError(missing, empty, not_nifti, truncated, unsupported_type,
    wrong_dims).
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        size = os.stat(path).st_size
        if path.is_dir():
            raise NeuroFileError(NeuroReason.NOT_NIFTI, "a folder where a NIfTI file is needed")
        if size == 0:
            raise NeuroFileError(NeuroReason.EMPTY, "the file has 0 bytes")
        image: Any = nibabel.load(path)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise NeuroFileError(NeuroReason.MISSING, f"the file cannot be opened ({type(error).__name__})") from None
    except (EOFError, zlib.error):
        raise NeuroFileError(NeuroReason.TRUNCATED, f"a gzip file of {size:,} bytes ends inside the header") from None
    except (ImageFileError, HeaderDataError, OSError, ValueError) as error:
        raise NeuroFileError(NeuroReason.NOT_NIFTI, f"nibabel cannot read it ({type(error).__name__})") from None
    if not isinstance(image, nibabel.Nifti1Pair):
        raise NeuroFileError(NeuroReason.NOT_NIFTI, f"nibabel takes it for {type(image).__name__}")
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise NeuroFileError(NeuroReason.UNSUPPORTED_TYPE, f"voxels of type {kind}")
    _check_size(path, size, image)
    return _described(image)


def check_spacing(file: NiftiFile) -> None:
    """Raises NeuroFileError(impossible_spacing) for a voxel that no scanner of heads makes."""
    low, high = SPACING_RANGE_MM
    if not all(low <= length <= high for length in file.spacing_mm):
        sizes = " x ".join(f"{length:g}" for length in file.spacing_mm)
        raise NeuroFileError(NeuroReason.IMPOSSIBLE_SPACING, f"voxels of {sizes} mm; possible: {low:g} to {high:g} mm")


def _check_size(path: Path, size: int, image: Any) -> None:
    """Raises NeuroFileError(truncated) where the file cannot hold what the header promises.

    A gzip file tells the length of its content, modulo 2^32, in its last 4 bytes; a cut one tells nonsense. Files of
    several gzip members tell that of the last one, so there the content is counted.
    """
    needed = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    if path.suffix == ".img" or path.suffix == ".hdr":
        return
    held = size
    if path.suffix == ".gz":
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            (held,) = struct.unpack("<I", file.read(4))
        if held == needed % 2**32:
            return
        held = _unpacked_size(path)
    if held < needed:
        raise NeuroFileError(NeuroReason.TRUNCATED, f"the file holds {held:,} of {needed:,} bytes")


def _unpacked_size(path: Path) -> int:
    """Bytes of a gzip file's content, up to where it can be read."""
    import gzip

    total = 0
    try:
        with gzip.open(path) as stream:
            while part := stream.read(1 << 20):
                total += len(part)
    except (EOFError, zlib.error, OSError):
        return total
    return total


def _described(image: Any) -> NiftiFile:
    """Shape, spacing and TR in known units."""
    header = image.header
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 3 <= len(shape) <= 4 or min(shape) < 1:
        raise NeuroFileError(NeuroReason.WRONG_DIMS, f"an array of shape {tuple(image.shape)}")
    space_unit, time_unit = header.get_xyzt_units()
    notes = [] if space_unit != "unknown" else ["the header names no unit of length: taken as mm"]
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        notes.append("the header does not say where left is")
    zooms = [float(zoom) for zoom in header.get_zooms()]
    x, y, z = (zoom * _MM.get(space_unit, 1.0) for zoom in zooms[:3])
    tr_s = None
    if len(shape) == 4 and zooms[3] > 0:
        tr_s = zooms[3] * _SECONDS.get(time_unit, 1.0)
        if tr_s > _LONGEST_TR_S:
            notes.append(f"a TR of {zooms[3]:g} under the unit {time_unit!r}: taken as milliseconds")
            tr_s = zooms[3] / 1000
    return NiftiFile(image=image, shape=shape, spacing_mm=(x, y, z), tr_s=tr_s, notes=tuple(notes))
