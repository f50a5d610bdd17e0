"""Topcon .fda and .fds -> the one verified volume uint8 or uint16 [D, H, W], by oct-converter.

Its FDA reader finds the chunks and decodes pixels and extents; an .fds differs in the name of one chunk. Its
read_oct_volume is not called: it fails on a blank date and on an umlaut in a name, which real files have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import (
    FoundVolume,
    bits_needed,
    check_held,
    check_shape,
    eye,
    judged,
    known,
    library,
    opened,
)
from data_setup.volume import ReadOptions, Volume

_FILE_HEADER_BYTES = 15
_JPEG, _RAW, _RAW_OF_FDS = b"@IMG_JPEG", b"@IMG_MOT_COMP_03", b"@IMG_SCAN_03"  # the last two have one layout
_PIXELS_HEADER_BYTES = {_JPEG: 25, _RAW: 22}
_IS_VOLUME = {2: True, 3: False, 4: False}  # scan modes: cube, radial, cross; of others nothing is known


@contextmanager
def _numpy_fromstring() -> Iterator[None]:
    """numpy.fromstring on bytes, as it was: numpy 2.3 removed its binary mode and oct-converter 0.7.0 lives on it."""
    removed = np.fromstring
    np.fromstring = np.frombuffer  # type: ignore[assignment]
    try:
        yield
    finally:
        np.fromstring = removed


def read_topcon(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The one scan of a .fda or .fds; raises BadFile. The extents are those of the scan, so radial scans have no depth
    spacing.
    """
    with opened(path) as (file, _):
        head = file.read(_FILE_HEADER_BYTES)
    if not head.startswith(b"FOCT"):
        raise BadFile(Reason.INVALID_HEADER, "no Topcon .fda or .fds file")
    if len(head) < _FILE_HEADER_BYTES:
        raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the header")
    with library("oct-converter"), _numpy_fromstring():
        from oct_converter.readers import FDA

        try:
            reader = FDA(path)
        except (IndexError, ValueError):  # numpy's, of reading a number where the file has ended
            raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the list of its chunks") from None
        chunks = reader.chunk_dict
        if _RAW_OF_FDS in chunks:
            chunks[_RAW] = chunks[_RAW_OF_FDS]
        header = _pixels_header(path, chunks, options)
        voxels = _stacked(reader.read_oct_data_chunk()[0])
        width_mm, depth_mm, height_mm = reader.read_scan_params(header) or (None, None, None)
        side, patient, model = (_first_bytes(path, chunks, *asked) for asked in _FACTS)
    frames = header["number_slices"]
    if voxels.shape != (frames, header["height"], header["width"]):
        raise BadFile(Reason.SHAPE_MISMATCH, "frames of another size than the header says")
    volumetric = False if frames == 1 else _IS_VOLUME.get(header["scan_mode"])
    volume = Volume(
        voxels=voxels,
        bits_stored=bits_needed(voxels),
        spacing_mm=(known(depth_mm) if volumetric is not False else None, known(height_mm), known(width_mm)),
        laterality=eye({b"\0": "R", b"\1": "L"}.get(side)),
        vendor="Topcon",
        model=_text(model),
        protocol=None,
        volumetric=volumetric,
    )
    return [judged(volume, _text(patient), options)]


# (bytes, names of chunks that start with them) of side, patient's id and model
_FACTS = (
    (1, b"@CAPTURE_INFO_02", b"@CAPTURE_INFO"),
    (32, b"@PATIENT_INFO_02", b"@PATIENT_INFO"),
    (16, b"@HW_INFO_03", b"@HW_INFO_02", b"@HW_INFO_01"),
)


def _first_bytes(path: Path, chunks: dict[bytes, Any], count: int, *names: bytes) -> bytes:
    """The first bytes of the first of these chunks that the file has, else none."""
    for offset, length in (chunks[name] for name in names if name in chunks):
        if length >= count:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(count)
    return b""


def _text(raw: bytes) -> str | None:
    """A zero-terminated string; None where it is blank. Latin-1, since an id must survive an umlaut."""
    return raw.split(b"\0", 1)[0].decode("latin-1").strip() or None


def _pixels_header(path: Path, chunks: dict[bytes, Any], options: ReadOptions) -> dict[str, int]:
    """The header of the chunk of pixels, judged before they are read; raises BadFile."""
    from oct_converter.readers.binary_structs import fda_binary

    name = next((name for name in (_JPEG, _RAW) if name in chunks), None)
    if name is None:
        raise BadFile(Reason.NO_PIXEL_DATA, "a Topcon file without IMG_JPEG, IMG_SCAN_03 or IMG_MOT_COMP_03")
    count = _PIXELS_HEADER_BYTES[name]
    layout = fda_binary.oct_header if name == _JPEG else fda_binary.oct_header_2
    header = dict(layout.parse(_first_bytes(path, chunks, count, name)))
    shape = (header["number_slices"], header["height"], header["width"])
    check_shape(shape, 2, options)
    if name == _RAW:
        if header["bits_per_pixel"] != 16:
            raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, f"raw pixels of {header['bits_per_pixel']} bits")
        check_held(count + 2 * int(np.prod(shape)), int(chunks[name][1]))
    return header


def _stacked(frames: list[np.ndarray]) -> np.ndarray:
    """Decoded frames as [D, H, W] of one type; raises BadFile(shape_mismatch, unsupported_pixel_format)."""
    if len({(frame.shape, frame.dtype) for frame in frames}) != 1:
        raise BadFile(Reason.SHAPE_MISMATCH, "frames of several sizes or types")
    if frames[0].ndim != 2 or frames[0].dtype not in (np.uint8, np.uint16):
        raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, "frames that are no grey images of 8 or 16 bits")
    return np.stack(frames)
