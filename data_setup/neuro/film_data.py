"""The settings of a film -> its arrays TR by TR, split, normalised and aligned, with what the training TRs are like."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data_setup.neuro import film_cache
from data_setup.neuro.film_arrays import derived
from data_setup.neuro.film_cache import Cached
from data_setup.neuro.film_folder import find_files, read_folder
from data_setup.neuro.film_phantom import phantom_film
from data_setup.neuro.film_settings import FilmDataSettings, Mode
from data_setup.neuro.film_source import NoiseCeiling
from data_setup.neuro.film_split import Alignment
from data_setup.neuro.film_statistics import training_statistics
from oct_foundation.film import FilmShape, TargetStatistics

ARRAYS_FILE, MASK_FILE = "film.safetensors", "brain_mask.nii.gz"


@dataclass(frozen=True, kw_only=True)
class Film:
    """T TRs of a film and of the brains that watched it.

    video: float16 [T, video_dim], what the encoder sees; video_target: float32 [T, frame_dim], what the decoder shows;
    audio: int64 [T, audio_dim]; text: float32 [T, text_dim]; subject_series: float32 [subjects, T, voxels], z-scored
    by each subject's own training TRs; fmri: float32 [T, voxels], their mean, not scaled again: it varies by as much
    as subjects agree, which statistics.variance tells, and a noise ceiling from the series is that of the target.
    train, val: int64, TRs in time order.

    statistics: of the training samples, of all subjects where the mode is per_subject. ceiling: what a perfect model
    of the film would reach, where that is known; of the brain's reliability, so an alignment `shuffled` leaves it.
    described: facts in words and numbers.
    """

    shape: FilmShape
    mode: Mode
    alignment: Alignment
    subject_ids: tuple[str, ...]
    video: np.ndarray
    video_target: np.ndarray
    audio: np.ndarray
    text: np.ndarray
    fmri: np.ndarray
    subject_series: np.ndarray
    train: np.ndarray
    val: np.ndarray
    statistics: TargetStatistics
    ceiling: NoiseCeiling | None
    described: Mapping[str, Any]

    @property
    def num_trs(self) -> int:
        """T."""
        return len(self.fmri)

    def facts(self) -> dict[str, Any]:
        """For the summary of a run."""
        between = self.num_trs - len(self.train) - len(self.val)
        return {
            "trs": {"all": self.num_trs, "train": len(self.train), "gap": between, "val": len(self.val)},
            "mode": self.mode,
            "alignment": self.alignment,
            "subjects": list(self.subject_ids),
            "voxels": self.shape.voxels,
            "ceiling": None if self.ceiling is None else {"fvu": self.ceiling.fvu, "r": self.ceiling.r},
            **self.described,
        }

    def fingerprint(self) -> str:
        """Changes with any value that trains or validates, and with the split; not with where the files lie."""
        names = ["video", "video_target", "audio", "text", "train", "val"]
        names.append("subject_series" if self.mode == "per_subject" else "fmri")
        return film_cache.fingerprint({name: getattr(self, name) for name in names})


def open_film(settings: FilmDataSettings, cache_dir: Path | None = None) -> Film:
    """The film that the settings describe. A folder's arrays, its brain mask and its fmri_normalization_stats.npz lie
    in a folder of cache_dir (None: settings.cache_dir, else path/cache) named by the settings and files; one that is
    there is read without writing anything. A phantom is made anew, in less than
    a second; its statistics are written where there is a cache_dir.

    Raises ValueError for files that are missing, damaged or do not fit, and for a split with an empty side.
    """
    if cache_dir is None and settings.cache_dir:
        cache_dir = Path(settings.cache_dir)
    if settings.source == "phantom":
        whole = phantom_film(settings.phantom, settings.tr)
        raw = whole.part(settings.max_trs or whole.num_trs, settings.chosen(whole.subject_ids))
        folder = cache_dir / _key(settings, ()) if cache_dir else None
        return _film(settings, derived(settings, raw, folder))
    files = find_files(settings)
    folder = (cache_dir or Path(settings.path or "") / "cache") / _key(settings, files.all)
    cached = film_cache.load(folder / ARRAYS_FILE)
    if cached is None:
        with film_cache.locked(folder):
            cached = film_cache.load(folder / ARRAYS_FILE)  # another process may have been faster
            if cached is None:
                cached = derived(settings, read_folder(settings, files, folder / MASK_FILE), folder)
                film_cache.save(folder / ARRAYS_FILE, cached)
    return _film(settings, cached)


def _key(settings: FilmDataSettings, files: tuple[Path, ...]) -> str:
    """Of every setting of a film but the cache's place, and of none that a run has added, as the number of workers."""
    known = {item.name for item in fields(FilmDataSettings)} - {"cache_dir"}
    chosen = {name: value for name, value in asdict(settings).items() if name in known}
    return film_cache.cache_key(chosen, files)


def _film(settings: FilmDataSettings, cached: Cached) -> Film:
    arrays, facts = cached
    shape, share = FilmShape(**facts["shape"]), facts["signal_share"]
    one_brain = settings.mode == "per_subject"
    brains = arrays["subject_series" if one_brain else "fmri"]
    targets = {"video": arrays["video_target"], "text": arrays["text"], "fmri": brains, "audio": arrays["audio"]}
    averaged = 1 if one_brain else len(facts["subject_ids"])
    return Film(
        shape=shape,
        mode=settings.mode,
        alignment=settings.alignment,
        subject_ids=tuple(facts["subject_ids"]),
        statistics=training_statistics(targets, arrays["train"], shape),
        ceiling=None if share is None else NoiseCeiling.of_average(share, averaged),
        described=facts["described"],
        **arrays,
    )
