"""Topcon .fda and .fds, written by the test from their documented layouts: what was written comes back."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.errors import BadFile, Reason
from data_setup.volume import ReadOptions
from tests.data_setup.formats.conftest import topcon_facts, topcon_file, topcon_jpegs, topcon_raw

pytest.importorskip(
    "oct_converter", reason="OCT_CONVERTER ABSENT (pip install 'octfm[formats]'): its formats were NOT tested"
)
from data_setup.formats.topcon import read_topcon

FROMSTRING = np.fromstring
STRICT, ANY = ReadOptions(), ReadOptions(include_nonvolumetric=True)


def refused(path: Path, options: ReadOptions = ANY) -> Reason:
    with pytest.raises(BadFile) as caught:
        read_topcon(path, options)
    told = f"{caught.value} {caught.value.detail}"
    assert not re.search("D.e|John|P-7", told)
    assert path.name not in told
    return caught.value.reason


def test_jpegs_are_read_without_loss_in_spite_of_blank_dates_and_umlauts(save: Callable, bscans: np.ndarray) -> None:
    [(volume, patient)] = read_topcon(save("a.fda", topcon_file([topcon_jpegs(bscans), *topcon_facts()])), STRICT)
    np.testing.assert_array_equal(volume.voxels, bscans)
    assert volume.spacing_mm == (pytest.approx(5 / 10), pytest.approx(0.0026), pytest.approx(6 / 50))
    assert (volume.laterality, volume.vendor, volume.model) == ("L", "Topcon", "3DOCT-2000")
    assert (volume.bits_stored, volume.volumetric, patient) == (8, True, "P-7")
    assert not re.search("D.e|John|P-7", repr(volume))


@pytest.mark.parametrize("name", [b"@IMG_SCAN_03", b"@IMG_MOT_COMP_03"])
def test_raw_pixels_keep_their_values_and_bits(save: Callable, bscans: np.ndarray, name: bytes) -> None:
    deep = bscans.astype(np.uint16) * 16 + 15
    [(volume, _)] = read_topcon(save("a.fds", topcon_file([topcon_raw(deep, name)], b"FOCTFDS")), STRICT)
    np.testing.assert_array_equal(volume.voxels, deep)
    assert (volume.voxels.dtype, volume.bits_stored) == (np.uint16, 12)
    assert (volume.spacing_mm, volume.laterality) == ((None, None, None), None)


def test_an_id_survives_an_umlaut(save: Callable, bscans: np.ndarray) -> None:
    data = topcon_file([topcon_jpegs(bscans), *topcon_facts()]).replace(b"P-7", b"\xd67\0")
    assert read_topcon(save("a.fda", data), STRICT)[0].patient == "\xd67"


def test_numpy_is_left_as_it_was(save: Callable, bscans: np.ndarray) -> None:
    assert read_topcon(save("a.fda", topcon_file([topcon_jpegs(bscans)])), STRICT)
    refused(save("a.fda", topcon_file([])))
    assert np.fromstring is FROMSTRING


def test_radial_scans_are_refused(save: Callable, bscans: np.ndarray) -> None:
    path = save("a.fda", topcon_file([topcon_jpegs(bscans, mode=3), *topcon_facts()]))
    assert refused(path, STRICT) is Reason.NOT_VOLUMETRIC
    assert read_topcon(path, ANY)[0].volume.spacing_mm[0] is None


def test_damage(save: Callable, bscans: np.ndarray) -> None:
    name, body = topcon_jpegs(bscans)

    def damaged(position: int, number: int) -> Path:
        changed = bytearray(body)
        struct.pack_into("<I", changed, position, number)
        return save("a.fda", topcon_file([(name, bytes(changed))]))

    assert refused(damaged(17, 11)) is Reason.DECODE_FAILED  # frames
    assert refused(damaged(17, 0)) is Reason.INVALID_HEADER
    assert refused(damaged(17, 0xFFFFFFFF)) is Reason.TOO_LARGE
    assert refused(damaged(9, 51)) is Reason.SHAPE_MISMATCH  # width
    assert refused(damaged(25, 0x7FFFFFFF)) is Reason.DECODE_FAILED  # first stream
    assert refused(damaged(29, 0)) is Reason.DECODE_FAILED  # its signature
    raw_name, raw = topcon_raw(bscans, b"@IMG_SCAN_03")
    eight_bits, short = bytearray(raw), bytearray(raw)
    struct.pack_into("<I", eight_bits, 9, 8)
    struct.pack_into("<I", short, 13, 11)  # frames; more bytes follow in the file, of another chunk
    tail = (b"@THUMBNAIL", bytes(9999))
    assert refused(save("a.fds", topcon_file([(raw_name, bytes(eight_bits))]))) is Reason.UNSUPPORTED_PIXEL_FORMAT
    assert refused(save("a.fds", topcon_file([(raw_name, bytes(short)), tail]))) is Reason.PIXEL_DATA_TRUNCATED
    assert refused(save("a.fda", topcon_file(topcon_facts()))) is Reason.NO_PIXEL_DATA


def test_no_cut_file_is_accepted(save: Callable, bscans: np.ndarray) -> None:
    whole = topcon_file([*topcon_facts(), topcon_jpegs(bscans)])
    cuts = {refused(save("a.fda", whole[:cut])) for cut in [*range(1, len(whole), 301), len(whole) - 1]}
    assert cuts == {Reason.INVALID_HEADER, Reason.HEADER_TRUNCATED}
    assert refused(save("a.fda", b"FOCT")) is Reason.HEADER_TRUNCATED
