"""Phantoms -> labels of single patches: is the layer, or fluid, known at the place where it lies?

A few patches of each volume become the rows that a probe reads; all of a volume stay in one fold.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_setup.phantom_anatomy import TISSUES
from data_setup.phantom_benchmark import PhantomBenchmark

PREFIX = "patch/"
NAMES = ("patch/layer", "patch/fluid")
_ABSENT_PRESENT = ("absent", "present")
_PATCHES_PER_VOLUME, _MOST_ROWS = 32, 15_000  # logistic regression on 15,000 rows takes half a minute a contestant


@dataclass(frozen=True, kw_only=True)
class SampledPatches:
    """n patches of each of M volumes: positions int64 [M, n], in token order; groups [M * n]: their volumes.

    labels: by name, a class for each row [M * n], None where too few volumes show it.
    """

    positions: np.ndarray
    groups: list[str]
    labels: Mapping[str, Sequence[str | None]]
    notes: list[str]


def sample_patches(
    benchmark: PhantomBenchmark, *, folds: int, names: Sequence[str] = NAMES, seed: int = 0
) -> SampledPatches:
    """Up to 32 patches of each volume, fewer where they would be more than 15,000 in all; equal seeds give equal ones.

    A class that fewer than 2 x `folds` volumes show cannot fill the folds and those inside them: it is left out.
    """
    grid = benchmark.settings.grid
    count = max(1, min(_PATCHES_PER_VOLUME, grid.num_patches, _MOST_ROWS // len(benchmark)))
    rng = np.random.default_rng(seed)
    positions = np.stack([np.sort(rng.permutation(grid.num_patches)[:count]) for _ in range(len(benchmark))])
    columns: dict[str, list[str]] = {name: [] for name in NAMES}
    for number, chosen in enumerate(positions):
        truth = benchmark.patch_labels(number)
        columns["patch/layer"] += [TISSUES[code] for code in truth["layer"][chosen]]
        columns["patch/fluid"] += [_ABSENT_PRESENT[code] for code in truth["fluid"][chosen]]
    groups = np.repeat(benchmark.ids, count).tolist()
    notes = [f"{', '.join(names)}: {count} of {grid.num_patches} patches of each volume, {len(groups)} in all"]
    labels: dict[str, Sequence[str | None]] = {}
    for name in names:
        rare = _rare(columns[name], groups, 2 * folds)
        labels[name] = [None if cell in rare else cell for cell in columns[name]]
        notes += [f"{name}: {cell} is seen in {shown} volumes only and left out" for cell, shown in rare.items()]
    return SampledPatches(positions=positions, groups=groups, labels=labels, notes=notes)


def _rare(column: Iterable[str], groups: Iterable[str], least: int) -> dict[str, int]:
    """Classes that fewer than `least` groups have, and how many do."""
    shown = Counter(cell for cell, _ in set(zip(column, groups, strict=True)))
    return {cell: count for cell, count in sorted(shown.items()) if count < least}
