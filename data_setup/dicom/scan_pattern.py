"""What the header says about space: voxel spacing in mm, which eye, and whether the frames are a stack of parallel
planes.

Only a raster scan is a volume: AI-READI's optic-disc protocol holds 24 radial and 3 circular B-scans, whose frame
axis is no direction in space. What cannot be told stays None; a spacing of 1.0 is never invented.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pydicom import Dataset

from data_setup.dicom.elements import touch, value
from data_setup.volume import Laterality, Spacing

_EQUAL_SPACING = 0.05  # per-frame pixel spacings that differ by less count as one
_EVEN_STEPS = 0.10  # steps between planes that differ by less count as even
_SAME_PLANE_MM = 1e-6  # far below the 0.002 mm of the finest voxel


@dataclass(frozen=True, kw_only=True)
class ScanPattern:
    """spacing_mm [D, H, W], None per axis where unknown; eye; volumetric None where the header cannot tell."""

    spacing_mm: Spacing
    laterality: Laterality | None
    volumetric: bool | None


def read_scan_pattern(dataset: Dataset, frames: int, protocol: str | None) -> ScanPattern:
    """The geometry of a scan of `frames` B-scans; raises BadFile(invalid_header) where an element is damaged."""

    def read() -> ScanPattern:
        shared = _first(dataset, "SharedFunctionalGroupsSequence")
        per_frame = list(value(dataset, "PerFrameFunctionalGroupsSequence") or ())
        groups = [shared, *per_frame]
        step_mm, parallel = _planes(shared, per_frame, frames)
        by_name = parallel is None and _names_no_raster(protocol or "")  # measured positions outrank a name
        if by_name or _is_no_volume(dataset, per_frame, frames):
            parallel = False
        return ScanPattern(
            spacing_mm=_spacing(dataset, shared, per_frame, step_mm),
            laterality=_laterality(dataset, groups),
            volumetric=parallel,
        )

    return touch("the functional groups", read)


def _first(group: Dataset | None, keyword: str) -> Dataset | None:
    """The first item of a sequence, or None."""
    items = value(group, keyword) if group is not None else None
    return items[0] if items else None


def _numbers(found: Any, count: int) -> list[float] | None:
    """`count` finite numbers, or None where there are not as many; raises where they are no numbers."""
    if found is None:
        return None
    numbers = [float(number) for number in found]
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _known(length: Any) -> float | None:
    """A positive finite length; zero means unknown in the field."""
    number = 0.0 if length is None else float(length)
    return number if np.isfinite(number) and number > 0 else None


def _spacing(dataset: Dataset, shared: Dataset | None, per_frame: list[Dataset], step_mm: float | None) -> Spacing:
    """[D, H, W] in mm, axis by axis: plane positions, pixel measures, then the resolutions in micrometres."""
    measures = _first(shared, "PixelMeasuresSequence")
    pools = [measures] if measures is not None else [_first(group, "PixelMeasuresSequence") for group in per_frame]
    pools = [pool if pool is not None else Dataset() for pool in pools]
    pairs = [_numbers(value(pool, "PixelSpacing"), 2) or (None, None) for pool in pools]
    height, width = (_common(_known(pair[axis]) for pair in pairs) for axis in (0, 1))
    between, thickness = (
        _common(_known(value(pool, keyword)) for pool in pools)
        for keyword in ("SpacingBetweenSlices", "SliceThickness")  # AI-READI means the same by both
    )
    across, depth, along = (
        um / 1000 if (um := _known(value(dataset, keyword))) is not None else None
        for keyword in ("AcrossScanSpatialResolution", "DepthSpatialResolution", "AlongScanSpatialResolution")
    )
    return step_mm or between or thickness or across, height or depth, width or along


def _common(lengths: Iterable[float | None]) -> float | None:
    """The median of lengths that agree within 5 %; None where one is unknown or they differ."""
    known = list(lengths)
    if not known or any(length is None for length in known):
        return None
    values = np.array(known, dtype=np.float64)
    return float(np.median(values)) if values.max() <= values.min() * (1 + _EQUAL_SPACING) else None


def _laterality(dataset: Dataset, groups: list[Dataset | None]) -> Laterality | None:
    """R = right eye, L = left eye; None where nothing is said or two elements disagree."""
    anatomies = [_first(group, "FrameAnatomySequence") for group in groups]
    found = [value(dataset, "ImageLaterality"), value(dataset, "Laterality")]
    found += [value(anatomy, "FrameLaterality") for anatomy in anatomies if anatomy is not None]
    right, left = "R" in found, "L" in found
    if right == left:
        return None
    return "R" if right else "L"


def _planes(shared: Dataset | None, per_frame: list[Dataset], frames: int) -> tuple[float | None, bool | None]:
    """(step between planes in mm, verdict): True for parallel, evenly spaced planes, False for a shared plane or
    differing orientations, None where positions are absent or uneven. The step is known only with True.
    """
    if len(per_frame) != frames or frames < 2:
        return None, None
    orientations, positions = [], []
    for group in per_frame:
        orientation = _first(group, "PlaneOrientationSequence") or _first(shared, "PlaneOrientationSequence")
        position = _first(group, "PlanePositionSequence")
        orientations.append(_numbers(value(orientation, "ImageOrientationPatient"), 6) if orientation else None)
        positions.append(_numbers(value(position, "ImagePositionPatient"), 3) if position else None)
    known = np.array([orientation for orientation in orientations if orientation is not None])
    if len(known) and np.abs(known - known[0]).max() > 1e-3:
        return None, False
    if any(position is None for position in positions):
        return None, None
    points = np.array(positions, dtype=np.float64)
    if len(known):
        normal = np.cross(known[0][:3], known[0][3:])
        offsets = points @ normal
    else:  # along the line from the first to the last frame
        direction = points[-1] - points[0]
        offsets = points @ direction / max(float(np.linalg.norm(direction)), 1e-12)
    if np.diff(np.sort(offsets)).min() < _SAME_PLANE_MM:
        return None, False
    steps = np.diff(offsets)
    mean = float(steps.mean())
    even = np.abs(steps - mean).max() <= _EVEN_STEPS * abs(mean)
    return (abs(mean), True) if even else (None, None)


def _is_no_volume(dataset: Dataset, per_frame: list[Dataset], frames: int) -> bool:
    """True if the flag, the frame count or the scan lines on the fundus rule a volume out."""
    flag = value(dataset, "OphthalmicVolumetricPropertiesFlag")
    return flag == "NO" or frames == 1 or _lines_cross_or_bend(per_frame)


def _names_no_raster(protocol: str) -> bool:
    """True for circle, ONH-RC and radial protocols; Triton's `3d_radial` is a raster of 256 frames by its shape."""
    words = re.sub(r"[^a-z0-9]+", "_", protocol.lower())
    if "circle" in words or "onh_rc" in words:
        return True
    return "radial" in words and not re.search(r"3d_(h_)?radial", words)


def _lines_cross_or_bend(per_frame: list[Dataset]) -> bool:
    """True if a scan line on the fundus image has a bend, or crosses its neighbour or the first line.

    Radial lines all meet in the centre, so these pairs tell as much as all pairs, in time O(frames).
    """
    lines: list[np.ndarray] = []
    for group in per_frame:
        location = _first(group, "OphthalmicFrameLocationSequence")
        found = value(location, "ReferenceCoordinates") if location is not None else None
        points = np.array([float(number) for number in found or ()], dtype=np.float64)
        if len(points) < 4 or len(points) % 2:
            return False
        line = points.reshape(-1, 2)
        if _bends(line):
            return True
        lines.append(line)
    ends = [(line[0], line[-1]) for line in lines]
    pairs = [*pairwise(ends), *((ends[0], end) for end in ends[2:])]
    return any(_cross(one, other) for one, other in pairs)


def _bends(line: np.ndarray) -> bool:
    """True if a point of the polyline [n, 2] lies off the chord by more than 5 % of its length, or it is closed."""
    chord = line[-1] - line[0]
    length = float(np.linalg.norm(chord))
    away = line - line[0]
    off = np.abs(chord[0] * away[:, 1] - chord[1] * away[:, 0]).max()
    return length < 1e-9 or bool(off > 0.05 * length * length)


def _cross(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """True if two segments in the plane properly cross each other."""

    def side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> float:
        return float((end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0]))

    return side(*one, other[0]) * side(*one, other[1]) < 0 and side(*other, one[0]) * side(*other, one[1]) < 0
