"""The vendors' own containers: Heidelberg .e2e and .sdb, Topcon .fda and .fds, Zeiss Cirrus .img.

Enters a path, leaves verified volumes. No vendor documents them; the layouts are those that the projects
OCT-Converter, eyepy and retimat worked out. OCT-Converter 0.7.0 itself cannot be used: its Topcon readers fail under
numpy >= 2.3 (np.fromstring), it orders the bytes of an .img unlike four other readers, and a ring of directories in a
damaged .e2e keeps it for ever.
"""

import io
import re
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import (
    FoundVolume,
    bits_needed,
    check_held,
    check_shape,
    eye,
    judged,
    known,
    opened,
    planes,
    quiet,
    text,
    those_that_pass,
)
from data_setup.formats.heyex import VENDOR as HEIDELBERG
from data_setup.formats.heyex import grey
from data_setup.volume import ReadOptions, Volume

# ---- Heidelberg .e2e: a chain of directories, the last one first, whose entries point at chunks

_E2E_SHIFT = {b"E2EMultipleVolumeFile": 64}  # bytes put before an ordinary file when several are joined
_E2E_HEADER_BYTES = 36
_DIRECTORY = struct.Struct("<12s24x4I")  # magic, version and unknown; entries, current, previous, unknown
_ENTRY = np.dtype([("pos", "<u4"), ("start", "<u4"), ("middle", "V28"), ("kind", "<u4"), ("end", "V4")])
_CHUNK = struct.Struct("<12s8xI8x3Ii4xI4x")  # magic; size; patient, study, series; slice; type
_IMAGE = struct.Struct("<4xI4x2I")  # type, height, width; the pixels follow
_BSCAN_META = struct.Struct("<12x4f8xf32xI")  # line: start x, y, end x, y in degrees; mm per row; scan pattern
_PREAMBLE, _PATIENT, _SIDE, _META, _PIXELS = 3, 9, 11, 10004, 1073741824  # types of chunks; 3 tells the side too
_BSCAN_IMAGE = 35652097  # type of image; the fundus is another one
_PATIENT_ID = slice(31 + 66 + 4 + 1, 31 + 66 + 4 + 1 + 25)  # after first name, surname, birth date, sex
_CIRCLE, _RADIAL = 2, 5  # scan patterns, as in .vol


@dataclass
class _Series:
    """What the chunks of one scan say: slice -> (offset, height, width); slice -> (line, mm per row, pattern)."""

    images: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    metas: dict[int, tuple[np.ndarray, float, int]] = field(default_factory=dict)
    sides: set[str | None] = field(default_factory=set)


def read_e2e(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The scans of an .e2e, uint8 [D, H, W] each, of both eyes and many visits; raises BadFile.

    Of a joined file the first part is read, as OCT-Converter does. The lateral spacing and the distance of B-scans are
    stored in degrees only, and stay unknown.
    """
    with opened(path) as (file, size):
        start = _E2E_SHIFT.get(file.read(21), 0)
        patients: dict[int, str] = {}
        found: dict[tuple[int, int, int], _Series] = defaultdict(_Series)
        for offset, holds_pixels in _e2e_chunks(file, size, start):
            if holds_pixels:  # other chunks lie beyond the end where HEYEX has made a file anonymous
                check_held(offset + _CHUNK.size + _IMAGE.size, size)
            _sort_chunk(file, offset, patients, found)
        # pixels never overlap, so all volumes together need half the file's size in memory, whatever it claims
        check_held(
            sum(2 * height * width for scan in found.values() for _, height, width in scan.images.values()), size
        )
        scans = [
            partial(_e2e_scan, file, size, series, patients.get(key[0]), options)
            for key, series in found.items()
            if series.images
        ]
        return those_that_pass(scans)


def _e2e_chunks(file: BinaryIO, size: int, start: int) -> list[tuple[int, bool]]:
    """(offset, whether it is said to hold pixels) of all chunks; raises BadFile(header_truncated, invalid_header).

    A directory is visited once, and there are no more chunks than fit: damage can link directories in a ring.
    """

    def directory(offset: int) -> tuple[int, int, int]:
        file.seek(offset)
        raw = file.read(_DIRECTORY.size)
        if len(raw) < _DIRECTORY.size:
            raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside, or before, a directory")
        magic, entries, current, previous, _ = _DIRECTORY.unpack(raw)
        if not magic.startswith(b"MDb"):
            raise BadFile(Reason.INVALID_HEADER, "a directory of the .e2e is not where it should be")
        return entries, current, previous

    file.seek(start)
    if not file.read(4).startswith(b"CMDb"):
        raise BadFile(Reason.INVALID_HEADER, "no Heidelberg .e2e file")
    _, here, _ = directory(start + _E2E_HEADER_BYTES)
    visited: set[int] = set()
    chunks: list[tuple[int, bool]] = []
    while here and here not in visited:
        visited.add(here)
        entries, _, previous = directory(start + here)
        check_held(start + here + _DIRECTORY.size + entries * _ENTRY.itemsize, size)
        table = np.frombuffer(file.read(entries * _ENTRY.itemsize), _ENTRY)
        used = table[table["start"] > table["pos"]]  # an unused entry points at nothing
        chunks += zip((start + used["start"].astype(int)).tolist(), (used["kind"] == _PIXELS).tolist(), strict=True)
        if len(chunks) > size // _CHUNK.size:
            raise BadFile(Reason.INVALID_HEADER, f"{len(chunks):,} chunks in {size:,} bytes")
        here = previous
    return chunks


def _sort_chunk(
    file: BinaryIO, offset: int, patients: dict[int, str], found: dict[tuple[int, int, int], _Series]
) -> None:
    """Adds what the chunk at `offset` says. Chunks of no interest, or cut ones, are passed over."""
    file.seek(offset)
    head = file.read(_CHUNK.size)
    if len(head) < _CHUNK.size:
        return
    _, _, patient, study, series, number, kind = _CHUNK.unpack(head)
    scan = found[patient, study, series]
    body = file.read(128) if kind in (_PREAMBLE, _PATIENT, _SIDE, _META, _PIXELS) else b""
    if kind == _PATIENT and (name := text(body[_PATIENT_ID])):
        patients[patient] = name
    elif kind in (_PREAMBLE, _SIDE):
        scan.sides.add(eye(text(body[4:5] if kind == _PREAMBLE else body[14:15])))
    elif kind == _META and len(body) >= _BSCAN_META.size:
        *line, mm_per_row, pattern = _BSCAN_META.unpack_from(body)
        scan.metas[number] = np.reshape(line, (2, 2)), mm_per_row, pattern
    elif kind == _PIXELS and len(body) >= _IMAGE.size:
        image, height, width = _IMAGE.unpack_from(body)
        if image == _BSCAN_IMAGE:
            scan.images[number] = offset + _CHUNK.size + _IMAGE.size, height, width


def _e2e_scan(file: BinaryIO, size: int, series: _Series, patient: str | None, options: ReadOptions) -> FoundVolume:
    """One scan of an .e2e; raises BadFile."""
    numbers = sorted(series.images)
    sizes = {series.images[number][1:] for number in numbers}
    if len(sizes) > 1:
        raise BadFile(Reason.SHAPE_MISMATCH, f"B-scans of {len(sizes)} sizes")
    shape = (len(numbers), *sizes.pop())
    check_shape(shape, 1, options)
    if len(set(np.diff(numbers))) > 1:  # they count 0, 2, 4, ...
        raise BadFile(Reason.FRAME_COUNT_MISMATCH, f"B-scans are missing between {numbers[0]} and {numbers[-1]}")
    voxels = np.empty(shape, np.uint8)
    for out, number in zip(voxels, numbers, strict=True):
        offset = series.images[number][0]
        check_held(offset + 2 * out.size, size)
        file.seek(offset)
        out[...] = _ufloat16_grey()[np.frombuffer(file.read(2 * out.size), "<u2")].reshape(out.shape)
    metas = [series.metas[number] for number in numbers if number in series.metas]
    parallel = False if len(numbers) == 1 or any(meta[2] in (_CIRCLE, _RADIAL) for meta in metas) else None
    if parallel is None and len(metas) == len(numbers):
        _, parallel = planes(np.array([meta[0] for meta in metas]))
    sides = series.sides - {None}
    volume = Volume(
        voxels=voxels,
        bits_stored=8,
        spacing_mm=(None, known(metas[0][1]) if metas else None, None),
        laterality=eye(sides.pop()) if len(sides) == 1 else None,
        vendor=HEIDELBERG,
        model=None,
        protocol=None,
        volumetric=parallel,
    )
    return judged(volume, patient, options)


@lru_cache(maxsize=1)
def _ufloat16_grey() -> np.ndarray:
    """uint8 [65536]: the grey value of each stored number: 6 bits of exponent, then 10 of mantissa, lowest first.

    The mantissa's odd order of bits is what both OCT-Converter and eyepy read. Above 1.99 there is no signal.
    """
    stored = np.arange(1 << 16)
    mantissa = sum(((stored >> bit) & 1) << (9 - bit) for bit in range(10))
    values = (1 + mantissa / 1024) * 2.0 ** ((stored >> 10) - 63)
    return np.where(values > 1.99, 0, grey(values.astype(np.float32))).astype(np.uint8)


# ---- Topcon .fda and .fds: named chunks one after another, ended by a name of length 0

_TOPCON_HEADER_BYTES = 15
_NUM_CHUNKS = 4096  # real files have 20 to 40; a zeroed or random file must not be walked byte by byte
_JPEG = struct.Struct("<9x3I4x")  # scan mode; width, height, frames; then length and JPEG 2000 stream of each frame
_RAW = struct.Struct("<x4I5x")  # scan mode; width, height, bits, frames; then uint16 pixels
_IS_VOLUME = {2: True, 3: False, 4: False}  # scan modes: cube, radial, cross; of others nothing is known
_EXTENTS = struct.Struct("<3d")  # along and across the B-scans in mm, micrometres per row
_EXTENTS_AT = {b"@PARAM_SCAN_04": 12, b"@PARAM_SCAN_02": 21}


def read_topcon(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The one scan of a .fda or .fds, uint8 or uint16 [D, H, W]; raises BadFile."""
    with opened(path) as (file, size):
        chunks = _topcon_chunks(file, size)
        name = next((name for name in (b"@IMG_JPEG", b"@IMG_SCAN_03", b"@IMG_MOT_COMP_03") if name in chunks), None)
        if name is None:
            raise BadFile(Reason.NO_PIXEL_DATA, "a Topcon file without IMG_JPEG, IMG_SCAN_03 or IMG_MOT_COMP_03")
        decode = _topcon_jpegs if name == b"@IMG_JPEG" else _topcon_raw
        voxels = decode(file, *chunks[name], options)

        def head(count: int, *names: bytes) -> bytes:
            """The first bytes of the first of these chunks that has as many, else none."""
            for offset, length in (chunks[name] for name in names if name in chunks):
                if length >= count:
                    file.seek(offset)
                    return file.read(count)
            return b""

        mode = head(1, name)[0]
        side = {b"\0": "R", b"\1": "L"}.get(head(1, b"@CAPTURE_INFO_02", b"@CAPTURE_INFO"))
        patient = text(head(32, b"@PATIENT_INFO_02", b"@PATIENT_INFO"))
        model = text(head(16, b"@HW_INFO_03", b"@HW_INFO_02", b"@HW_INFO_01"))
        extents = [head(at + _EXTENTS.size, name)[at:] for name, at in _EXTENTS_AT.items()]
    along, across, um_per_row = _EXTENTS.unpack(extents[0] or extents[1] or bytes(_EXTENTS.size))
    frames, _, width = voxels.shape
    volumetric = False if frames == 1 else _IS_VOLUME.get(mode)
    volume = Volume(
        voxels=voxels,
        bits_stored=bits_needed(voxels),
        spacing_mm=(
            known(across / frames) if volumetric is not False else None,
            known(um_per_row / 1000),
            known(along / width),
        ),
        laterality=eye(side),
        vendor="Topcon",
        model=model,
        protocol=None,
        volumetric=volumetric,
    )
    return [judged(volume, patient, options)]


def _topcon_chunks(file: BinaryIO, size: int) -> dict[bytes, tuple[int, int]]:
    """Name -> (offset, length) of the first chunk of each name; raises BadFile(header_truncated, invalid_header,
    pixel_data_truncated).
    """
    file.seek(0)
    if not file.read(_TOPCON_HEADER_BYTES).startswith(b"FOCT"):
        raise BadFile(Reason.INVALID_HEADER, "no Topcon .fda or .fds file")
    chunks: dict[bytes, tuple[int, int]] = {}
    for _ in range(_NUM_CHUNKS):
        length = file.read(1)
        name = file.read(length[0]) if length else b""
        if length == b"\0":
            return chunks
        raw = file.read(4)
        if len(raw) < 4:
            raise BadFile(Reason.HEADER_TRUNCATED, "the file ends inside the list of its chunks")
        offset, chunk_bytes = file.tell(), int.from_bytes(raw, "little")
        check_held(offset + chunk_bytes, size)
        chunks.setdefault(name, (offset, chunk_bytes))
        file.seek(offset + chunk_bytes)
    raise BadFile(Reason.INVALID_HEADER, f"a Topcon file of more than {_NUM_CHUNKS} chunks")


def _topcon_jpegs(file: BinaryIO, offset: int, length: int, options: ReadOptions) -> np.ndarray:
    """Frames of JPEG 2000 as uint8 or uint16 [D, H, W]; raises BadFile."""
    check_held(_JPEG.size, length)
    file.seek(offset)
    width, height, frames = _JPEG.unpack(file.read(_JPEG.size))
    shape = (frames, height, width)
    check_shape(shape, 2, options)
    check_held(_JPEG.size + 4 * frames, length)
    end = offset + length
    voxels: np.ndarray | None = None
    for frame in range(frames):
        stream_bytes = int.from_bytes(file.read(4), "little")
        check_held(file.tell() + stream_bytes, end)
        bscan = _jpeg(file.read(stream_bytes), height, width)
        if voxels is None:
            voxels = np.empty(shape, bscan.dtype)
        if bscan.dtype != voxels.dtype:
            raise BadFile(Reason.SHAPE_MISMATCH, "frames of 8 and of 16 bits")
        voxels[frame] = bscan
    assert voxels is not None  # check_shape: at least one frame
    return voxels


def _jpeg(stream: bytes, height: int, width: int) -> np.ndarray:
    """One frame, uint8 or uint16 [H, W]; raises BadFile(decode_failed, shape_mismatch)."""
    try:
        with quiet(), Image.open(io.BytesIO(stream), formats=("JPEG2000", "JPEG")) as image:
            if image.size != (width, height) or image.mode not in ("L", "I;16"):
                raise BadFile(Reason.SHAPE_MISMATCH, f"a frame that is no grey image of {height} x {width}")
            return np.asarray(image)
    except BadFile:
        raise
    except Exception as error:  # Pillow documents none of its decoders' errors
        raise BadFile(Reason.DECODE_FAILED, "a JPEG frame cannot be decoded", type(error).__name__) from None


def _topcon_raw(file: BinaryIO, offset: int, length: int, options: ReadOptions) -> np.ndarray:
    """Uncompressed pixels, uint16 [D, H, W]; raises BadFile."""
    check_held(_RAW.size, length)
    file.seek(offset)
    width, height, bits, frames = _RAW.unpack(file.read(_RAW.size))
    if not 8 < bits <= 16:
        raise BadFile(Reason.UNSUPPORTED_PIXEL_FORMAT, f"raw pixels of {bits} bits")
    shape = (frames, height, width)
    check_shape(shape, 2, options)
    needed = 2 * frames * height * width
    check_held(_RAW.size + needed, length)
    return np.frombuffer(file.read(needed), "<u2").reshape(shape).astype(np.uint16)


# ---- Zeiss Cirrus .img: bytes of a cube without a header

# [D, H, W] by size of the file: macular cube, disc and macular cube 200, 6x6 mm OCTA
_CIRRUS_CUBES = {depth * 1024 * width: (depth, 1024, width) for depth, width in ((128, 512), (200, 200), (350, 350))}
# P1234_Macular Cube 512x128_1-31-2010_9-30-15_OD_sn1234_cube_z.img
_CIRRUS_NAME = re.compile(r"(?P<patient>[^_]+)_.*_O[DS]_sn\d*_", re.IGNORECASE)


def read_zeiss_img(path: Path, options: ReadOptions) -> list[FoundVolume]:
    """The cube of a Cirrus .img, uint8 [D, H, W]; its size tells the shape, its **name** side and patient; raises
    BadFile.

    Rows lie in the file from the choroid up and columns from right to left, as retimat and three other readers have
    it. No spacing: the nominal field is 6 x 6 x 2 mm, but nothing in the file says so.
    """
    with opened(path) as (file, size):
        if size not in _CIRRUS_CUBES:
            sizes = ", ".join(f"{held:,}" for held in _CIRRUS_CUBES)
            raise BadFile(Reason.SHAPE_MISMATCH, f"{size:,} bytes without a header; a Cirrus cube has {sizes}")
        shape = _CIRRUS_CUBES[size]
        check_shape(shape, 1, options)
        voxels = np.frombuffer(file.read(size), np.uint8)
    check_held(size, len(voxels))
    sides = set(re.findall(r"(?<![A-Za-z0-9])(O[DS])(?![A-Za-z0-9])", path.stem.upper()))
    name = _CIRRUS_NAME.match(path.name)
    volume = Volume(
        voxels=np.ascontiguousarray(voxels.reshape(shape)[:, ::-1, ::-1]),
        bits_stored=8,
        spacing_mm=(None, None, None),
        laterality=eye(sides.pop()) if len(sides) == 1 else None,
        vendor="Carl Zeiss Meditec",
        model=None,
        protocol=None,
        volumetric=None,
    )
    return [judged(volume, name["patient"] if name else None, options)]
