"""Volumes of known anatomy behind a scanner's hidden differences: what the features of an encoder are judged by.

Settings enter; volumes, labels per volume and per patch leave, always the same. Brightness, contrast, speckle, blur,
tilt and depth vary from volume to volume and are told to nobody, so that raw voxels answer badly. Structures are as
large as patches see them: drusen as in large pigment epithelial detachments, cysts of a macular oedema.
"""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_setup.arrays import write_prepared
from data_setup.index import IndexRow, PreparedSet
from data_setup.phantom_anatomy import (
    DEPTH_MM,
    FIELD_MM,
    TISSUES,
    Anatomy,
    AnatomyRanges,
    random_anatomy,
    render,
    tissue_map,
    vessel_map,
)
from data_setup.randomness import Purpose, sample_rng
from data_setup.splits import Split
from data_setup.volume import Spacing
from oct_foundation.geometry import PatchGrid

RANGES = AnatomyRanges(
    thickness_um=(200, 420),
    fovea_mm=1.2,
    num_drusen=(0, 8),
    drusen=((-2.2, -2.2, 0.3, 0.08), (2.2, 2.2, 0.7, 0.22)),
    fluid_prob=0.5,
    fluid=((-1.5, -1.5, 0.5, 0.07), (1.5, 1.5, 1.2, 0.16)),
    num_vessels=(1, 10),
    vessels=((-2.6, -0.5, -0.15, 0.08), (2.6, 0.5, 0.15, 0.2)),
    tilt=(0.08, 0.12),
    depth_mm=(0.75, 1.45),
    nasal=0.4,
)
LABELS_NAME = "labels.csv"
FLUID_SHARE = 0.05  # of a patch's voxels, from which it counts as one with fluid


class Scanner(NamedTuple):
    """How a maker's images look: exponent of the grey scale, blur along depth in voxels, added grey level."""

    vendor: str
    gamma: float
    blur: float
    floor: float


SCANNERS = (Scanner("maker A", 1.0, 0.0, 0.0), Scanner("maker B", 0.93, 0.45, 4.0), Scanner("maker C", 1.07, 0.3, 8.0))


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """`num_volumes` eyes at image_size [D, H, W], cut into patches; another seed gives other eyes.

    ranges: as they stand, 96 principal components of the voxels answer nearly nothing: R2 of .12 on thickness, at most
    .13 on any other value, AUROC of .59 on the side (300 eyes, ridge). With depths of .9 to 1.3 mm it was .43 and .94.
    """

    num_volumes: int = 480
    image_size: tuple[int, int, int] = (16, 96, 96)
    patch_size: tuple[int, int, int] = (4, 16, 16)
    seed: int = 2026
    ranges: AnatomyRanges = RANGES

    def __post_init__(self) -> None:
        if self.num_volumes < 1:
            raise ValueError(f"num_volumes must be at least 1; found {self.num_volumes}")
        _ = self.grid

    @property
    def grid(self) -> PatchGrid:
        """How a volume is cut."""
        return PatchGrid(image_size=self.image_size, patch_size=self.patch_size)


class PhantomBenchmark:
    """M volumes by number, made when asked for; the same for the same settings on every machine."""

    def __init__(self, settings: BenchmarkSettings | None = None) -> None:
        self.settings = settings or BenchmarkSettings()
        self.ids = [f"eye-{number:05d}" for number in range(len(self))]
        self.vendors = [SCANNERS[number % len(SCANNERS)].vendor for number in range(len(self))]

    def __len__(self) -> int:
        return self.settings.num_volumes

    def __getitem__(self, number: int) -> np.ndarray:
        """uint8 [D, H, W]."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        rng = sample_rng(self.settings.seed, 2, number, Purpose.PHANTOM)
        seen = render(self.anatomy(number), self.settings.image_size, rng)
        return through_scanner(seen, SCANNERS[number % len(SCANNERS)], rng)

    @staticmethod
    def spacing_mm(shape: tuple[int, int, int]) -> Spacing:
        """Of one voxel, [D, H, W]."""
        return FIELD_MM / shape[0], DEPTH_MM / shape[1], FIELD_MM / shape[2]

    def anatomy(self, number: int) -> Anatomy:
        """The truth about an eye."""
        return random_anatomy(sample_rng(self.settings.seed, 3, number, Purpose.PHANTOM), self.settings.ranges)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """By name, [M]: numbers, or names of classes. Loads and volumes as roots, since they are skewed."""
        eyes = [self.anatomy(number) for number in range(len(self))]
        density = [float(np.mean(vessel_map(eye, self.settings.image_size) > 0.5)) for eye in eyes]
        return {
            "thickness_um": np.array([eye.thickness_um for eye in eyes]),
            "fovea_z_mm": np.array([eye.fovea_mm[0] for eye in eyes]),
            "fovea_x_mm": np.array([eye.fovea_mm[1] for eye in eyes]),
            "drusen_count": np.array([float(len(eye.drusen)) for eye in eyes]),
            "drusen_load": np.sqrt([eye.drusen_load_mm3 for eye in eyes]),
            "fluid": np.sqrt([eye.fluid_mm3 for eye in eyes]),
            "vessel_density": np.array(density),
            "laterality": np.array([eye.laterality for eye in eyes]),
            "vendor": np.array(self.vendors),
        }

    def patch_labels(self, number: int) -> dict[str, np.ndarray]:
        """By name, [N] in token order: `layer`, the most frequent tissue, int64 into TISSUES; `fluid`, 0 or 1."""
        grid = self.settings.grid
        tissue = tissue_map(self.anatomy(number), self.settings.image_size)
        (gd, gh, gw), (pd, ph, pw) = grid.grid, grid.patch_size
        patches = tissue.reshape(gd, pd, gh, ph, gw, pw).transpose(0, 2, 4, 1, 3, 5).reshape(grid.num_patches, -1)
        counts = np.stack([(patches == code).sum(axis=1) for code in range(len(TISSUES))], axis=1)
        fluid = counts[:, TISSUES.index("fluid")] >= FLUID_SHARE * patches.shape[1]
        return {"layer": counts.argmax(axis=1), "fluid": fluid.astype(np.int64)}


def through_scanner(voxels: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of grey levels uint8 [D, H, W]: its own look, and what changes from scan to scan."""
    gain, gamma = rng.uniform(0.8, 1.2), scanner.gamma * rng.uniform(0.95, 1.05)
    speckle = rng.uniform(0.05, 0.25)  # standard deviation, as a share
    seen = (voxels / 255).astype(np.float32) ** gamma * 255 * gain
    seen = seen * (rng.standard_gamma(1 / speckle**2, size=seen.shape, dtype=np.float32) * speckle**2)
    if scanner.blur:
        seen = gaussian_filter1d(seen, scanner.blur, axis=1)
    return np.clip(seen + scanner.floor * rng.uniform(0.5, 1.5), 0, 255).astype(np.uint8)


def write_benchmark(folder: Path, settings: BenchmarkSettings, *, num_train: int = 0, num_val: int = 0) -> PreparedSet:
    """The volumes as a prepared set below `folder`, and labels.csv with a column `id`.

    The first `num_train` train, the next `num_val` validate, the rest are for tests. Raises ValueError where there are
    fewer volumes than that.
    """
    if num_train + num_val > settings.num_volumes:
        raise ValueError(f"{num_train} to train and {num_val} to validate are more than {settings.num_volumes} volumes")
    benchmark = PhantomBenchmark(settings)

    def split_of(number: int) -> Split:
        return "train" if number < num_train else "val" if number < num_train + num_val else "test"

    spacing = PhantomBenchmark.spacing_mm(settings.image_size)
    rows = [
        IndexRow(
            id=name,
            status="accepted",
            vendor=vendor,
            laterality=benchmark.anatomy(number).laterality,
            volumetric=True,
            spacing_mm=spacing,
            split=split_of(number),
        )
        for number, (name, vendor) in enumerate(zip(benchmark.ids, benchmark.vendors, strict=True))
    ]
    prepared = write_prepared(folder, rows, benchmark)
    with (folder / LABELS_NAME).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", *benchmark.labels])
        writer.writerows(zip(benchmark.ids, *benchmark.labels.values(), strict=True))
    return prepared
