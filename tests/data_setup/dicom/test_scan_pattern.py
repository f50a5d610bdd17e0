"""Spacing, side and volumetric flag against hand-made headers with one property each."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, Sequence

from data_setup.dicom import Volume, read_volume

Write = Callable[..., Path]


def read(path: Path) -> Volume:
    return read_volume(path, include_nonvolumetric=True)


def without_positions(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


def with_positions(positions: Iterable[tuple[float, float, float]]) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for group, position in zip(dataset.PerFrameFunctionalGroupsSequence, positions, strict=True):
            group.PlanePositionSequence[0].ImagePositionPatient = list(position)

    return change


def with_lines(lines: Iterable[list[float]]) -> Callable[[Dataset], None]:
    """Scan lines on the fundus image (row, column, row, column, ...) and no positions in space."""

    def change(dataset: Dataset) -> None:
        for group, line in zip(dataset.PerFrameFunctionalGroupsSequence, lines, strict=True):
            del group.PlanePositionSequence
            location = Dataset()
            location.ReferenceCoordinates = line
            group.OphthalmicFrameLocationSequence = Sequence([location])

    return change


def test_steps_between_planes_outrank_slice_thickness(write_opt: Write) -> None:
    volume = read(write_opt(with_positions((0, 0, 0.05 * frame) for frame in range(4))))
    assert volume.spacing_mm == pytest.approx((0.05, 0.004, 0.01))
    assert volume.volumetric is True


def test_spacing_between_slices_outranks_thickness_where_positions_are_absent(write_opt: Write) -> None:
    def change(dataset: Dataset) -> None:
        without_positions(dataset)
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 0.06

    volume = read(write_opt(change))
    assert volume.spacing_mm == pytest.approx((0.06, 0.004, 0.01))
    assert volume.volumetric is None


def test_micrometres_fill_the_axes_that_the_groups_leave_open(write_opt: Write) -> None:
    def change(dataset: Dataset) -> None:
        without_positions(dataset)
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing, measures.SliceThickness = [0, 0.02], 0
        dataset.DepthSpatialResolution, dataset.AlongScanSpatialResolution = 3.5, 99.0
        dataset.AcrossScanSpatialResolution = 0.0

    assert read(write_opt(change)).spacing_mm == (None, pytest.approx(0.0035), pytest.approx(0.02))


def test_nothing_known_stays_unknown(write_opt: Write) -> None:
    def change(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence
        without_positions(dataset)

    volume = read(write_opt(change))
    assert volume.spacing_mm == (None, None, None)
    assert volume.volumetric is None


@pytest.mark.parametrize(("apart", "known"), [(1.04, True), (1.06, False)])
def test_spacings_per_frame_count_as_one_within_five_percent(write_opt: Write, apart: float, known: bool) -> None:
    def change(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            measures = Dataset()
            measures.PixelSpacing = [0.004, round(0.01 * (apart if frame == 3 else 1), 6)]
            group.PixelMeasuresSequence = Sequence([measures])

    across, down, along = read(write_opt(change)).spacing_mm
    assert (across, down) == (pytest.approx(0.03), pytest.approx(0.004))
    assert along == (pytest.approx(0.01) if known else None)


@pytest.mark.parametrize(
    ("positions", "volumetric"),
    [
        ([0, 0.03, 0.06, 0.09], True),
        ([0.09, 0.06, 0.03, 0], True),  # backwards is a volume too; nobody flips it
        ([0, 0.03, 0.061, 0.09], True),
        ([0, 0.03, 0.08, 0.09], None),
        ([0, 0.03, 0.03, 0.06], False),
        ([0, 0, 0, 0], False),
    ],
)
def test_evenness_of_the_planes_decides(write_opt: Write, positions: list[float], volumetric: bool | None) -> None:
    volume = read(write_opt(with_positions((0, 0, offset) for offset in positions)))
    assert volume.volumetric is volumetric


def test_planes_moved_within_themselves_are_no_stack(write_opt: Write) -> None:
    volume = read(write_opt(with_positions((0.03 * frame, 0, 0) for frame in range(4))))
    assert volume.volumetric is False


def test_tilted_planes_are_measured_along_their_normal(write_opt: Write) -> None:
    def change(dataset: Dataset) -> None:
        orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        orientation.ImageOrientationPatient = [0.8, 0, 0.6, 0, 1, 0]  # normal (-0.6, 0, 0.8)
        with_positions((0, 0, 0.1 * frame) for frame in range(4))(dataset)

    assert read(write_opt(change)).spacing_mm[0] == pytest.approx(0.08)


def test_differing_orientations_are_no_volume(write_opt: Write) -> None:
    def change(dataset: Dataset) -> None:
        for angle, group in zip(np.linspace(0, 1, 4), dataset.PerFrameFunctionalGroupsSequence, strict=True):
            orientation = Dataset()
            orientation.ImageOrientationPatient = [round(np.cos(angle), 6), 0, round(np.sin(angle), 6), 0, 1, 0]
            group.PlaneOrientationSequence = Sequence([orientation])

    assert read(write_opt(change)).volumetric is False


@pytest.mark.parametrize(
    ("protocol", "volumetric"),
    [
        ("spectralis_onh_rc_hr_oct", False),
        ("Spectralis ONH RC", False),
        ("peripapillary Circle", False),
        ("radial 12", False),
        ("triton_3d_radial", None),
        ("3D(H)+Radial 12x9", None),
        ("macula cube", None),
    ],
)
def test_the_protocol_counts_where_positions_are_silent(write_opt: Write, protocol: str, volumetric: object) -> None:
    assert read(write_opt(without_positions, ProtocolName=protocol)).volumetric is volumetric
    assert read(write_opt(ProtocolName=protocol)).volumetric is True


@pytest.mark.parametrize(
    ("lines", "volumetric"),
    [
        ([[row, 0, row, 100] for row in (10, 20, 30, 40)], None),
        (
            [
                [50 - 40 * s, 50 - 40 * c, 50 + 40 * s, 50 + 40 * c]
                for s, c in [(0, 1), (0.7, 0.7), (1, 0), (0.7, -0.7)]
            ],
            False,
        ),
        ([[10, 0, 30, 50, 10, 100]] * 4, False),
        ([[10, 0, 10, 50, 10, 100]] * 4, None),
    ],
    ids=["parallel", "radial", "bent", "straight with a middle point"],
)
def test_scan_lines_on_the_fundus_rule_a_volume_out(write_opt: Write, lines: list, volumetric: object) -> None:
    assert read(write_opt(with_lines(lines))).volumetric is volumetric


@pytest.mark.parametrize(
    ("image", "general", "side"),
    [("R", None, "R"), ("L", "L", "L"), ("R", "L", None), ("", None, None), ("B", None, None), ("", "L", "L")],
)
def test_sides_that_disagree_are_unknown(write_opt: Write, image: str, general: str | None, side: object) -> None:
    elements = {"Laterality": general} if general else {}
    assert read(write_opt(ImageLaterality=image, **elements)).laterality == side
