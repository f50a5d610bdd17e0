"""Slow drift and confounds, taken out of a brain's series run by run; nilearn does the regression.

Each run is cleaned in parts that lie on one side of the split, so that no held-out TR bends a training TR.
"""

import csv
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from data_setup.neuro.extras import extra

_ENTITIES = re.compile(r"(_space-|_desc-|_bold\.|\.nii)")  # where the part ends that a run and its confounds share
_FILES = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")  # fMRIPrep from 20.2 on, and before
LEAST_TRS_PER_REGRESSOR = 3  # with fewer a regression takes out the answer to the film as well


def confounds_of(run: Path) -> Path:
    """The table that fMRIPrep writes beside a run; raises ValueError where there is none."""
    shared = _ENTITIES.split(run.name, maxsplit=1)[0]
    for ending in _FILES:
        if (path := run.with_name(shared + ending)).is_file():
            return path
    raise ValueError(f"{run.name}: data.confounds needs {shared}{_FILES[0]} beside it; copy it there, or set it to []")


def read_confounds(path: Path, wanted: Sequence[str], num_trs: int) -> np.ndarray:
    """float64 [T, columns] of the columns that `wanted` names, by name or pattern (`trans_*`).

    The first TR of a derivative is n/a: it becomes that of the second. Raises ValueError for a pattern without a
    column, another n/a, and another number of rows than `num_trs`.
    """
    with open(path, newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        names = next(reader, [])
        rows = list(reader)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{path.name} has no column {pattern}; there are: {', '.join(names[:40])}")
    if len(rows) != num_trs or any(len(row) != len(names) for row in rows):
        raise ValueError(f"{path.name} has {len(rows)} whole rows, its run {num_trs} TRs")
    chosen = [place for place, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in wanted)]
    try:
        values = np.array([[np.nan if row[at] == "n/a" else float(row[at]) for at in chosen] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if len(values) > 1:
        values[0] = np.where(np.isnan(values[0]), values[1], values[0])
    if not np.isfinite(values).all():
        bad = [names[chosen[at]] for at in np.flatnonzero(~np.isfinite(values).all(axis=0))]
        raise ValueError(f"{path.name}: {', '.join(bad)} hold NaN, Inf or n/a behind the first TR: leave them out")
    return values


def cleaned(
    series: np.ndarray, parts: Sequence[np.ndarray], detrend: bool, confounds: np.ndarray | None, name: str
) -> np.ndarray:
    """A run, float32 [T, voxels], less what `detrend` (a line and the mean) and confounds [T, columns] explain of it.

    parts: TRs of the run that are regressed together; TRs in none of them stay as they are. Raises ValueError for a
    part too short for so many regressors; `name` is said there.
    """
    clean = extra("nilearn.signal").clean
    result, regressors = series.copy(), (2 if detrend else 1) + (0 if confounds is None else confounds.shape[1])
    for trs in parts:
        if not len(trs):
            continue
        if len(trs) < LEAST_TRS_PER_REGRESSOR * regressors:
            raise ValueError(
                f"{name}: {regressors} regressors of data.detrend and data.confounds for {len(trs)} TRs on one side of "
                f"the split; {LEAST_TRS_PER_REGRESSOR} TRs each are the least. Name fewer, or move data.train_split"
            )
        own = None if confounds is None else confounds[trs]
        found = clean(series[trs], detrend=detrend, confounds=own, standardize=None, filter=False)
        result[trs] = found - found.mean(axis=0) if detrend else found
    return result
