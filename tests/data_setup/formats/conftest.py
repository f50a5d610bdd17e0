"""Writes small files of the formats of which no real file is free, from their documented layouts."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_setup.formats.heyex import read_heyex_vol
from data_setup.volume import ReadOptions


@pytest.fixture
def bscans(test_data: Path) -> np.ndarray:
    """uint8 [10, 40, 50]: the tiny real-looking volume."""
    found = read_heyex_vol(test_data / "oct" / "eyepy_tiny_10x40x50.vol", ReadOptions())
    return found[0].volume.voxels


def e2e_chunk(kind: int, key: tuple[int, int, int], number: int, body: bytes, ind: int = 0) -> bytes:
    head = struct.pack("<12s5I3IiHHII", b"MDbData", 0, 0, 0, len(body), 0, *key, number, ind, 0, kind, 0)
    return head + body


def e2e_meta(shape: tuple[int, int], y: float, pattern: int) -> bytes:
    """Type 10004 of one B-scan: a horizontal line at `y` degrees, 0.0039 mm per row."""
    line = (-10.0, y, 10.0, y)
    head = struct.pack("<3I4fIfffI2fI", 0, *shape, *line, 0, 0.0, 0.0039, 0.0, 0, 0.0, 0.0, 0)
    tail = struct.pack("<4I2fIQIf", shape[1], 10, 0, pattern, 0.0, y, 0, 0x01D000000000000, 1, 30.0)
    return (head + tail).ljust(428, b"\0")


def e2e_patient(name: str, patient: str) -> bytes:
    return struct.pack("<31s51s15sI1s25s", b"John", name.encode("latin-1"), b"", 0, b"M", patient.encode()).ljust(131)


def e2e_file(chunks: list[tuple[int, tuple[int, int, int], int, bytes, int]]) -> bytes:
    """A file of two directories, each followed by the chunks it lists (type, (patient, study, series), slice, body,
    index); the header points at the second.
    """
    out, starts = bytes(36 + 52), [0]
    for held in (chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]):
        starts.append(len(out))
        directory = struct.pack("<12s6I4I", b"MDbDir", *(0,) * 6, len(held), 0, starts[-2], 0)
        data_at, data = len(out) + 52 + 44 * len(held), b""
        for kind, key, number, body, ind in held:
            here = len(out) + len(directory)
            directory += struct.pack("<7IiHHII", here, data_at + len(data), len(body), 0, *key, number, ind, 0, kind, 0)
            data += e2e_chunk(kind, key, number, body, ind)
        out += directory + data
    head = struct.pack("<12s6I", b"CMDb", *(0,) * 6)
    main = struct.pack("<12s6I4I", b"MDbMDir", *(0,) * 6, 0, starts[-1], 0, 0)
    return head + main + out[len(head + main) :]


def e2e_volume(stored: np.ndarray, key: tuple[int, int, int], side: bytes, pattern: int = 3) -> list:
    """The chunks of one scan: stored numbers uint16 [D, H, W]."""
    chunks = [(11, key, -1, bytes(14) + side + bytes(12), 0), (3, key, -1, bytes(4) + side + bytes(123), 0)]
    for frame, bscan in enumerate(stored):
        image = struct.pack("<5I", 2 * bscan.size, 35652097, bscan.size, *bscan.shape) + bscan.astype("<u2").tobytes()
        chunks.append((10004, key, 2 * frame, e2e_meta(bscan.shape, 0.25 * frame, pattern), 0))
        chunks.append((1073741824, key, 2 * frame, image, 1))
    return chunks


def topcon_file(chunks: list[tuple[bytes, bytes]], magic: bytes = b"FOCTFDA") -> bytes:
    out = magic + struct.pack("<2I", 2, 0)
    for name, body in chunks:
        out += bytes([len(name)]) + name + struct.pack("<I", len(body)) + body
    return out + b"\0"


def topcon_facts() -> list[tuple[bytes, bytes]]:
    """A left eye of 6 x 5 mm, 2.6 micrometres per row, of the patient P-7, whose dates are blank."""
    patient = struct.pack("<32s32s32s8sB", b"P-7", b"John", b"D\xf6e", b"", 1).ljust(800, b"\0")
    return [
        (b"@PATIENT_INFO_02", patient),
        (b"@CAPTURE_INFO_02", struct.pack("<BBI100s6H", 1, 2, 0, b"", *bytes(6))),
        (
            b"@PARAM_SCAN_04",
            struct.pack("<3I5dBB9s", 0, 0, 0, 6.0, 5.0, 2.6, 0.0, 0.0, 0, 0, bytes(9)).ljust(120, b"\0"),
        ),
        (b"@HW_INFO_03", b"3DOCT-2000".ljust(16, b"\0") + bytes(100)),
    ]


def topcon_jpegs(voxels: np.ndarray, mode: int = 2) -> tuple[bytes, bytes]:
    body = struct.pack("<B6I", mode, 0, 0, *voxels.shape[:0:-1], len(voxels), 0)
    for bscan in voxels:
        stream = io.BytesIO()
        Image.fromarray(bscan).save(stream, "JPEG2000", irreversible=False)
        body += struct.pack("<I", len(stream.getvalue())) + stream.getvalue()
    return b"@IMG_JPEG", body


def topcon_raw(voxels: np.ndarray, name: bytes, mode: int = 2) -> tuple[bytes, bytes]:
    depth, height, width = voxels.shape
    head = struct.pack("<B4IBI", mode, width, height, 16, depth, 0, voxels.nbytes)
    return name, head + voxels.astype("<u2").tobytes()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write
