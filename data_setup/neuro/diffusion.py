"""A diffusion series and its gradients -> one volume: the mean b0, the fractional anisotropy, or the first volume.

All three are the same whichever way the axes are turned (anisotropy depends on eigenvalues only), so they are computed
in stored axes, where bvecs are valid as they stand, and the result is turned.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.nifti import NiftiFile

Rule4D = Literal["mean_b0", "fa", "first"]
_B0_MAX = 50.0  # s/mm2: scanners write 5 to 15 where no diffusion weighting was meant
_TENSOR_MAX_B = 1600.0  # beyond about 1500 s/mm2 the signal leaves the tensor's straight line
_MIN_DIRECTIONS = 6  # a symmetric tensor's unknowns


class Gradients(NamedTuple):
    """b_values [N] in s/mm2; directions [N, 3], unit length, zero where b is."""

    b_values: np.ndarray
    directions: np.ndarray


def reduced(file: NiftiFile, path: Path, rule: Rule4D | None) -> np.ndarray:
    """float32 [X, Y, Z] in stored axes; raises NeuroFileError(no_rule_for_4d, no_gradients, bad_gradients)."""
    match rule:
        case None:
            raise NeuroFileError(NeuroReason.NO_RULE_FOR_4D, f"a series of shape {file.shape}")
        case "first":
            return file.voxels(slice(0, 1))[..., 0]
        case "mean_b0":
            gradients = read_gradients(path, file.shape[3])
            return file.voxels(_unweighted(gradients).tolist()).mean(axis=-1)
        case "fa":
            gradients = read_gradients(path, file.shape[3])
            return fractional_anisotropy(file.voxels(), gradients)


def read_gradients(path: Path, num_volumes: int) -> Gradients:
    """The .bval and .bvec files beside an image; bvecs as three rows or three columns, three rows where both fit.

    A direction that is not a number counts as zero where b is below 50 s/mm2. Raises NeuroFileError(no_gradients,
    bad_gradients).
    """
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    b_values = _numbers(path.with_name(f"{stem}.bval")).ravel()
    table = _numbers(path.with_name(f"{stem}.bvec"))
    if table.shape == (3, num_volumes):
        table = table.T
    if b_values.shape != (num_volumes,) or table.shape != (num_volumes, 3):
        found = f"{b_values.size} b values and bvecs of shape {table.shape} for {num_volumes} volumes"
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, found)
    unweighted = b_values <= _B0_MAX
    if not np.isfinite(b_values).all() or not np.isfinite(table[~unweighted]).all():
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, "a b value or a direction is not a number")
    table = np.where(unweighted[:, None], 0.0, table)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    if (lengths[~unweighted] < 0.5).any():
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, "a weighted volume has no direction")
    return Gradients(b_values, table / np.where(lengths > 0, lengths, 1.0))


def fractional_anisotropy(series: np.ndarray, gradients: Gradients) -> np.ndarray:
    """From series [X, Y, Z, N] float32 [X, Y, Z] from 0 to 1, by a least-squares fit of log S = log S0 - b g'Dg (Basser
    1994) to the volumes up to 1600 s/mm2; 0 where a voxel has no signal. Raises NeuroFileError(bad_gradients).
    """
    used = gradients.b_values <= _TENSOR_MAX_B
    b, (x, y, z) = gradients.b_values[used], gradients.directions[used].T
    design = np.stack([-b * x * x, -b * y * y, -b * z * z, -2 * b * x * y, -2 * b * x * z, -2 * b * y * z], axis=1)
    design = np.concatenate([design / 1000, np.ones((len(b), 1))], axis=1)  # in ms/um2 all columns are of one size
    if np.linalg.matrix_rank(design) < design.shape[1]:
        found = f"{int((b > _B0_MAX).sum())} directions up to {_TENSOR_MAX_B:g} s/mm2 do not determine a tensor"
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, f"{found}: {_MIN_DIRECTIONS} and a b0 are needed")
    signal = series[..., used].astype(np.float64)
    mask = (signal > 0).any(axis=-1)
    floor = max(float(signal[signal > 0].min(initial=1.0)), 1e-6)
    logs = np.log(np.maximum(signal[mask], floor))
    xx, yy, zz, xy, xz, yz, _ = np.linalg.pinv(design) @ logs.T
    tensors = np.stack([np.stack([xx, xy, xz], -1), np.stack([xy, yy, yz], -1), np.stack([xz, yz, zz], -1)], -2)
    eigenvalues = np.clip(np.linalg.eigvalsh(tensors), 0, None)  # noise makes negative ones, which diffusion has not
    spread = eigenvalues - eigenvalues.mean(axis=-1, keepdims=True)
    norms = np.maximum((eigenvalues**2).sum(axis=-1), 1e-12)
    out = np.zeros(series.shape[:3], np.float32)
    out[mask] = np.sqrt(1.5 * (spread**2).sum(axis=-1) / norms)
    return out


def _unweighted(gradients: Gradients) -> np.ndarray:
    """Numbers of the b0 volumes."""
    found = np.flatnonzero(gradients.b_values <= _B0_MAX)
    if not len(found):
        lowest = gradients.b_values.min()
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, f"no b0 volume; the lowest b value is {lowest:g} s/mm2")
    return found


def _numbers(path: Path) -> np.ndarray:
    """A table of numbers separated by blanks, float64 [rows, columns]."""
    try:
        return np.loadtxt(path, ndmin=2)
    except OSError:
        raise NeuroFileError(NeuroReason.NO_GRADIENTS, f"no readable {path.suffix} file beside the image") from None
    except ValueError:
        raise NeuroFileError(NeuroReason.BAD_GRADIENTS, f"the {path.suffix} file is no table of numbers") from None
