"""Which words fit a split: those that the run wrote down for this very step, else those of the predictions made now."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oct_foundation.diagnostics.learned import ModalityVerdict
from oct_foundation.diagnostics.noise_ceiling import Ceiling
from pretraining.film_naive import Naive
from pretraining.film_series import BEST, FOLDER, LAST, FilmSeries
from pretraining.reconstruct.opening import OpenedRun
from pretraining.reconstruct.samples import Predictions

log = logging.getLogger("octfm")


class Judged(NamedTuple):
    """The verdicts, what they rest on in a sentence, and the brain's noise ceiling, where subjects tell it."""

    verdicts: list[ModalityVerdict]
    basis: str
    ceiling: Ceiling | None


def judge(run: OpenedRun, held_out: Predictions) -> Judged:
    """Of held-out TRs: of TRs that were trained on there is none to give."""
    if (written := _written(run, held_out)) is not None:
        path, series = written
        return Judged(
            series.verdicts(), f"From {FOLDER}/{path.name}, which the run wrote at this step.", series.ceiling
        )
    series = series_of(run, held_out)
    return Judged(series.verdicts(), "From the predictions made for this page.", series.ceiling)


def _written(run: OpenedRun, held_out: Predictions) -> tuple[Path, FilmSeries] | None:
    """The run's own series of this step, if it is of the same TRs and brains."""
    if run.folder is None:
        return None
    for path in (run.folder / FOLDER / name for name in (BEST, LAST)):
        if not path.is_file():
            continue
        try:
            series = FilmSeries.load(path)
        except ValueError as error:
            log.warning("%s", error)
            continue
        same = np.array_equal(series.trs, held_out.trs) and np.array_equal(series.runs, held_out.runs)
        if series.step == run.step and same and np.allclose(series.truth["fmri"], held_out.truth["fmri"], atol=1e-4):
            return path, series
    return None


def series_of(run: OpenedRun, held_out: Predictions) -> FilmSeries:
    """As the run would write it down: with the predictors that need no network."""
    naive = Naive.of(run.task.film)
    costs = {"model": held_out.code_costs.mean(1), "unigram": held_out.constant_costs.mean(1)}
    return FilmSeries(
        step=run.step,
        trs=held_out.trs,
        runs=held_out.runs,
        truth=held_out.truth,
        prediction=held_out.prediction,
        costs=costs | {"shifted": held_out.shifted_costs},
        mean=held_out.mean,
        variance=held_out.variance,
        baselines=naive.baselines,
        beside=naive.beside,
        ceiling=naive.ceiling,
        complete=True,
        leak_free=run.task.config.data.fmri_stats_file is None,
    )
