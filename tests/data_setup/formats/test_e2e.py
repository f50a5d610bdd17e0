"""Heidelberg .e2e, written by the test from its documented layout; oct-converter, another reader, is the oracle."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.errors import BadFile, Reason
from data_setup.isolate import IsolationLimits, run_isolated
from data_setup.volume import ReadOptions
from tests.data_setup.formats.conftest import e2e_file, e2e_patient, e2e_volume

pytest.importorskip("eyepy", reason="EYEPY ABSENT (pip install 'octfm[formats]'): its formats were NOT tested")
from data_setup.formats.heyex import read_e2e

STRICT, ANY = ReadOptions(), ReadOptions(include_nonvolumetric=True)
RIGHT, LEFT = (1, 2, 3), (1, 2, 4)
NOBODY = -1 & 0xFFFFFFFF
IMAGE = 1073741824


@pytest.fixture
def stored() -> np.ndarray:
    """Numbers of the 6 + 10 bit float, uint16 [5, 12, 16]: reflectivity of 2^-40 to 2, one A-scan without signal."""
    numbers = np.random.default_rng(0).integers(23 << 10, 63 << 10, (5, 12, 16), dtype=np.uint16)
    numbers[0, :, 0] = 0xFFFF
    return numbers


def refused(path: Path, options: ReadOptions = ANY) -> Reason:
    with pytest.raises(BadFile) as caught:
        read_e2e(path, options)
    told = f"{caught.value} {caught.value.detail}"
    assert not re.search("Doe|John|ID-9", told)
    assert path.name not in told
    return caught.value.reason


def test_every_volume_comes_with_its_side_and_patient(save: Callable, stored: np.ndarray) -> None:
    chunks = [(9, (1, NOBODY, NOBODY), -1, e2e_patient("D\xf6e", "ID-9"), 0)]
    chunks += e2e_volume(stored, RIGHT, b"R") + e2e_volume(stored[:, ::-1], LEFT, b"L")
    right, left = read_e2e(save("scan.e2e", e2e_file(chunks)), STRICT)
    assert [scan.volume.laterality for scan in (right, left)] == ["R", "L"]
    np.testing.assert_array_equal(left.volume.voxels, right.volume.voxels[:, ::-1])
    for volume, patient in (right, left):
        assert patient == "ID-9"
        assert (volume.voxels.shape, volume.voxels.dtype) == ((5, 12, 16), np.uint8)
        assert volume.spacing_mm == (None, pytest.approx(0.0039), None)
        assert (volume.volumetric, volume.vendor, volume.bits_stored) == (True, "Heidelberg Engineering", 8)
        assert not re.search("D.e|John|ID-9", repr(volume))


def test_pixels_and_facts_are_those_of_oct_converter(save: Callable, stored: np.ndarray) -> None:
    readers = pytest.importorskip(
        "oct_converter.readers",
        reason="OCT_CONVERTER ABSENT (pip install 'octfm[formats]'): its formats were NOT tested",
    )
    chunks = [(9, RIGHT, -1, e2e_patient("Doe", "ID-9"), 0), *e2e_volume(stored, RIGHT, b"R")]
    path = save("scan.e2e", e2e_file(chunks))
    [theirs] = readers.E2E(path).read_oct_volume()
    [(ours, _)] = read_e2e(path, STRICT)
    grey = np.rint(np.stack(theirs.volume) * 255)
    assert not ours.voxels[0, :, 0].any()  # no signal: theirs is white, eyepy's black
    assert (grey[0, :, 0] == 255).all()
    grey[0, :, 0] = 0
    assert np.abs(grey - ours.voxels).max() <= 1
    assert len(np.unique(grey)) > 50
    assert theirs.laterality == ours.laterality
    assert theirs.pixel_spacing[1] == pytest.approx(ours.spacing_mm[1])


@pytest.mark.parametrize("pattern", [2, 5])
def test_circles_do_not_cost_the_volume_beside_them(save: Callable, stored: np.ndarray, pattern: int) -> None:
    both = e2e_volume(stored, LEFT, b"L", pattern) + e2e_volume(stored, RIGHT, b"R")
    assert [scan.volume.laterality for scan in read_e2e(save("a.e2e", e2e_file(both)), STRICT)] == ["R"]
    assert len(read_e2e(save("a.e2e", e2e_file(both)), ANY)) == 2
    alone = save("b.e2e", e2e_file(e2e_volume(stored, LEFT, b"L", pattern)))
    assert refused(alone, STRICT) is Reason.NOT_VOLUMETRIC


def test_sides_that_disagree_or_are_absent_are_unknown(save: Callable, stored: np.ndarray) -> None:
    chunks = e2e_volume(stored, RIGHT, b"R")
    kind, key, number, body, ind = chunks[0]
    two = [(kind, key, number, body.replace(b"R", b"L"), ind), *chunks]
    for found in (two, chunks[2:]):
        assert read_e2e(save("a.e2e", e2e_file(found)), STRICT)[0].volume.laterality is None


def test_missing_and_unequal_bscans_are_told(save: Callable, stored: np.ndarray) -> None:
    chunks = e2e_volume(stored, RIGHT, b"R")
    gap = [chunk for chunk in chunks if chunk[2] != 4]
    assert refused(save("a.e2e", e2e_file(gap))) is Reason.FRAME_COUNT_MISMATCH
    other = [*chunks[:-2], *e2e_volume(np.concatenate([stored, stored], axis=1), RIGHT, b"R")[-2:]]
    assert refused(save("a.e2e", e2e_file(other))) is Reason.SHAPE_MISMATCH
    none = [chunk for chunk in chunks if chunk[0] != IMAGE]
    assert refused(save("a.e2e", e2e_file(none))) is Reason.NO_PIXEL_DATA
    patient_only = [(9, RIGHT, -1, e2e_patient("Doe", "ID-9"), 0)] * 2
    assert refused(save("a.e2e", e2e_file(patient_only))) is Reason.NO_PIXEL_DATA
    assert refused(save("a.e2e", e2e_file(chunks)), ReadOptions(max_bytes=959)) is Reason.TOO_LARGE


def test_no_cut_file_is_accepted(save: Callable, stored: np.ndarray) -> None:
    data = e2e_file(e2e_volume(stored, RIGHT, b"R"))
    assert len(read_e2e(save("a.e2e", data), STRICT)) == 1
    reasons = {refused(save("a.e2e", data[:cut])) for cut in range(20, len(data), 97)}
    assert reasons == {
        Reason.INVALID_HEADER,
        Reason.HEADER_TRUNCATED,
        Reason.PIXEL_DATA_TRUNCATED,
    }


def test_a_chunk_that_eyepy_cannot_parse_is_no_shorter_volume(save: Callable, stored: np.ndarray) -> None:
    data = bytearray(e2e_file(e2e_volume(stored, RIGHT, b"R")))
    (last,) = struct.unpack_from("<I", data, 36 + 40)
    data[last] = 0xFF  # no ASCII: eyepy stops before this directory
    assert refused(save("a.e2e", bytes(data))) is Reason.INVALID_HEADER


def test_joined_and_foreign_files_are_refused(save: Callable, stored: np.ndarray) -> None:
    data = e2e_file(e2e_volume(stored, RIGHT, b"R"))
    for head in (b"E2EMultipleVolumeFile".ljust(64, b"\0") + data, b"hello"):
        assert refused(save("a.e2e", head)) is Reason.INVALID_HEADER
    assert refused(save("a.e2e", b"CMDb")) is Reason.HEADER_TRUNCATED
    assert refused(save("a.e2e", b"CMDb" + bytes(5000))) is Reason.NO_PIXEL_DATA


def num_volumes_or_reason(path: Path) -> str:
    try:
        return str(len(read_e2e(path, ANY)))
    except BadFile as bad:
        return bad.reason


def test_a_ring_of_directories_is_ended_by_the_limits(save: Callable, stored: np.ndarray) -> None:
    """eyepy walks it for ever, and keeps what it meets."""
    data = bytearray(e2e_file(e2e_volume(stored, RIGHT, b"R")))
    (last,) = struct.unpack_from("<I", data, 36 + 40)
    (count,) = struct.unpack_from("<I", data, last + 36)
    struct.pack_into("<2I", data, last + 52 + 44 * (count - 1) + 4, 88 - 60, 0)  # start, size of the last entry
    limits = IsolationLimits(timeout_s=4, memory_bytes=1 << 30)
    ring, good = save("ring.e2e", bytes(data)), save("good.e2e", e2e_file(e2e_volume(stored, RIGHT, b"R")))
    ended, after = run_isolated(num_volumes_or_reason, [ring, good], 1, limits)
    assert ended.failure == "timeout" or ended.record == Reason.TOO_LARGE
    assert after.record == "1"
