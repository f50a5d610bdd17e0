"""HEYEX .vol and .xml: pixels and geometry against the files' own numbers; what is refused, and why."""

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_setup.errors import BadFile, Reason
from data_setup.formats.heyex import planes, read_heyex_vol, read_heyex_xml
from data_setup.volume import ReadOptions

eyepy = pytest.importorskip("eyepy", reason="EYEPY ABSENT (pip install 'octfm[formats]'): its formats were NOT tested")
ANY = ReadOptions(include_nonvolumetric=True)
TINY_SPACING = (0.0314, 0.003872, 0.011819)


@pytest.fixture
def export(test_data: Path, tmp_path: Path) -> Path:
    """A writable copy of the XML export; the path of its XML."""
    for path in (test_data / "oct" / "eyepy_heyex_xml_tiny" / "test_volume").iterdir():
        shutil.copyfile(path, tmp_path / path.name)  # not its read-only mode
    return tmp_path / "test_dummy.xml"


def refused(read: Callable, path: Path, options: ReadOptions = ANY) -> BadFile:
    with pytest.raises(BadFile) as caught:
        read(path, options)
    assert not re.search("Doe|John|Study-01|test_dummy|/tmp|domain", str(caught.value) + caught.value.detail)
    return caught.value


def test_tiny_vol_is_the_volume_that_eyepy_reads(test_data: Path) -> None:
    path = test_data / "oct" / "eyepy_tiny_10x40x50.vol"
    [(volume, patient)] = read_heyex_vol(path, ReadOptions())
    assert (volume.voxels.shape, volume.voxels.dtype, volume.bits_stored) == ((10, 40, 50), np.uint8, 8)
    assert volume.spacing_mm == pytest.approx(TINY_SPACING, abs=5e-5)
    assert (volume.laterality, volume.volumetric, volume.vendor) == ("R", True, "Heidelberg Engineering")
    assert patient == "Study-01"
    assert "Study-01" not in repr(volume)
    np.testing.assert_array_equal(volume.voxels, eyepy.import_heyex_vol(path).data)


def test_real_line_scan_is_refused_and_read_like_eyepy_on_request(test_data: Path) -> None:
    path = test_data / "oct" / "spectralis_linescan_1x496x768.vol"
    assert refused(read_heyex_vol, path, ReadOptions()).reason is Reason.NOT_VOLUMETRIC
    [(volume, patient)] = read_heyex_vol(path, ANY)
    assert (volume.voxels.shape, volume.volumetric, patient) == ((1, 496, 768), False, None)
    assert volume.spacing_mm == (None, pytest.approx(0.003872, abs=1e-6), pytest.approx(0.011821, abs=1e-6))
    np.testing.assert_array_equal(volume.voxels, eyepy.import_heyex_vol(path).data)


def heyex_grey(raw: np.ndarray) -> np.ndarray:
    """Reflectivity 0..1 -> the grey that HEYEX shows, by eyepy's fit; black where there is no signal."""
    signal = raw < 3e38
    return np.rint(np.clip((np.log(np.where(signal, raw, 0.0) + 2.44e-4) + 8.3) / 8.285, 0, 1) * 255) * signal


def test_circle_is_refused_and_read_on_request_where_an_eyevolume_cannot_be(test_data: Path) -> None:
    path = test_data / "oct" / "spectralis_circle_1x496x768.vol"
    assert refused(read_heyex_vol, path, ReadOptions()).reason is Reason.NOT_VOLUMETRIC
    [(volume, _)] = read_heyex_vol(path, ANY)
    assert (volume.voxels.shape, volume.volumetric) == ((1, 496, 768), False)
    raw = np.fromfile(path, "<f4", 496 * 768, offset=2048 + 768 * 768 + 46080).reshape(496, 768)
    assert np.abs(volume.voxels[0] - heyex_grey(raw)).max() <= 1


@pytest.mark.parametrize("pattern", [2, 5])
def test_circles_and_stars_are_no_volume_whatever_their_lines_say(
    test_data: Path, save: Callable, pattern: int
) -> None:
    data = bytearray((test_data / "oct" / "eyepy_tiny_10x40x50.vol").read_bytes())
    struct.pack_into("<i", data, 96, pattern)
    path = save("scan.vol", bytes(data))
    assert refused(read_heyex_vol, path, ReadOptions()).reason is Reason.NOT_VOLUMETRIC
    assert read_heyex_vol(path, ANY)[0].volume.spacing_mm[0] is None  # the frame axis is no direction in space


@pytest.mark.parametrize(("pattern", "verdict"), [(0, None), (3, True), (4, True)])
def test_the_pattern_speaks_where_positions_are_scrubbed(
    test_data: Path, save: Callable, pattern: int, verdict: bool | None
) -> None:
    data = bytearray((test_data / "oct" / "eyepy_tiny_10x40x50.vol").read_bytes())
    struct.pack_into("<i", data, 96, pattern)
    start = 2048 + 2500
    for _ in range(10):
        data[start + 16 : start + 48] = bytes(32)
        start += struct.unpack_from("<I", data, start + 12)[0] + 4 * 40 * 50
    assert start == len(data)
    assert read_heyex_vol(save("scan.vol", bytes(data)), ANY)[0].volume.volumetric is verdict


@pytest.mark.parametrize(
    ("where", "number", "reason"),
    [
        (16, 0, Reason.INVALID_HEADER),  # frames
        (16, 0xFFFFFFFF, Reason.TOO_LARGE),
        (12, 5000, Reason.PIXEL_DATA_TRUNCATED),  # width
        (48, 100_000, Reason.PIXEL_DATA_TRUNCATED),  # width of the fundus image
        (2048 + 2500 + 12, 8, Reason.DECODE_FAILED),  # header of the first B-scan
        (0, 0, Reason.INVALID_HEADER),  # magic
    ],
)
def test_damaged_vol_headers_are_judged_before_pixels(
    test_data: Path, save: Callable, where: int, number: int, reason: Reason
) -> None:
    data = bytearray((test_data / "oct" / "eyepy_tiny_10x40x50.vol").read_bytes())
    struct.pack_into("<I", data, where, number)
    assert refused(read_heyex_vol, save("scan.vol", bytes(data))).reason is reason


def test_vol_budget_and_absence(test_data: Path, tmp_path: Path, save: Callable) -> None:
    path = test_data / "oct" / "eyepy_tiny_10x40x50.vol"
    assert refused(read_heyex_vol, path, ReadOptions(max_bytes=19_999)).reason is Reason.TOO_LARGE
    assert read_heyex_vol(path, ReadOptions(max_bytes=20_000))
    assert refused(read_heyex_vol, tmp_path / "absent.vol").reason is Reason.MISSING_FILE
    assert refused(read_heyex_vol, save("empty.vol", b"")).reason is Reason.EMPTY_FILE
    assert refused(read_heyex_vol, save("cut.vol", path.read_bytes()[:2000])).reason is Reason.HEADER_TRUNCATED


def test_xml_is_the_volume_that_eyepy_reads(export: Path) -> None:
    [(volume, patient)] = read_heyex_xml(export, ReadOptions())
    assert (volume.voxels.shape, volume.voxels.dtype) == ((10, 40, 50), np.uint8)
    assert volume.spacing_mm == pytest.approx(TINY_SPACING, abs=5e-5)
    assert (volume.laterality, volume.volumetric, volume.model) == ("R", True, "Spectralis")
    assert patient == "Study-01"
    assert not re.search("Doe|John|Study-01", repr(volume))
    np.testing.assert_array_equal(volume.voxels, eyepy.import_heyex_xml(export).data)


def change(export: Path, old: str, new: str, count: int = -1) -> Path:
    text = export.read_text()
    assert old in text
    export.write_text(text.replace(old, new, count))
    return export


def test_xml_side_is_never_guessed(export: Path) -> None:
    change(export, "<Laterality>R</Laterality>", "<Laterality>L</Laterality>")
    assert read_heyex_xml(export, ANY)[0].volume.laterality == "L"
    change(export, "<Laterality>L</Laterality>", "<Laterality>unknown</Laterality>")
    assert read_heyex_xml(export, ANY)[0].volume.laterality is None


def test_xml_of_turning_lines_is_no_volume(export: Path) -> None:
    change(export, "<Y>6.807</Y>", "<Y>3.1</Y>", 1)  # the first line starts elsewhere
    assert refused(read_heyex_xml, export, ReadOptions()).reason is Reason.NOT_VOLUMETRIC
    assert read_heyex_xml(export, ANY)[0].volume.spacing_mm[0] is None


def test_xml_refusals_by_its_images(export: Path) -> None:
    image = export.parent / "B3.tif"
    pixels = image.read_bytes()
    image.unlink()
    assert refused(read_heyex_xml, export).reason is Reason.MISSING_FILE
    image.write_bytes(pixels[: len(pixels) // 2])
    assert refused(read_heyex_xml, export).reason is Reason.DECODE_FAILED
    Image.new("L", (50, 41)).save(image)
    assert refused(read_heyex_xml, export).reason is Reason.SHAPE_MISMATCH
    Image.new("I;16", (50, 40)).save(image)
    assert refused(read_heyex_xml, export).reason is Reason.UNSUPPORTED_PIXEL_FORMAT
    Image.new("RGB", (50, 40), "red").save(image)
    assert refused(read_heyex_xml, export).reason is Reason.COLOUR_IMAGE
    grey = Image.effect_noise((50, 40), 9)
    grey.convert("RGB").save(image)
    np.testing.assert_array_equal(read_heyex_xml(export, ANY)[0].volume.voxels[2], np.asarray(grey))


def test_xml_refusals_by_its_text(export: Path) -> None:
    whole = export.read_text()
    assert refused(read_heyex_xml, export, ReadOptions(max_bytes=19_999)).reason is Reason.TOO_LARGE
    for text, reason in (
        (whole[: len(whole) // 2], Reason.DECODE_FAILED),
        (whole.replace("<Height>40</Height>", ""), Reason.DECODE_FAILED),
        (whole.replace("<Height>40</Height>", "<Height>0</Height>"), Reason.INVALID_HEADER),
        (whole.replace("<Type>OCT</Type>", "<Type>FA</Type>"), Reason.NO_PIXEL_DATA),
        (whole.replace("\\B4.tif", "\\..\\.."), Reason.MISSING_FILE),
        (whole.replace("\\B4.tif", "\\/etc/passwd"), Reason.MISSING_FILE),
        ("", Reason.EMPTY_FILE),
    ):
        export.write_text(text)
        assert refused(read_heyex_xml, export).reason is reason
    assert (
        refused(read_heyex_xml, export.rename(export.with_suffix(".txt")).with_suffix(".xml")).reason == "missing_file"
    )


def test_xml_with_two_scans_is_refused(export: Path) -> None:
    """eyepy would make one stack of both, whatever their eyes."""
    text = export.read_text()
    start, end = text.index("<Series>"), text.rindex("</Series>") + len("</Series>")
    export.write_text(text[:end] + text[start:end] + text[end:])
    assert refused(read_heyex_xml, export).reason is Reason.INVALID_HEADER


def test_xml_is_forgotten_by_eyepy(export: Path) -> None:
    from eyepy.io.he.xml_reader import get_xml_root

    read_heyex_xml(export, ANY)
    assert get_xml_root.cache_info().currsize == 0
    change(export, "<PatientID>Study-01</PatientID>", "<PatientID>Study-02</PatientID>")
    assert read_heyex_xml(export, ANY)[0].patient == "Study-02"


def star(count: int) -> np.ndarray:
    angles = np.arange(count) * np.pi / count
    ends = 3.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.stack([4.5 - ends, 4.5 + ends], axis=1)


def raster(offsets: list[float], angle: float = 0.0) -> np.ndarray:
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    return np.array([[4 + across * offset, 4 + across * offset + 6 * along] for offset in offsets])


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        (raster([0, 0.1, 0.2, 0.3]), True),
        (raster([0.3, 0.2, 0.1, 0], angle=0.7), True),
        (raster([0, 0.1, 0.2, 0.7]), None),  # parallel, uneven
        (raster([0, 0.1, 0.1, 0.2]), False),  # two in one place
        (star(24), False),
        (star(2), False),
        (raster([0]), False),
        (np.zeros((4, 2, 2)), None),  # scrubbed
        (np.full((4, 2, 2), 3.4e38), None),
    ],
)
def test_planes_tell_rasters_from_stars(lines: np.ndarray, verdict: bool | None) -> None:
    step, found = planes(lines)
    assert found is verdict
    assert step == (pytest.approx(0.1) if verdict else None)
