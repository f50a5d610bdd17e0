"""What a model said of every held-out TR, and what a constant and naive predictors say of it: on file, and judged.

Means of a validation loss cannot tell learning from luck; the series can, also long after the run (`octfm health`).
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from oct_foundation.diagnostics.learned import ModalityVerdict, judge_categorical, judge_series
from oct_foundation.diagnostics.noise_ceiling import Ceiling
from oct_foundation.diagnostics.skill import CategoricalSeries, Series
from oct_foundation.film import AUDIO, CONTINUOUS

FOLDER = "evaluation"
LAST, BEST = "last.npz", "best.npz"


@dataclass(frozen=True, kw_only=True)
class FilmSeries:
    """n held-out TRs after `step` updates, in time order within each subject, all subjects with the same TRs.

    truth, prediction: by modality of CONTINUOUS, float32 [n, values]; costs: of audio, by "model", "unigram" and
    "shifted" (the model's for the codes of another quarter of the film), float [n]. mean, variance: of training TRs.
    baselines, beside: of fmri, as Series has them. trs, runs: int [n], the TR and the number of the subject.
    """

    step: int
    trs: np.ndarray
    runs: np.ndarray
    truth: Mapping[str, np.ndarray]
    prediction: Mapping[str, np.ndarray]
    costs: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    variance: Mapping[str, float]
    baselines: Mapping[str, np.ndarray]
    beside: Mapping[str, np.ndarray]
    ceiling: Ceiling | None
    complete: bool
    leak_free: bool

    def verdicts(self) -> list[ModalityVerdict]:
        """Of every modality that is there. Subjects who saw the same TRs stand side by side, as voxels do: they share
        what the film does to a TR, so that six of them are not six times as many TRs.
        """
        known: dict[str, Any] = {"complete": self.complete, "leak_free": self.leak_free}
        num_subjects = len(np.unique(self.runs))
        found = []
        for name in CONTINUOUS:
            if name in self.prediction:
                series = Series(
                    truth=_side_by_side(self.truth[name], num_subjects),
                    prediction=_side_by_side(self.prediction[name], num_subjects),
                    mean=np.tile(self.mean[name], num_subjects),
                    variance=self.variance[name],
                    baselines=self._naive(self.baselines, name, num_subjects),
                    beside=self._naive(self.beside, name, num_subjects),
                    **known,
                )
                found.append(judge_series(name, series, self.ceiling if name == "fmri" else None))
        if "model" in self.costs:
            costs = {key: value.reshape(num_subjects, -1).mean(axis=0) for key, value in self.costs.items()}
            codes = CategoricalSeries(
                cross_entropy=costs["model"],
                unigram=costs["unigram"],
                baselines={"shifted inputs": costs["shifted"]},
                **known,
            )
            found.append(judge_categorical(AUDIO, codes))
        return found

    def _naive(self, said: Mapping[str, np.ndarray], name: str, num_subjects: int) -> dict[str, np.ndarray]:
        """Naive predictors are of fmri."""
        return {key: _side_by_side(value, num_subjects) for key, value in said.items()} if name == "fmri" else {}

    def save(self, path: Path) -> None:
        """As npz without pickles, complete or not at all."""
        arrays: dict[str, Any] = {"trs": self.trs, "runs": self.runs}
        for group in _GROUPS:
            arrays |= {f"{group}/{name}": value for name, value in getattr(self, group).items()}
        facts = {
            "step": self.step,
            "variance": dict(self.variance),
            "ceiling": asdict(self.ceiling) if self.ceiling else None,
            "complete": self.complete,
            "leak_free": self.leak_free,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, facts=np.array(json.dumps(facts)), **arrays)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError for what `save` has not written."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            ceiling = Ceiling(**facts.pop("ceiling")) if facts["ceiling"] else facts.pop("ceiling")
        except (OSError, KeyError, TypeError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} holds no series of held-out TRs ({type(error).__name__}: {error})") from None
        groups: dict[str, Any] = {group: {} for group in _GROUPS}
        for name in [name for name in arrays if "/" in name]:
            group, _, key = name.partition("/")
            groups[group][key] = arrays.pop(name)
        return cls(ceiling=ceiling, **facts, **arrays, **groups)


_GROUPS = ("truth", "prediction", "costs", "mean", "baselines", "beside")


def _side_by_side(values: np.ndarray, num_subjects: int) -> np.ndarray:
    """[subjects x T, V], subject after subject -> [T, subjects x V]."""
    return values.reshape(num_subjects, -1, values.shape[1]).swapaxes(0, 1).reshape(-1, num_subjects * values.shape[1])
