"""Vendors' containers, written by the test from their documented layouts; OCT-Converter reads them too where it can."""

import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.errors import BadFile, Reason
from data_setup.formats.converter import read_e2e, read_topcon, read_zeiss_img
from data_setup.volume import ReadOptions
from tests.data_setup.formats.conftest import (
    e2e_file,
    e2e_patient,
    e2e_volume,
    topcon_facts,
    topcon_file,
    topcon_jpegs,
    topcon_raw,
)

STRICT, ANY = ReadOptions(), ReadOptions(include_nonvolumetric=True)
RIGHT, LEFT = (1, 2, 3), (1, 2, 4)


@pytest.fixture
def stored() -> np.ndarray:
    """Numbers of the 6 + 10 bit float, uint16 [5, 12, 16]: reflectivity of 2^-40 to 2, one A-scan without signal."""
    numbers = np.random.default_rng(0).integers(23 << 10, 63 << 10, (5, 12, 16), dtype=np.uint16)
    numbers[0, :, 0] = 0xFFFF
    return numbers


def refused(read: Callable, path: Path, options: ReadOptions = ANY) -> Reason:
    with pytest.raises(BadFile) as caught:
        read(path, options)
    told = f"{caught.value} {caught.value.detail}"
    assert not re.search("Doe|John|P-7|ID-9|P123", told)
    assert path.name not in told
    return caught.value.reason


def test_e2e_gives_every_volume_with_its_side_and_patient(save: Callable, stored: np.ndarray) -> None:
    chunks = [(9, (1, -1 & 0xFFFFFFFF, -1 & 0xFFFFFFFF), -1, e2e_patient("Doe", "ID-9"), 0)]
    chunks += e2e_volume(stored, RIGHT, b"R") + e2e_volume(stored[:, ::-1], LEFT, b"L")
    path = save("scan.e2e", e2e_file(chunks))
    found = read_e2e(path, STRICT)
    assert sorted(str(scan.volume.laterality) for scan in found) == ["L", "R"]
    assert {scan.patient for scan in found} == {"ID-9"}
    for volume, _ in found:
        assert (volume.voxels.shape, volume.voxels.dtype) == ((5, 12, 16), np.uint8)
        assert volume.spacing_mm == (None, pytest.approx(0.0039), None)
        assert volume.volumetric is True
        assert not re.search("Doe|John|ID-9", repr(volume))


def test_e2e_pixels_and_facts_are_those_of_oct_converter(save: Callable, stored: np.ndarray) -> None:
    readers = pytest.importorskip("oct_converter.readers")
    chunks = [(9, RIGHT, -1, e2e_patient("Doe", "ID-9"), 0), *e2e_volume(stored, RIGHT, b"R")]
    path = save("scan.e2e", e2e_file(chunks))
    [theirs] = readers.E2E(path).read_oct_volume()
    [(ours, patient)] = read_e2e(path, STRICT)
    grey = np.rint(np.stack(theirs.volume) * 255)
    assert not ours.voxels[0, :, 0].any()  # no signal: theirs is white, eyepy's and ours black
    assert (grey[0, :, 0] == 255).all()
    grey[0, :, 0] = 0
    assert np.abs(grey - ours.voxels).max() <= 1  # their arithmetic is float64
    assert len(np.unique(grey)) > 50
    assert (theirs.laterality, theirs.patient_id.strip("\0 ")) == (ours.laterality, patient)
    assert theirs.pixel_spacing[1] == pytest.approx(ours.spacing_mm[1])


@pytest.mark.parametrize("pattern", [2, 5])
def test_e2e_circles_do_not_cost_the_volume_beside_them(save: Callable, stored: np.ndarray, pattern: int) -> None:
    both = e2e_volume(stored, RIGHT, b"R") + e2e_volume(stored, LEFT, b"L", pattern)
    assert [scan.volume.laterality for scan in read_e2e(save("a.e2e", e2e_file(both)), STRICT)] == ["R"]
    assert len(read_e2e(save("a.e2e", e2e_file(both)), ANY)) == 2
    alone = save("b.e2e", e2e_file(e2e_volume(stored, LEFT, b"L", pattern)))
    assert refused(read_e2e, alone, STRICT) is Reason.NOT_VOLUMETRIC


def test_e2e_sides_that_disagree_are_unknown(save: Callable, stored: np.ndarray) -> None:
    chunks = e2e_volume(stored, RIGHT, b"R")
    kind, key, number, body, ind = chunks[0]
    chunks[0] = kind, key, number, body.replace(b"R", b"L"), ind
    assert read_e2e(save("a.e2e", e2e_file(chunks)), STRICT)[0].volume.laterality is None


def test_e2e_joined_files_start_64_bytes_later(save: Callable, stored: np.ndarray) -> None:
    data = e2e_file(e2e_volume(stored, RIGHT, b"R"))
    [(plain, _)] = read_e2e(save("a.e2e", data), STRICT)
    [(joined, _)] = read_e2e(save("b.e2e", b"E2EMultipleVolumeFile".ljust(64, b"\0") + data), STRICT)
    np.testing.assert_array_equal(plain.voxels, joined.voxels)


def test_e2e_missing_and_unequal_bscans_are_told(save: Callable, stored: np.ndarray) -> None:
    chunks = e2e_volume(stored, RIGHT, b"R")
    gap = [chunk for chunk in chunks if chunk[2] != 4]
    assert refused(read_e2e, save("a.e2e", e2e_file(gap))) is Reason.FRAME_COUNT_MISMATCH
    other = [*chunks[:-2], *e2e_volume(np.concatenate([stored, stored], axis=1), RIGHT, b"R")[-2:]]
    assert refused(read_e2e, save("a.e2e", e2e_file(other))) is Reason.SHAPE_MISMATCH
    none = [chunk for chunk in chunks if chunk[0] != 1073741824]
    assert refused(read_e2e, save("a.e2e", e2e_file(none))) is Reason.NO_PIXEL_DATA
    assert refused(read_e2e, save("a.e2e", e2e_file(chunks)), ReadOptions(max_bytes=900)) is Reason.TOO_LARGE


def test_e2e_no_cut_file_is_accepted(save: Callable, stored: np.ndarray) -> None:
    data = e2e_file(e2e_volume(stored, RIGHT, b"R"))
    reasons = {refused(read_e2e, save("a.e2e", data[:cut])) for cut in range(1, len(data), 97)}
    assert reasons <= {Reason.INVALID_HEADER, Reason.HEADER_TRUNCATED, Reason.PIXEL_DATA_TRUNCATED}
    assert Reason.PIXEL_DATA_TRUNCATED in reasons


def test_e2e_chunks_that_share_their_pixels_are_no_memory_bomb(save: Callable, stored: np.ndarray) -> None:
    large = np.tile(stored, (1, 8, 8))[:1]
    data = bytearray(e2e_file(e2e_volume(large, RIGHT, b"R") + e2e_volume(stored, LEFT, b"L")))
    small, size = struct.pack("<2I", 12, 16), struct.pack("<2I", *large.shape[1:])
    assert len(read_e2e(save("a.e2e", bytes(data)), ANY)) == 2
    assert refused(read_e2e, save("a.e2e", bytes(data.replace(small, size)))) is Reason.PIXEL_DATA_TRUNCATED


def test_e2e_ring_of_directories_and_false_counts_end_at_once(save: Callable, stored: np.ndarray) -> None:
    data = bytearray(e2e_file(e2e_volume(stored, RIGHT, b"R")))
    first = 36 + 52
    (last,) = struct.unpack_from("<I", data, 36 + 40)
    struct.pack_into("<I", data, first + 44, last)  # previous of the first is the last
    started = time.monotonic()
    assert len(read_e2e(save("ring.e2e", bytes(data)), STRICT)) == 1
    struct.pack_into("<I", data, first + 36, 0xFFFFFFFF)
    assert refused(read_e2e, save("many.e2e", bytes(data))) is Reason.PIXEL_DATA_TRUNCATED
    assert refused(read_e2e, save("magic.e2e", b"CMDb")) is Reason.HEADER_TRUNCATED
    assert refused(read_e2e, save("zeros.e2e", b"CMDb" + bytes(5000))) is Reason.INVALID_HEADER
    assert refused(read_e2e, save("text.e2e", b"hello")) is Reason.INVALID_HEADER
    assert time.monotonic() - started < 2


def test_topcon_jpegs_are_read_without_loss(save: Callable, bscans: np.ndarray) -> None:
    [(volume, patient)] = read_topcon(save("a.fda", topcon_file([topcon_jpegs(bscans), *topcon_facts()])), STRICT)
    np.testing.assert_array_equal(volume.voxels, bscans)
    assert volume.spacing_mm == (pytest.approx(5 / 10), pytest.approx(0.0026), pytest.approx(6 / 50))
    assert (volume.laterality, volume.vendor, volume.model) == ("L", "Topcon", "3DOCT-2000")
    assert (volume.bits_stored, volume.volumetric, patient) == (8, True, "P-7")
    assert not re.search("Doe|John|P-7", repr(volume))


@pytest.mark.parametrize("name", [b"@IMG_SCAN_03", b"@IMG_MOT_COMP_03"])
def test_topcon_raw_pixels_keep_their_values_and_bits(save: Callable, bscans: np.ndarray, name: bytes) -> None:
    deep = bscans.astype(np.uint16) * 16 + 15
    [(volume, _)] = read_topcon(save("a.fds", topcon_file([topcon_raw(deep, name)], b"FOCTFDS")), STRICT)
    np.testing.assert_array_equal(volume.voxels, deep)
    assert (volume.voxels.dtype, volume.bits_stored) == (np.uint16, 12)
    assert (volume.spacing_mm, volume.laterality) == ((None, None, None), None)


@pytest.mark.parametrize("kind", ["FDA jpeg", "FDA raw", "FDS"])
def test_topcon_facts_are_those_of_oct_converter(
    save: Callable, bscans: np.ndarray, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = pytest.importorskip("oct_converter.readers")
    monkeypatch.setattr(np, "fromstring", np.frombuffer)  # what OCT-Converter 0.7.0 lacks under numpy >= 2.3
    deep = bscans.astype(np.uint16) * 257
    pixels = {
        "FDA jpeg": topcon_jpegs(bscans),
        "FDA raw": topcon_raw(deep, b"@IMG_MOT_COMP_03"),
        "FDS": topcon_raw(deep, b"@IMG_SCAN_03"),
    }[kind]
    path = save("a.bin", topcon_file([pixels, *topcon_facts()[:3]]))
    reader = readers.FDS(path) if kind == "FDS" else readers.FDA(path)
    theirs = reader.read_oct_volume()
    [(ours, patient)] = read_topcon(path, STRICT)
    np.testing.assert_array_equal(np.stack(theirs.volume), ours.voxels)
    along, across, rows = theirs.pixel_spacing
    assert ours.spacing_mm == pytest.approx((across, rows, along))
    assert (theirs.laterality, theirs.patient_id) == (ours.laterality, patient)


def test_topcon_radial_scans_are_refused(save: Callable, bscans: np.ndarray) -> None:
    path = save("a.fda", topcon_file([topcon_jpegs(bscans, mode=3), *topcon_facts()]))
    assert refused(read_topcon, path, STRICT) is Reason.NOT_VOLUMETRIC
    assert read_topcon(path, ANY)[0].volume.spacing_mm[0] is None


def test_topcon_damage(save: Callable, bscans: np.ndarray) -> None:
    name, body = topcon_jpegs(bscans)
    whole = topcon_file([*topcon_facts(), (name, body)])

    def damaged(position: int, number: int) -> Path:
        changed = bytearray(body)
        struct.pack_into("<I", changed, position, number)
        return save("a.fda", topcon_file([(name, bytes(changed))]))

    assert refused(read_topcon, damaged(17, 11)) is Reason.PIXEL_DATA_TRUNCATED  # frames
    assert refused(read_topcon, damaged(17, 0)) is Reason.INVALID_HEADER
    assert refused(read_topcon, damaged(17, 0xFFFFFFFF)) is Reason.TOO_LARGE
    assert refused(read_topcon, damaged(9, 51)) is Reason.SHAPE_MISMATCH  # width
    assert refused(read_topcon, damaged(25, 0x7FFFFFFF)) is Reason.PIXEL_DATA_TRUNCATED  # first stream
    assert refused(read_topcon, damaged(29, 0)) is Reason.DECODE_FAILED  # its signature
    assert refused(read_topcon, save("a.fda", topcon_file(topcon_facts()))) is Reason.NO_PIXEL_DATA
    cuts = {refused(read_topcon, save("a.fda", whole[:cut])) for cut in range(1, len(whole), 301)}
    assert cuts <= {Reason.INVALID_HEADER, Reason.HEADER_TRUNCATED, Reason.PIXEL_DATA_TRUNCATED}
    assert refused(read_topcon, save("a.fda", whole[:-1])) is Reason.HEADER_TRUNCATED
    assert refused(read_topcon, save("a.fda", b"FOCT")) is Reason.HEADER_TRUNCATED
    assert (
        refused(read_topcon, save("a.fda", b"FOCT".ljust(15, b"\0") + b"\1a\0\0\0\0" * 9999)) is Reason.INVALID_HEADER
    )


@pytest.fixture(scope="module")
def cube() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (128, 1024, 512), dtype=np.uint8)


def test_cirrus_cube_is_turned_upright(cube: np.ndarray, save: Callable) -> None:
    path = save("P123_Macular Cube 512x128_1-31-2000_9-30-15_OS_sn12_cube_z.img", cube.tobytes())
    [(volume, patient)] = read_zeiss_img(path, STRICT)
    assert (volume.voxels.shape, volume.voxels.dtype) == ((128, 1024, 512), np.uint8)
    for frame, row, column in ((0, 0, 0), (7, 3, 500), (127, 1023, 511)):
        assert volume.voxels[frame, row, column] == cube[frame, 1023 - row, 511 - column]
    assert (volume.laterality, volume.vendor, patient) == ("L", "Carl Zeiss Meditec", "P123")
    assert (volume.spacing_mm, volume.volumetric) == ((None, None, None), None)
    assert refused(read_zeiss_img, path, ReadOptions(max_bytes=1 << 20)) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("name", "side", "patient"),
    [
        ("x_OD.img", "R", None),
        ("MODEL.img", None, None),
        ("a_OD_OS.img", None, None),
        ("scan.img", None, None),
        ("77_Optic Disc Cube 200x200_1-1-2000_1-1-1_OD_sn9_cube_raw.img", "R", "77"),
    ],
)
def test_cirrus_names(save: Callable, name: str, side: str | None, patient: str | None) -> None:
    noise = np.random.default_rng(2).integers(0, 256, 200 * 1024 * 200, dtype=np.uint8)
    [(volume, found)] = read_zeiss_img(save(name, noise.tobytes()), STRICT)
    assert (volume.voxels.shape, volume.laterality, found) == ((200, 1024, 200), side, patient)


def test_cirrus_other_sizes_are_refused(save: Callable) -> None:
    assert refused(read_zeiss_img, save("a.img", b"x" * 1000)) is Reason.SHAPE_MISMATCH
    assert refused(read_zeiss_img, save("a.img", b"")) is Reason.EMPTY_FILE
    assert refused(read_zeiss_img, save("a.img", bytes(200 * 1024 * 200))) is Reason.CONSTANT_IMAGE
