"""A NIfTI file (.nii, .nii.gz) -> verified volume [D, H, W]. The only OCT reader that knows nibabel.

NIfTI has no convention for OCT: its affine speaks of a head in a scanner. A numpy [D, H, W] written by SimpleITK, ITK
or C code has x = lateral, y = depth, z = B-scan, so the array as nibabel shows it, [W, H, D], is transposed and never
turned by the affine; who writes with nibabel transposes first. Row 0 is trusted to be the vitreous side.
"""

import gzip
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import FoundVolume, bits_needed, check_held, check_shape, judged, known, library, opened
from data_setup.volume import ReadOptions, Spacing, Volume

_MM = {"mm": 1.0, "micron": 1e-3, "meter": 1e3}  # a header without a unit tells no spacing
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348


def read_nifti(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The volume of a single-file NIfTI; raises BadFile. A fourth axis of length 1 is dropped, two axes are one B-scan.

    8 and 16 unsigned bits pass as stored. All other types become uint8, linearly from the volume's minimum to its
    maximum (what is not finite becomes 0): their scale says nothing that two files have in common.
    """
    with opened(path) as (file, size), library("nibabel"):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        header = _header(stream)
        shape = _shape(header)
        kind = header.get_data_dtype()
        if kind.kind not in "iuf" or kind.itemsize > 8:
            found = "colour voxels" if kind.names else f"voxels of type {kind}"
            reason = Reason.COLOUR_IMAGE if kind.names else Reason.UNSUPPORTED_PIXEL_FORMAT
            raise BadFile(reason, found)
        check_shape(shape, kind.itemsize, options)
        stored = _voxels(stream, header, shape, None if packed else size)
        spacing_mm = _spacing(header, shape)
    voxels = stored if stored.dtype in (np.uint8, np.uint16) else _to_uint8(stored)
    volume = Volume(
        voxels=voxels,
        bits_stored=8 if voxels.dtype == np.uint8 else bits_needed(voxels),
        spacing_mm=spacing_mm,
        laterality=None,
        vendor=None,
        model=None,
        protocol=None,
        volumetric=False if shape[0] == 1 else None,
    )
    return [judged(volume, None, options)]


def _header(stream: BinaryIO | gzip.GzipFile) -> Any:
    """Nibabel's header of NIfTI-1 or NIfTI-2; raises BadFile(header_truncated, no_pixel_data)."""
    from nibabel.nifti1 import Nifti1Header  # 0.3 s and 75 MiB of address space, paid by those who have NIfTI
    from nibabel.nifti2 import Nifti2Header

    head = stream.read(_HEADER_BYTES)
    stream.seek(0)
    header_type = Nifti2Header if head[4:7] in (b"n+2", b"ni2") else Nifti1Header
    if len(head) < header_type.sizeof_hdr:
        raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the header")
    header = header_type.from_fileobj(stream)
    if header["magic"].item() not in (b"n+1", b"n+2"):
        raise BadFile(Reason.NO_PIXEL_DATA, "a header whose voxels lie in another file: convert the pair to one .nii")
    return header


def _shape(header: Any) -> tuple[int, int, int]:
    """[D, H, W]; raises BadFile(shape_mismatch) for more than three axes that matter."""
    axes = [int(length) for length in header.get_data_shape()]
    if len(axes) < 2 or any(length != 1 for length in axes[3:]):
        raise BadFile(Reason.SHAPE_MISMATCH, f"an array of shape {tuple(axes)}, three axes are needed")
    width, height, depth = [*axes, 1][:3]
    return depth, height, width


def _voxels(stream: BinaryIO | gzip.GzipFile, header: Any, shape: tuple[int, int, int], size: int | None) -> np.ndarray:
    """Stored values [D, H, W] in native byte order; x runs fastest, so C order is right as it lies.

    The header's slope and intercept are left out: a linear map changes nothing after _to_uint8. Raises
    BadFile(pixel_data_truncated, unsupported_pixel_format, invalid_header).
    """
    slope = header["scl_slope"].item()
    if slope < 0:
        raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, "a negative scl_slope, which inverts the image")
    kind = header.get_data_dtype()
    needed = int(np.prod(shape)) * kind.itemsize
    offset = int(header["vox_offset"])
    if offset < header.sizeof_hdr:
        raise BadFile(Reason.INVALID_HEADER, f"vox_offset is {offset}, inside the header")
    if size is not None:
        check_held(offset + needed, size)
    stream.seek(offset)
    data = stream.read(needed)
    stream.read(1)  # at its end a gzip stream is compared with its checksum
    check_held(offset + needed, offset + len(data))
    return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _to_uint8(stored: np.ndarray) -> np.ndarray:
    """Any real type [D, H, W] -> uint8, minimum to 0 and maximum to 255; one value in all becomes 0."""
    grey = np.zeros(stored.shape, np.uint8)
    seen = [frame[np.isfinite(frame)] for frame in stored]
    low = min((float(values.min()) for values in seen if values.size), default=0.0)
    span = max((float(values.max()) for values in seen if values.size), default=0.0) - low
    if not 0 < span < np.inf:
        return grey
    for out, frame, values in zip(grey, stored, seen, strict=True):  # by frame: a float64 copy is 8 times as large
        out[np.isfinite(frame)] = np.rint((values.astype(np.float64) - low) / span * 255)
    return grey


def _spacing(header: Any, shape: tuple[int, int, int]) -> Spacing:
    """[D, H, W] in mm; None without a unit, and where all are exactly 1: what writers put when they know nothing."""
    unit = _MM.get(header.get_xyzt_units()[0])
    zooms = [float(zoom) for zoom in header.get_zooms()[:3]]
    if unit is None or zooms == [1.0] * len(zooms):
        return None, None, None
    width, height, depth = [*zooms, 0.0][:3]
    return known(depth * unit) if shape[0] > 1 else None, known(height * unit), known(width * unit)
