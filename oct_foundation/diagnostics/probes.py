"""Frozen features of an encoder and of its controls + labels -> scores with intervals: does it know more than they do?

A probe is cheap and learns a lot by itself, so a score means nothing alone. Every contestant gets the same folds of
patients, the same probes and the same resamples. Linear probes understate JEPA features (attentive.py); what counts
is the distance to the same network at random.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from oct_foundation.diagnostics.folds import patient_folds
from oct_foundation.diagnostics.intervals import Interval, interval, patient_weights
from oct_foundation.diagnostics.labels import Label, LabelKind, read_label
from oct_foundation.diagnostics.out_of_fold import Contestant, ProbeKind, predict_out_of_fold
from oct_foundation.diagnostics.scores import CLASS_METRICS, VALUE_METRICS, Metric, higher_is_better

ENCODER, MEAN_PREDICTOR = "encoder", "mean_predictor"
CONTROLS = ("random_init", "pca", "patch_means", "intensity", MEAN_PREDICTOR)
"""Names of features that are controls; every other contestant is compared with each of them that takes part."""
TO_BEAT = ("random_init", "pca")
NOTHING_KNOWN: Mapping[Metric, float] = {"r2": 0.0, "auroc": 0.5}
"""What somebody scores who knows nothing: R2 of the mean, AUROC of a coin. The other metrics have no such point."""

Progress = Callable[[str], None]
"""(what comes next)"""
Scores = dict[tuple[ProbeKind, str], dict[Metric, np.ndarray]]
"""By probe and contestant: the score of each resample, float [1 + resamples]."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """ridge reads values, logistic reads classes, knn and attentive (which needs tokens) read both.

    folds: of patients; draws: how often the folds are drawn, scores are means over them; resamples: of the bootstrap;
    kinds: what a label is, where the rule of read_label is wrong.
    """

    probes: tuple[ProbeKind, ...] = ("ridge", "logistic", "knn")
    folds: int = 5
    draws: int = 1
    resamples: int = 1000
    seed: int = 0
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(self.probes))
        allowed = [kind for kind in get_args(ProbeKind) if kind != "mean"]
        if not self.probes or not set(self.probes) <= set(allowed):
            raise ValueError(f"probes must be some of {', '.join(allowed)}; found {', '.join(self.probes) or 'none'}")
        for name, least in (("folds", 2), ("draws", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; found {getattr(self, name)}")

    def of_kind(self, kind: LabelKind) -> list[ProbeKind]:
        """The probes that can read such labels."""
        other = "logistic" if kind == "values" else "ridge"
        return [probe for probe in self.probes if probe != other]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One score: out of fold, with its 95 % interval [low, high] over patients.

    differences: this score minus that of each control, empty for controls themselves; an attentive probe is compared
    with the linear probe of controls without tokens. beats: the controls whose interval lies wholly on the worse side
    of this one's. num_missing: volumes without the label.
    """

    label: str
    metric: Metric
    probe: ProbeKind
    contestant: str
    score: float
    low: float
    high: float
    num_volumes: int
    num_patients: int
    num_missing: int
    differences: Mapping[str, Interval] = field(default_factory=dict)
    beats: tuple[str, ...] = ()

    @property
    def beats_controls(self) -> bool:
        """True where the interval clears the random network's and the voxels'."""
        return set(TO_BEAT) <= set(self.beats)


def probe(
    features: Mapping[str, Contestant | Sequence[Contestant]],
    labels: Mapping[str, Sequence[object] | np.ndarray],
    groups: Sequence[str] | np.ndarray,
    settings: ProbeSettings | None = None,
    progress: Progress | None = None,
) -> list[ProbeRow]:
    """Every label, by every probe that can read it, from every contestant; the mean predictor takes part unasked.

    features: by name, for example encoder, random_init, pca; several of a name (random networks) take turns over the
    draws of folds. labels: a column of M values each. groups: the patient of each volume. Raises ValueError where
    lengths differ, a label cannot be judged, or the attentive probe finds no tokens.
    """
    settings = settings or ProbeSettings()
    contestants = {name: _several(found) for name, found in features.items()}
    _check(contestants, labels, np.asarray(groups), settings)
    rows: list[ProbeRow] = []
    for name, column in labels.items():
        label = read_label(name, column, settings.kinds.get(name))
        known = {name: [one.of(label.known) for one in several] for name, several in contestants.items()}
        patients = np.asarray(groups)[label.known]
        found = _scores(known, label, patients, settings, progress or (lambda text: None))
        rows += _rows(found, label, len(np.unique(patients)))
    return rows


def _several(found: Contestant | Sequence[Contestant]) -> list[Contestant]:
    return [found] if isinstance(found, Contestant) else list(found)


def _check(
    contestants: Mapping[str, Sequence[Contestant]],
    labels: Mapping[str, Sequence[object] | np.ndarray],
    groups: np.ndarray,
    settings: ProbeSettings,
) -> None:
    """Raises ValueError unless all are about the same number of volumes, and tokens are there where needed."""
    lengths = {f"features {name}": len(one.pooled) for name, several in contestants.items() for one in several}
    lengths |= {f"label {name}": len(column) for name, column in labels.items()}
    for what, length in lengths.items():
        if length != len(groups):
            raise ValueError(
                f"{what}: {length} volumes, but {len(groups)} patients are named; one per volume is needed"
            )
    for name, several in contestants.items():
        if any(not np.isfinite(one.pooled).all() for one in several):
            raise ValueError(f"features {name} hold NaN or infinity: the encoder is broken, or its input is")
    if "attentive" in settings.probes:
        judged = [name for name in contestants if name not in CONTROLS]
        if lacking := [name for name in judged if any(one.tokens is None for one in contestants[name])]:
            raise ValueError(f"the attentive probe needs patch tokens; {', '.join(lacking)} has none")


def _scores(
    contestants: Mapping[str, Sequence[Contestant]],
    label: Label,
    groups: np.ndarray,
    settings: ProbeSettings,
    progress: Progress,
) -> Scores:
    """Mean over the draws of folds, for each resample of patients."""
    draws = [patient_folds(label, groups, settings.folds, settings.seed + number) for number in range(settings.draws)]
    weights = patient_weights(groups, settings.resamples, settings.seed)
    jobs = {
        (_readable(probe, several, label), name): several
        for probe in settings.of_kind(label.kind)
        for name, several in contestants.items()
    }
    nothing = Contestant(pooled=np.zeros((len(groups), 0)))
    found: Scores = {}
    for (kind, name), several in {**jobs, ("mean", MEAN_PREDICTOR): [nothing]}.items():
        progress(f"{label.name}: {kind} on {name}")
        by_draw = [
            predict_out_of_fold(
                several[number % len(several)], kind, label, groups, folds, settings.seed + number
            ).score(label, weights)
            for number, folds in enumerate(draws)
        ]
        found[kind, name] = {metric: np.mean([scores[metric] for scores in by_draw], axis=0) for metric in by_draw[0]}
    return found


def _readable(probe: ProbeKind, several: Sequence[Contestant], label: Label) -> ProbeKind:
    """The probe itself, or the linear one where it needs tokens that a contestant has not."""
    return _linear(label) if probe == "attentive" and any(one.tokens is None for one in several) else probe


def _linear(label: Label) -> ProbeKind:
    return "ridge" if label.kind == "values" else "logistic"


def _rows(found: Scores, label: Label, num_patients: int) -> list[ProbeRow]:
    """A row per metric, probe and contestant, in this order."""
    metrics = VALUE_METRICS if label.kind == "values" else CLASS_METRICS
    return [_row(found, label, metric, kind, name, num_patients) for metric in metrics for kind, name in found]


def _row(found: Scores, label: Label, metric: Metric, kind: ProbeKind, name: str, num_patients: int) -> ProbeRow:
    scores = found[kind, name][metric]
    own = interval(scores)
    rivals = {control: _rival(found, kind, control, label) for control in CONTROLS if name not in CONTROLS}
    known = {control: rival[metric] for control, rival in rivals.items() if rival is not None}
    return ProbeRow(
        label=label.name,
        metric=metric,
        probe=kind,
        contestant=name,
        score=own.value,
        low=own.low,
        high=own.high,
        num_volumes=int(label.known.sum()),
        num_patients=num_patients,
        num_missing=label.num_missing,
        differences={control: interval(scores - rival) for control, rival in known.items()},
        beats=tuple(control for control, rival in known.items() if _clears(metric, own, interval(rival))),
    )


def _rival(found: Scores, kind: ProbeKind, control: str, label: Label) -> dict[Metric, np.ndarray] | None:
    """The control under the same probe, else under the linear one; the mean predictor is its own probe."""
    if control == MEAN_PREDICTOR:
        return found["mean", control]
    return found.get((kind, control)) or found.get((_linear(label), control))


def _clears(metric: Metric, own: Interval, rival: Interval) -> bool:
    """True where the whole interval lies on the better side of the rival's."""
    return own.low > rival.high if higher_is_better(metric) else own.high < rival.low
