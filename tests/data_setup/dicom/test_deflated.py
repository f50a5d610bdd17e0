"""Deflated data sets: the same volume as the plain file, and a bound on what they may inflate to."""

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_setup.dicom import BadFile, Reason, read_volume
from data_setup.dicom.read import read_patient_id

Write = Callable[..., Path]


@pytest.fixture
def deflated(write_opt: Write) -> Path:
    return write_opt(syntax=DeflatedExplicitVRLittleEndian)


def test_a_deflated_file_is_the_plain_one(deflated: Path, voxels: np.ndarray) -> None:
    volume = read_volume(deflated)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.spacing_mm == pytest.approx((0.03, 0.004, 0.01))
    assert read_patient_id(deflated) == "TEST-1"


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0" * 5])
def test_bytes_after_the_end_of_a_large_stream_are_ignored(write_opt: Write, padding: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (8, 512, 512), dtype=np.uint8)  # inflates beyond one step
    path = write_opt(pixels=pixels, syntax=DeflatedExplicitVRLittleEndian)
    with open(path, "ab") as file:
        file.write(padding)
    started = time.monotonic()
    np.testing.assert_array_equal(read_volume(path).voxels, pixels)
    assert time.monotonic() - started < 20


def test_a_cut_stream_is_cut_pixels(deflated: Path) -> None:
    content = deflated.read_bytes()
    deflated.write_bytes(content[: len(content) * 7 // 10])
    with pytest.raises(BadFile) as caught:
        read_volume(deflated)
    assert caught.value.reason is Reason.PIXEL_DATA_TRUNCATED


def test_a_bomb_is_too_large_before_its_first_element_is_judged(deflated: Path) -> None:
    content = deflated.read_bytes()
    meta = content[: content.index(b"UI\x16\x001.2.840.10008.1.2.1.99") + 26]
    body = zlib.compress(bytes(300 << 20), 9, wbits=-15)  # 300 MB of zeros in 300 kB
    deflated.write_bytes(meta + body)
    with pytest.raises(BadFile) as caught:
        read_volume(deflated, max_bytes=1 << 20)
    assert caught.value.reason in (Reason.TOO_LARGE, Reason.INVALID_HEADER)


def test_what_cannot_be_inflated_is_an_invalid_header(deflated: Path) -> None:
    content = bytearray(deflated.read_bytes())
    start = content.index(b"1.2.840.10008.1.2.1.99") + 40
    content[start : start + 60] = b"\xff" * 60
    deflated.write_bytes(bytes(content))
    with pytest.raises(BadFile) as caught:
        read_volume(deflated)
    assert caught.value.reason in (Reason.INVALID_HEADER, Reason.HEADER_TRUNCATED)


def test_a_damaged_file_meta_of_a_deflated_file_is_an_invalid_header(deflated: Path) -> None:
    content = deflated.read_bytes()
    instance = b"\x02\x00\x03\x00UI"  # MediaStorageSOPInstanceUID
    assert content.count(instance) == 1
    deflated.write_bytes(content.replace(instance, b"\x02\x00\x03\x00OX"))  # OX: no VR that can be written
    with pytest.raises(BadFile) as caught:
        read_volume(deflated)
    assert caught.value.reason in (Reason.INVALID_HEADER, Reason.HEADER_TRUNCATED)
