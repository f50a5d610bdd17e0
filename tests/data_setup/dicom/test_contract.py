"""The 41 judged files: each must end as expected.json says, in both modes, down to the checksum of the array."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_setup.dicom import BadFile, Volume, read_volume


def facts(volume: Volume) -> dict:
    """What expected.json states of an accepted volume."""
    voxels = volume.voxels
    assert voxels.flags.c_contiguous
    assert voxels.dtype.isnative
    return {
        "shape": list(voxels.shape),
        "dtype": voxels.dtype.name,
        "bits_stored": volume.bits_stored,
        "spacing_mm": None if volume.spacing_mm == (None, None, None) else list(volume.spacing_mm),
        "laterality": volume.laterality,
        "volumetric": volume.volumetric,
        "sha256": hashlib.sha256(voxels.astype(voxels.dtype.newbyteorder("<")).tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("any_sop_class", [False, True])
def test_every_judged_file_ends_as_expected(test_data: Path, any_sop_class: bool) -> None:
    mode = "_any_sop" if any_sop_class else ""
    expected = json.loads((test_data / "edge" / "expected.json").read_text())
    wrong = []
    for name, wanted in expected.items():
        try:
            volume = read_volume(test_data / "edge" / name, any_sop_class=any_sop_class)
        except BadFile as bad:
            allowed = {wanted["reason" + mode], *wanted.get("also_allowed" + mode, [])}
            if bad.reason not in allowed:
                wrong.append((name, str(bad.reason), allowed))
        else:
            if wanted["outcome" + mode] != "accept" or facts(volume) != wanted["volume"]:
                wrong.append((name, facts(volume), wanted))
    assert len(expected) == 41
    assert wrong == []


def test_four_transfer_syntaxes_decode_bit_for_bit_alike(test_data: Path) -> None:
    oct_folder = test_data / "oct"
    native = read_volume(oct_folder / "spectralis_onh_rc_27x496x768_explicitLE.dcm", include_nonvolumetric=True)
    for syntax in ("jpegls", "jpeglossless_sv1", "j2k_lossless", "rle"):
        volume = read_volume(oct_folder / f"spectralis_onh_5x496x768_{syntax}.dcm", include_nonvolumetric=True)
        np.testing.assert_array_equal(volume.voxels, native.voxels[[0, 6, 12, 18, 24]], err_msg=syntax)
        assert volume.laterality == "L"


def test_raster_volume_has_the_spacing_of_its_provenance(test_data: Path) -> None:
    volume = read_volume(test_data / "oct" / "spectralis_macula_drusen_97x496x512_jpegls.dcm")
    assert volume.voxels.shape == (97, 496, 512)
    assert volume.spacing_mm == pytest.approx((0.0305, 0.003872, 0.011182))
    assert (volume.laterality, volume.volumetric) == ("R", True)
    assert (volume.vendor, volume.model) == ("Heidelberg Engineering", "Spectralis")


def test_radial_scan_is_refused_and_has_no_spacing_between_its_frames(test_data: Path) -> None:
    path = test_data / "oct" / "spectralis_onh_rc_27x496x768_explicitLE.dcm"
    with pytest.raises(BadFile, match="not_volumetric"):
        read_volume(path)
    volume = read_volume(path, include_nonvolumetric=True)
    across, down, along = volume.spacing_mm
    assert across is None
    assert down == pytest.approx(0.003872)
    assert along is not None
    assert 0.0057 <= along <= 0.0058


def test_twelve_bits_arrive_as_stored(test_data: Path) -> None:
    volume = read_volume(test_data / "oct" / "onh_3x496x768_uint16_12bit_j2k.dcm")
    assert volume.voxels.dtype == np.uint16
    assert volume.bits_stored == 12
    assert 255 < volume.voxels.max() < 4096
    assert volume.spacing_mm == pytest.approx((0.03, 0.003872, 0.0057))
