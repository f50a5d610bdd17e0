"""Files that the collection lacks: parts, colour, blank frames, lying streams, wrong folders."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import JPEGLSLosslessEncoder, RLELosslessEncoder
from pydicom.uid import (
    MPEG4HP41,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from data_setup.dicom import BadFile, Reason, read_volume
from data_setup.errors import REMEDY

Write = Callable[..., Path]


def reason_of(path: Path, **options: object) -> Reason:
    with pytest.raises(BadFile) as caught:
        read_volume(path, **options)  # type: ignore[arg-type]
    return caught.value.reason


def encoded(voxels: np.ndarray, encoder: object) -> list[bytes]:
    """Each B-scan as one stream."""
    rows, columns = voxels.shape[1:]
    form = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": 1,
        "bits_allocated": 8,
        "bits_stored": 8,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": 0,
        "number_of_frames": 1,
    }
    return [encoder.encode(bscan.tobytes(), **form) for bscan in voxels]  # type: ignore[attr-defined]


def test_the_written_file_is_accepted_as_it_was_written(write_opt: Write, voxels: np.ndarray) -> None:
    volume = read_volume(write_opt())
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.spacing_mm == pytest.approx((0.03, 0.004, 0.01))
    assert volume.volumetric is True


def test_missing_file_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="missing_file") as caught:
        read_volume(tmp_path / "surname.dcm")
    assert "surname" not in str(caught.value)
    assert caught.value.detail == "FileNotFoundError"


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    assert reason_of(tmp_path) == Reason.MISSING_FILE


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"HSF-OCT-103", "Heidelberg .vol"),
        (b"<?xml version='1.0'?><HEDX>", "HEYEX XML"),
        (b"<!DOCTYPE html><html>", "error page"),
        (b'{"error": 404}', "JSON"),
        (b"II*\x00", "another OCT format"),
        (b"FOCT", "another OCT format"),
    ],
)
def test_the_message_tells_what_a_foreign_file_is(tmp_path: Path, head: bytes, told: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(head + bytes(200))
    with pytest.raises(BadFile, match="not_dicom") as caught:
        read_volume(path)
    assert told in caught.value.message
    assert "data.formats" in caught.value.message


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"InConcatenationTotalNumber": 2}, Reason.CONCATENATION_PART),
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN_ANNOTATION),
        ({"Rows": 0}, Reason.INVALID_HEADER),
        ({"Columns": None}, Reason.INVALID_HEADER),
        ({"BitsStored": 9}, Reason.INVALID_HEADER),
        ({"NumberOfFrames": 0}, Reason.INVALID_HEADER),
        ({"PhotometricInterpretation": None}, Reason.INVALID_HEADER),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.COLOUR_IMAGE),
        ({"SamplesPerPixel": 4}, Reason.COLOUR_IMAGE),
        ({"BitsAllocated": 32, "BitsStored": 32}, Reason.UNSUPPORTED_PIXEL_FORMAT),
        ({"Rows": 15}, Reason.FRAME_COUNT_MISMATCH),  # a whole frame is left over
        ({"OphthalmicVolumetricPropertiesFlag": "NO"}, Reason.NOT_VOLUMETRIC),
    ],
)
def test_header_values_are_judged_by_the_first_check_that_fails(
    write_opt: Write, elements: dict, reason: Reason
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 16, 24), dtype=np.uint8)
    assert reason_of(write_opt(pixels=pixels, **elements)) == reason


def test_options_admit_what_they_name(write_opt: Write, voxels: np.ndarray) -> None:
    other_class = "1.2.840.10008.5.1.4.1.1.4.1"
    path = write_opt(BurnedInAnnotation="YES", SOPClassUID=other_class, OphthalmicVolumetricPropertiesFlag="NO")
    assert reason_of(path) == Reason.UNSUPPORTED_SOP_CLASS
    assert reason_of(path, any_sop_class=True) == Reason.BURNED_IN_ANNOTATION
    assert reason_of(path, any_sop_class=True, allow_burned_in=True) == Reason.NOT_VOLUMETRIC
    volume = read_volume(path, any_sop_class=True, allow_burned_in=True, include_nonvolumetric=True)
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.volumetric is False


def test_the_budget_is_inclusive(write_opt: Write, voxels: np.ndarray) -> None:
    path = write_opt()
    assert read_volume(path, max_bytes=voxels.nbytes).voxels.nbytes == voxels.nbytes
    assert reason_of(path, max_bytes=voxels.nbytes - 1) == Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", [MPEG4HP41, JPEGExtended12Bit, "1.2.840.10008.1.2.4.94"])
def test_video_and_remote_syntaxes_are_refused_without_decoding(write_opt: Write, syntax: str) -> None:
    assert reason_of(write_opt(fragments=[b"\0\0"], syntax=syntax)) == Reason.UNSUPPORTED_TRANSFER_SYNTAX


def colour(dataset: Dataset, channels: np.ndarray) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = channels.tobytes()


def test_three_equal_channels_are_one_grey_channel(write_opt: Write, voxels: np.ndarray) -> None:
    equal = np.repeat(voxels[..., None], 3, axis=-1)
    volume = read_volume(write_opt(lambda dataset: colour(dataset, equal)))
    np.testing.assert_array_equal(volume.voxels, voxels)
    equal[2, 3, 4, 1] ^= 1
    assert reason_of(write_opt(lambda dataset: colour(dataset, equal))) == Reason.COLOUR_IMAGE


def test_more_than_half_of_the_frames_blank_is_too_many(write_opt: Write, voxels: np.ndarray) -> None:
    voxels[:2] = 7
    assert read_volume(write_opt(pixels=voxels)).voxels.shape == voxels.shape
    voxels[2] = 9
    assert reason_of(write_opt(pixels=voxels)) == Reason.MOSTLY_BLANK


def test_big_endian_and_signed_values_arrive_in_native_order(write_opt: Write) -> None:
    stored = np.random.default_rng(2).integers(-2000, 2000, (3, 8, 10), dtype=np.int16)
    for order, syntax in (("<i2", ExplicitVRLittleEndian), (">i2", ExplicitVRBigEndian)):
        volume = read_volume(write_opt(pixels=stored.astype(order), PixelRepresentation=1, syntax=syntax))
        np.testing.assert_array_equal(volume.voxels, stored)
        assert volume.voxels.dtype == np.dtype("=i2")
    inverted = read_volume(write_opt(pixels=stored, PixelRepresentation=1, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted.voxels, -1 - stored)


def test_frames_may_be_cut_into_several_fragments(write_opt: Write, voxels: np.ndarray) -> None:
    streams = encoded(voxels, JPEGLSLosslessEncoder)

    def two_fragments_per_frame(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate(streams, fragments_per_frame=2, has_bot=True)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    volume = read_volume(write_opt(two_fragments_per_frame, syntax=JPEGLSLossless))
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_fewer_compressed_frames_than_stated_is_a_mismatch_not_a_silent_end(
    write_opt: Write, voxels: np.ndarray
) -> None:
    path = write_opt(fragments=encoded(voxels, JPEGLSLosslessEncoder)[:3], syntax=JPEGLSLossless)
    assert reason_of(path) == Reason.FRAME_COUNT_MISMATCH


def test_a_codestream_that_claims_gigapixels_is_refused_before_decoding(write_opt: Write, voxels: np.ndarray) -> None:
    claim = struct.pack(">4s2sH4L", b"\xff\x4f\xff\x51", b"\0\x29", 0, 65535, 65535, 0, 0) + bytes(16) + b"\0\1"
    path = write_opt(fragments=[claim.ljust(64, b"\0")] * len(voxels), syntax=JPEG2000Lossless)
    with pytest.raises(BadFile, match="shape_mismatch") as caught:
        read_volume(path)
    assert "65535" in caught.value.message


def test_scrambled_zeiss_frames_are_told_as_such(write_opt: Write, voxels: np.ndarray) -> None:
    path = write_opt(fragments=[b"scrambled bits"] * len(voxels), syntax=JPEG2000Lossless, Manufacturer="Carl Zeiss")
    with pytest.raises(BadFile, match="decode_failed") as caught:
        read_volume(path)
    assert "Zeiss scrambles" in caught.value.message


def test_damaged_rle_ends_as_decode_failed(write_opt: Write, voxels: np.ndarray) -> None:
    streams = [stream[:70] for stream in encoded(voxels, RLELosslessEncoder)]
    assert reason_of(write_opt(fragments=streams, syntax=RLELossless)) == Reason.DECODE_FAILED


def test_every_reason_says_how_to_mend_and_survives_pickling() -> None:
    assert set(REMEDY) == set(Reason)
    for reason in Reason:
        bad = pickle.loads(pickle.dumps(BadFile(reason, "found", "detail")))
        assert (bad.reason, bad.found, bad.detail) == (reason, "found", "detail")
        assert REMEDY[reason] in str(bad)


def test_a_class_of_two_parts_is_no_class_of_ours(write_opt: Write) -> None:
    def two_classes(dataset: Dataset) -> None:
        dataset.SOPClassUID = ["1.2.840.10008.5.1.4.1.1.77.1.5.4", "1.2.3"]

    assert reason_of(write_opt(two_classes)) == Reason.UNSUPPORTED_SOP_CLASS


def test_a_panic_of_a_decoder_is_a_decode_failure(write_opt: Write, voxels: np.ndarray) -> None:
    """pylibjpeg-rle 2.2.0 panics in Rust, which Python sees as a BaseException, over segments that lie."""
    frames = encoded(voxels, RLELosslessEncoder)
    lying = [frame[:4] + struct.pack("<L", 0) + frame[8:] for frame in frames]
    assert reason_of(write_opt(fragments=lying, syntax=RLELossless)) == Reason.DECODE_FAILED
