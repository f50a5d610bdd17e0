"""Each brain's own units -> deviations from its mean, voxel by voxel, by what the training TRs alone say.

The statistics are a file, fmri_normalization_stats.npz, so that another film is normalised as this one was.
"""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

STATS_FILE = "fmri_normalization_stats.npz"
STD_FLOOR = 1e-3  # of the run's median std: no living voxel is a thousand times stiller than its neighbours
LEAST_TRS = 20  # for a mean and a std of one's own; a run with fewer takes those of the subject's other runs
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FmriNormalization:
    """mean, std: float32 [subjects, runs, voxels]; std 0 marks a voxel that does not vary. runs: TRs of each run;
    trs_used: how many of them trained. std_floor: below this share of the median std a voxel counts as constant.
    """

    subject_ids: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    runs: tuple[int, ...]
    trs_used: tuple[int, ...]
    std_floor: float = STD_FLOOR

    @classmethod
    def fit(
        cls, series: Sequence[np.ndarray], subject_ids: tuple[str, ...], runs: tuple[int, ...], train: np.ndarray
    ) -> "FmriNormalization":
        """series: float32 [T, voxels] of each subject; train: the TRs that may be looked at. Std with ddof 0."""
        own = [train[(train >= start) & (train < stop)] for start, stop in _spans(runs)]
        used = [trs if len(trs) >= min(LEAST_TRS, len(train)) else train for trs in own]
        figures = np.stack([[_figures(brain[trs]) for trs in used] for brain in series])  # [subjects, runs, 2, voxels]
        return cls(
            subject_ids=subject_ids,
            mean=figures[:, :, 0].astype(np.float32),
            std=figures[:, :, 1].astype(np.float32),
            runs=runs,
            trs_used=tuple(len(trs) for trs in own),
        )

    def apply(self, series: np.ndarray, subject: int) -> np.ndarray:
        """float32 [T, voxels] of subject number `subject`: (x - mean) / std by runs, 0 where the voxel is constant."""
        result = np.empty(series.shape, np.float32)
        for run, (start, stop) in enumerate(_spans(self.runs)):
            mean, std = self.mean[subject, run], self.std[subject, run]
            alive = std > 0
            result[start:stop] = (series[start:stop] - mean) / np.where(alive, std, 1) * alive
        return result

    @property
    def num_constant(self) -> int:
        """Voxels, summed over subjects and runs, that stay 0."""
        return int((self.std == 0).sum())

    def of(self, subject_ids: tuple[str, ...], runs: tuple[int, ...], num_voxels: int) -> "FmriNormalization":
        """The same statistics for these subjects; of a single run they serve a run of any length.

        Raises ValueError for a subject without statistics, another number of voxels or of runs.
        """
        unknown = [subject for subject in subject_ids if subject not in self.subject_ids]
        if unknown:
            raise ValueError(f"no statistics of {', '.join(unknown)}; there are: {', '.join(self.subject_ids)}")
        if self.mean.shape[2] != num_voxels:
            raise ValueError(f"statistics of {self.mean.shape[2]} voxels for brains of {num_voxels}: use the same mask")
        if len(runs) != len(self.runs) or (len(runs) > 1 and runs != self.runs):
            raise ValueError(f"statistics of runs of {list(self.runs)} TRs for runs of {list(runs)}")
        rows = [self.subject_ids.index(subject) for subject in subject_ids]
        return FmriNormalization(
            subject_ids=subject_ids,
            mean=self.mean[rows],
            std=self.std[rows],
            runs=runs,
            trs_used=self.trs_used,
            std_floor=self.std_floor,
        )

    def save(self, path: Path) -> None:
        """subject_{id}_mean, subject_{id}_std: float32 [voxels], or [runs, voxels] of several runs; subject_ids;
        runs, trs_used, std_floor, version. Whole or not at all.
        """
        arrays = {"subject_ids": np.array(self.subject_ids), "runs": np.array(self.runs)}
        arrays |= {"trs_used": np.array(self.trs_used), "std_floor": np.array(self.std_floor)}
        for row, subject in enumerate(self.subject_ids):
            one = len(self.runs) == 1
            arrays[f"subject_{subject}_mean"] = self.mean[row, 0] if one else self.mean[row]
            arrays[f"subject_{subject}_std"] = self.std[row, 0] if one else self.std[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        with open(temporary, "wb") as file:
            np.savez(file, version=np.array(_VERSION), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "FmriNormalization":
        """Raises ValueError for what `save` did not write."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    raise ValueError(f"{path.name} has version {int(file['version'])}; this program reads {_VERSION}")
                subjects, runs = tuple(map(str, file["subject_ids"])), tuple(map(int, file["runs"]))
                shape = (len(subjects), len(runs), -1)
                return cls(
                    subject_ids=subjects,
                    mean=np.stack([file[f"subject_{subject}_mean"] for subject in subjects]).reshape(shape),
                    std=np.stack([file[f"subject_{subject}_std"] for subject in subjects]).reshape(shape),
                    runs=runs,
                    trs_used=tuple(map(int, file["trs_used"])),
                    std_floor=float(file["std_floor"]),
                )
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} holds no statistics of brains that can be used ({error})") from None


def _figures(trs: np.ndarray) -> np.ndarray:
    """float64 [2, voxels]: mean and std over the TRs, std 0 for a constant voxel."""
    mean = trs.mean(axis=0, dtype=np.float64)
    std = trs.std(axis=0, dtype=np.float64)
    floor = STD_FLOOR * np.median(std[std > 0]) if (std > 0).any() else 0
    return np.stack([mean, np.where(std > floor, std, 0)])


def _spans(runs: tuple[int, ...]) -> list[tuple[int, int]]:
    """First TR of each run, and the one after its last."""
    borders = np.cumsum([0, *runs]).tolist()
    return list(pairwise(borders))
