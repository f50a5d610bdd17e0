"""A retina of known anatomy -> the grey levels a scanner would show of it. numpy only.

Lengths in mm; x runs along W, z along D, from the centre of the field; y is depth, 0 at the top of a B-scan.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

FIELD_MM, DEPTH_MM = 6.0, 1.9  # side of the scanned square; height of a B-scan

# Layers from the vitreous down: share of the retina's thickness outside the fovea, and reflectivity.
INNER_LAYERS = (("RNFL", 0.12, 0.80), ("GCL+IPL", 0.26, 0.55), ("INL", 0.14, 0.30), ("OPL", 0.10, 0.52))
OUTER_LAYERS = (("ONL", 0.24, 0.22), ("EZ", 0.06, 0.85), ("OS", 0.05, 0.40), ("RPE", 0.03, 1.00))
VITREOUS, DRUSEN, FLUID, CHOROID = 0.03, 0.60, 0.04, 0.55
TISSUES = ("vitreous", "inner retina", "outer retina", "choroid", "fluid")

Quad = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The truth about one eye. thickness_um: outside the fovea; fovea_mm: (z, x) from the centre of the field."""

    laterality: Literal["R", "L"]
    thickness_um: float
    fovea_mm: tuple[float, float]
    drusen: tuple[Quad, ...]  # z, x, radius, height in mm
    fluid: tuple[Quad, ...]  # z, x, lateral radius, half height in mm
    vessels: tuple[Quad, ...]  # offset and angle of a line, bend per mm, radius in mm
    tilt: tuple[float, float]  # mm of depth per mm along z and x
    depth_mm: float  # of the pigment epithelium at the centre
    nasal: float = 0.25  # share by which nerve fibres are thicker at the nasal edge of the field

    @property
    def drusen_load_mm3(self) -> float:
        """Volume under the bumps: pi * height * radius^2 for a Gaussian of that radius."""
        return sum(np.pi * height * radius**2 for _, _, radius, height in self.drusen)

    @property
    def fluid_mm3(self) -> float:
        """Volume of the ellipsoids, 4/3 pi r^2 h."""
        return sum(4 / 3 * np.pi * radius**2 * height for _, _, radius, height in self.fluid)


@dataclass(frozen=True, kw_only=True)
class AnatomyRanges:
    """Between which values eyes differ: (low, high), evenly drawn; counts include both ends.

    fovea_mm: largest distance from the centre along each axis. nasal: how much thicker the nerve fibres are at the
    nasal edge of the field than at its centre, as a share.
    """

    thickness_um: tuple[float, float] = (250, 380)
    fovea_mm: float = 0.5
    num_drusen: tuple[int, int] = (0, 12)
    drusen: tuple[Quad, Quad] = ((-2.2, -2.2, 0.08, 0.02), (2.2, 2.2, 0.3, 0.09))
    fluid_prob: float = 1 / 3
    num_fluid: tuple[int, int] = (1, 3)
    fluid: tuple[Quad, Quad] = ((-1.2, -1.2, 0.2, 0.03), (1.2, 1.2, 0.6, 0.07))
    num_vessels: tuple[int, int] = (3, 8)
    vessels: tuple[Quad, Quad] = ((-2.6, -0.5, -0.15, 0.03), (2.6, 0.5, 0.15, 0.08))
    tilt: tuple[float, float] = (0.03, 0.05)
    depth_mm: tuple[float, float] = (0.95, 1.2)
    nasal: float = 0.25


def random_anatomy(rng: np.random.Generator, ranges: AnatomyRanges = AnatomyRanges()) -> Anatomy:
    """An eye; as the ranges stand, most have a few drusen and a third has fluid."""

    def draw(count: int, limits: tuple[Quad, Quad]) -> tuple[Quad, ...]:
        rows = rng.uniform(*limits, size=(count, 4)).tolist()
        return tuple((a, b, c, d) for a, b, c, d in rows)

    def how_many(limits: tuple[int, int]) -> int:
        return int(rng.integers(limits[0], limits[1] + 1))

    fovea = rng.uniform(-ranges.fovea_mm, ranges.fovea_mm, size=2)
    has_fluid = rng.random() < ranges.fluid_prob
    vessels = draw(how_many(ranges.num_vessels), ranges.vessels)
    return Anatomy(
        laterality="R" if rng.random() < 0.5 else "L",
        thickness_um=float(rng.uniform(*ranges.thickness_um)),
        fovea_mm=(float(fovea[0]), float(fovea[1])),
        drusen=draw(how_many(ranges.num_drusen), ranges.drusen),
        fluid=draw(how_many(ranges.num_fluid) if has_fluid else 0, ranges.fluid),
        vessels=vessels,
        tilt=(float(rng.uniform(-ranges.tilt[0], ranges.tilt[0])), float(rng.uniform(-ranges.tilt[1], ranges.tilt[1]))),
        depth_mm=float(rng.uniform(*ranges.depth_mm)),
        nasal=ranges.nasal,
    )


def _plane(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the A-scans in mm: z [D, 1] and x [1, W]."""
    z = (np.arange(shape[0]) + 0.5) / shape[0] - 0.5
    x = (np.arange(shape[2]) + 0.5) / shape[2] - 0.5
    return (FIELD_MM * z)[:, None], (FIELD_MM * x)[None, :]


def vessel_map(anatomy: Anatomy, shape: tuple[int, int, int]) -> np.ndarray:
    """How much of a vessel each A-scan meets, float [D, W]: 1 on a vessel's axis, falling off to 0."""
    z, x = _plane(shape)
    total = np.zeros((shape[0], shape[2]))
    for offset, angle, bend, radius in anatomy.vessels:
        distance = z - offset - np.tan(angle) * x - bend * x**2 / FIELD_MM
        total = np.maximum(total, np.exp(-((distance / radius) ** 2)))
    return total


def surfaces(anatomy: Anatomy, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Depth in mm of the layers' upper borders and of Bruch's membrane: nine maps [D, W], from the top down."""
    z, x = _plane(shape)
    bruch = anatomy.depth_mm + anatomy.tilt[0] * z + anatomy.tilt[1] * x + 0.006 * (z**2 + x**2)
    pit = np.exp(-(((z - anatomy.fovea_mm[0]) ** 2 + (x - anatomy.fovea_mm[1]) ** 2) / 0.75**2))
    nasal = x if anatomy.laterality == "R" else -x  # nerve fibres gather towards the disc, on the nasal side
    thickness = anatomy.thickness_um / 1000
    inner = sum(share for _, share, _ in INNER_LAYERS)
    lift = np.zeros_like(bruch)
    for dz, dx, radius, height in anatomy.drusen:
        lift = lift + height * np.exp(-(((z - dz) ** 2 + (x - dx) ** 2) / radius**2))
    swelling = np.zeros_like(bruch)
    for fz, fx, radius, height in anatomy.fluid:
        swelling = swelling + 1.6 * height * np.exp(-(((z - fz) ** 2 + (x - fx) ** 2) / radius**2))
    borders, depth = [bruch], bruch - lift
    for name, share, _ in reversed(INNER_LAYERS + OUTER_LAYERS):
        layer = np.full_like(bruch, share * thickness)
        if name in {layer_name for layer_name, _, _ in INNER_LAYERS}:
            layer = layer * (1 - 0.93 * pit)
        if name == "ONL":
            layer = layer * (1 + 0.5 * inner * pit) + swelling
        if name == "RNFL":
            layer = layer * (1 + anatomy.nasal * nasal / (FIELD_MM / 2))
        depth = depth - layer
        borders.append(depth)
    return borders[::-1]


def render(anatomy: Anatomy, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """uint8 [D, H, W]: reflectivity of the layers, vessels with shadows, fluid, attenuation, speckle, fourth root."""
    step = DEPTH_MM / shape[1]
    y = ((np.arange(shape[1]) + 0.5) * step)[None, :, None]
    borders = surfaces(anatomy, shape)
    levels = [VITREOUS, *(level for _, _, level in INNER_LAYERS + OUTER_LAYERS), CHOROID]
    signal = np.full(shape, VITREOUS, np.float32)
    for border, (above, below) in zip(borders, pairwise(levels), strict=True):
        signal += (below - above) * _below(border, y, step)
    # Between the lifted pigment epithelium and Bruch's membrane lies the druse.
    epithelium_ends = borders[-2] + OUTER_LAYERS[-1][1] * anatomy.thickness_um / 1000
    druse = _below(epithelium_ends, y, step) * (1 - _below(borders[-1], y, step))
    signal += (DRUSEN - OUTER_LAYERS[-1][2]) * druse
    _add_fluid(signal, anatomy, borders[4], y)
    vessels = vessel_map(anatomy, shape)[:, None, :].astype(np.float32)
    retina = _below(borders[0], y, step)
    signal += 0.35 * vessels * retina * (1 - _below(borders[1] + 0.05, y, step))
    signal *= 1 - 0.65 * vessels * _below(borders[1] + 0.05, y, step)
    signal *= np.exp(-3.5 * np.maximum(y - borders[-1][:, None, :], 0)).astype(np.float32)  # choroid fades
    speckle = rng.standard_gamma(2.5, size=shape, dtype=np.float32) / 2.5
    seen = np.maximum(signal, 0) * speckle + 0.015 * rng.standard_exponential(size=shape, dtype=np.float32)
    # Scanners show a compressed scale; the square root keeps dark layers apart.
    return np.clip(np.sqrt(seen) * 190, 0, 255).astype(np.uint8)


def _below(border: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
    """Share of each voxel that lies below a border [D, W]: float32 [D, H, W], a ramp of one voxel."""
    return np.clip((y - border[:, None, :]) / step + 0.5, 0, 1).astype(np.float32)


def _add_fluid(signal: np.ndarray, anatomy: Anatomy, top: np.ndarray, y: np.ndarray) -> None:
    """Dark ellipsoids just below the top of the ONL, in place."""
    signal[_in_fluid(anatomy, signal.shape, top, y)] = FLUID


def _in_fluid(anatomy: Anatomy, shape: tuple[int, ...], top: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which voxels lie in an ellipsoid of fluid, bool [D, H, W]; top: upper border of the ONL, [D, W]."""
    z, x = _plane((shape[0], shape[1], shape[2]))
    found = np.zeros(shape, bool)
    for fz, fx, radius, height in anatomy.fluid:
        centre = top[:, None, :] + 1.3 * height
        lateral = (((z - fz) ** 2 + (x - fx) ** 2) / radius**2)[:, None, :]
        found |= lateral + ((y - centre) / height) ** 2 < 1
    return found


def tissue_map(anatomy: Anatomy, shape: tuple[int, int, int]) -> np.ndarray:
    """What each voxel is: uint8 [D, H, W], an index into TISSUES."""
    y = ((np.arange(shape[1]) + 0.5) * DEPTH_MM / shape[1])[None, :, None]
    borders = surfaces(anatomy, shape)
    tissue = np.zeros(shape, np.uint8)
    for border in (borders[0], borders[len(INNER_LAYERS)], borders[-1]):
        tissue += y > border[:, None, :]
    tissue[_in_fluid(anatomy, shape, borders[len(INNER_LAYERS)], y)] = TISSUES.index("fluid")
    return tissue
