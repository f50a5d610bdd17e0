"""A film -> what needs no network: the bar of the brain, predictors that see its past, and its noise ceiling."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_setup.neuro.film_data import Film
from oct_foundation.diagnostics.naive_predictors import autoregressive, fit_autoregression, persistence, ridge
from oct_foundation.diagnostics.noise_ceiling import Ceiling, agreement, noise_ceiling

log = logging.getLogger(__name__)

_PROJECTED = 2048  # features of a linear baseline: 435,072 of a TR would be 3 GB in float64


@dataclass(frozen=True, kw_only=True)
class Naive:
    """What needs no network, computed once: the bar of fmri, predictors that see its past, and its noise ceiling."""

    baselines: dict[str, np.ndarray]
    beside: dict[str, np.ndarray]
    ceiling: Ceiling | None

    @classmethod
    def of(cls, film: Film) -> "Naive":
        """What cannot be computed on so few TRs is left out, with a warning."""
        per_subject = film.mode == "per_subject"
        brains = list(film.subject_series) if per_subject else [film.fmri]
        train, held = [brain[film.train] for brain in brains], [brain[film.val] for brain in brains]
        baselines, beside = {}, {"persistence": persistence(train, held)}
        try:
            coefficients = fit_autoregression(train)
            mean = np.concatenate(train).mean(axis=0)
            beside[f"AR({len(coefficients)})"] = autoregressive(coefficients, mean, held)
        except ValueError as error:
            log.warning("no autoregression stands beside the model: %s", error)
        try:
            features = _linear_features(film.video, film.text)
            said = ridge(features[film.train], film.fmri[film.train], features[film.val])
            baselines["ridge on stimuli"] = np.tile(said, (len(brains), 1))
        except ValueError as error:
            log.warning("no linear map of the stimuli stands beside the model: %s", error)
        ceiling, sentence = _ceiling(film)
        log.info("%s", sentence)
        as_float32 = [
            {name: value.astype(np.float32) for name, value in group.items()} for group in (baselines, beside)
        ]
        return cls(baselines=as_float32[0], beside=as_float32[1], ceiling=ceiling)


def _ceiling(film: Film) -> tuple[Ceiling | None, str]:
    """Of the held-out TRs; the training TRs say which voxels are alike."""
    if len(film.val) < 3:
        return None, "No noise ceiling: fewer than 3 held-out TRs."
    train, held = (film.subject_series[:, trs] for trs in (film.train, film.val))
    target: Literal["mean", "subject"] = "subject" if film.mode == "per_subject" else "mean"
    alike = agreement(train) if len(train) > 1 else None
    return noise_ceiling(held, target, agreed_elsewhere=alike)


def _linear_features(video: np.ndarray, text: np.ndarray) -> np.ndarray:
    """float64 [T, F]: pictures and text side by side; more than _PROJECTED values of a picture as random mixes of them
    (Johnson and Lindenstrauss), which a linear map can use as well.
    """
    if video.shape[1] <= _PROJECTED:
        return np.concatenate([video.astype(np.float64), text.astype(np.float64)], axis=1)
    rng, mixes = np.random.default_rng(0), np.zeros((len(video), _PROJECTED))
    for start in range(0, video.shape[1], 8192):
        part = video[:, start : start + 8192].astype(np.float32)
        mixes += part @ rng.standard_normal((part.shape[1], _PROJECTED), np.float32)
    return np.concatenate([mixes / video.shape[1] ** 0.5, text.astype(np.float64)], axis=1)
