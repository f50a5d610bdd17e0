"""RawFilm -> the arrays that a model is trained on: brains normalised, features delayed, both in their order."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_setup.neuro.film_cache import Cached
from data_setup.neuro.film_settings import FilmDataSettings
from data_setup.neuro.film_source import RawFilm
from data_setup.neuro.film_split import brain_order
from data_setup.neuro.fmri_normalization import STATS_FILE, FmriNormalization
from data_setup.neuro.hrf import convolved, glover_kernel


def derived(settings: FilmDataSettings, raw: RawFilm, folder: Path | None) -> Cached:
    """The arrays of Film, and what else it needs to know. Where there is a folder, the brains' statistics are written
    to it. Raises ValueError where a split stays empty or given statistics do not fit.
    """
    split = settings.split(raw.num_trs)
    normalization = _normalization(settings, raw, split.train)
    if folder:
        normalization.save(folder / STATS_FILE)
    series = np.empty((len(raw.series), raw.num_trs, raw.shape.voxels), np.float32)
    order = brain_order(raw.num_trs, split, settings.alignment, settings.tr)
    for subject, brain in enumerate(raw.series):
        series[subject] = normalization.apply(brain, subject)[order]
    arrays = {"subject_series": series, "fmri": series.mean(axis=0), "train": split.train, "val": split.val}
    facts = {
        "shape": asdict(raw.shape),
        "subject_ids": list(raw.subject_ids),
        "signal_share": raw.signal_share,
        "described": {
            "tr_s": settings.tr,
            "hrf": settings.apply_hrf,
            "detrend": settings.detrend,
            "confounds": list(settings.confounds),
            "runs": list(raw.runs),
            "constant_voxels": normalization.num_constant,
            "notes": list(raw.notes),
        },
    }
    return Cached(arrays | _stimuli(settings, raw), facts)


def _normalization(settings: FilmDataSettings, raw: RawFilm, train: np.ndarray) -> FmriNormalization:
    """From the training TRs, or from the file that the settings name."""
    if settings.fmri_stats_file is None:
        return FmriNormalization.fit(raw.series, raw.subject_ids, raw.runs, train)
    given = FmriNormalization.load(Path(settings.fmri_stats_file))
    try:
        return given.of(raw.subject_ids, raw.runs, raw.shape.voxels)
    except ValueError as error:
        raise ValueError(f"data.fmri_stats_file={settings.fmri_stats_file}: {error}") from None


def _stimuli(settings: FilmDataSettings, raw: RawFilm) -> dict[str, np.ndarray]:
    """video, video_target, audio and text. The target is the film itself, from 0 to 1: only inputs are delayed."""
    flat = raw.pictures.reshape(raw.num_trs, -1)
    kernel = glover_kernel(settings.tr) if settings.apply_hrf else np.ones(1)
    shown = raw.pictures.mean(axis=1, dtype=np.float32) if settings.video_target == "mean" else raw.pictures[:, 0]
    return {
        "video": convolved(flat, kernel / 255, np.float16),
        "video_target": (shown / np.float32(255)).reshape(raw.num_trs, -1),
        "audio": raw.audio.reshape(raw.num_trs, -1),
        "text": convolved(raw.text, kernel),
    }
