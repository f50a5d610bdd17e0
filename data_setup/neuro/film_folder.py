"""A folder with a film, its prepared features and the brains that watched it -> RawFilm, all cut to one length.

TR n of each part is taken to be the same moment. So parts may differ by a few TRs at their end and no more: a larger
difference is a wrong file or a late start, and an error.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from data_setup.neuro.brain_mask import MASK_TRS, masked, save_mask, varying, vote
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.extras import extra
from data_setup.neuro.film_settings import FilmDataSettings, number_of
from data_setup.neuro.film_source import RawFilm
from data_setup.neuro.film_video import read_pictures
from data_setup.neuro.fmri_cleaning import cleaned, confounds_of, read_confounds
from data_setup.neuro.nifti import NiftiFile, open_nifti
from data_setup.neuro.stimuli import MAKE_CODES, MAKE_TEXT, read_audio_codes, read_text_embeddings

log = logging.getLogger(__name__)

_IMAGE = re.compile(r"(?P<stem>.+)\.nii(?:\.gz)?")
_RUN = re.compile(r"_run-?(\d+)(?=_|$)")
_BOLD = re.compile(r"(?P<subject>sub-[A-Za-z0-9]+)(?:_.+)?_bold")  # BIDS, as fMRIPrep writes it


@dataclass(frozen=True, kw_only=True)
class FilmFiles:
    """runs: of each subject, in the order of the film; confounds: the table of each run, where any are asked for."""

    film: Path
    audio_codes: Path
    text_embeddings: Path
    fmri_stats: Path | None
    runs: Mapping[str, tuple[Path, ...]]
    confounds: Mapping[Path, Path]

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that is read."""
        runs = [path for paths in self.runs.values() for path in paths]
        given = [self.fmri_stats] if self.fmri_stats else []
        return (self.film, self.audio_codes, self.text_embeddings, *given, *runs, *self.confounds.values())


def find_files(settings: FilmDataSettings) -> FilmFiles:
    """What the settings name below data.path, by name alone; raises ValueError for what is missing.

    A subject is called as its file without `.nii.gz` and `_run-N`: SUBJECT_run-1.nii.gz, SUBJECT_run-2.nii.gz are runs
    of one. Where names are those of BIDS, `sub-01_..._bold.nii.gz`, it is sub-01, and other images are left out.
    """
    root = Path(settings.path or "")
    needed = {
        root / settings.film_file: "put the film there, or name it in data.film_file",
        root / settings.audio_codes_file: f"to make it, {MAKE_CODES}",
        root / settings.text_embeddings_file: f"to make it, {MAKE_TEXT}",
    }
    if settings.fmri_stats_file:
        needed[Path(settings.fmri_stats_file)] = "name another in data.fmri_stats_file, or null"
    for path, remedy in needed.items():
        if not path.is_file():
            raise ValueError(f"{path} does not exist: {remedy}")
    found = _runs(root / settings.fmri_folder, settings.fmri_files)
    order = tuple(sorted(found, key=lambda name: (number_of(name) or 0, name)))
    runs = {name: found[name] for name in settings.chosen(order)}
    every = [path for paths in runs.values() for path in paths]
    return FilmFiles(
        film=root / settings.film_file,
        audio_codes=root / settings.audio_codes_file,
        text_embeddings=root / settings.text_embeddings_file,
        fmri_stats=Path(settings.fmri_stats_file) if settings.fmri_stats_file else None,
        runs=runs,
        confounds={path: confounds_of(path) for path in every} if settings.confounds else {},
    )


def _runs(folder: Path, pattern: str) -> dict[str, tuple[Path, ...]]:
    """By subject, in the order of their numbers, from the folder and those in it. Raises ValueError for none, and for
    two files of one run.
    """
    named = [
        (path, image["stem"])
        for path in sorted(folder.rglob("*"))
        if fnmatchcase(path.name, pattern)
        and (image := _IMAGE.fullmatch(path.name))
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    bold = [(path, stem, found["subject"]) for path, stem in named if (found := _BOLD.fullmatch(stem))]
    runs: dict[str, dict[int, Path]] = {}
    for path, stem, subject in bold or [(path, stem, _RUN.sub("", stem)) for path, stem in named]:
        number = _RUN.search(stem)
        other = runs.setdefault(subject, {}).setdefault(int(number[1]) if number else 0, path)
        if other != path:
            both = f"{other.relative_to(folder)} and {path.relative_to(folder)}"
            raise ValueError(f"{folder}: {both} are one run of {subject}: say by data.fmri_files which names count")
    if not runs:
        raise ValueError(
            f"{folder} holds no .nii.gz (data.fmri_files={pattern}): put a run of each subject there, or name its "
            "place in data.fmri_folder"
        )
    return {subject: tuple(path for _, path in sorted(paths.items())) for subject, paths in runs.items()}


def read_folder(settings: FilmDataSettings, files: FilmFiles, mask_file: Path) -> RawFilm:
    """Reads all and writes the brain mask; raises ValueError for a file that cannot be used or does not fit."""
    for package in ("av", "nilearn"):  # before minutes of work
        extra(package)
    codes = read_audio_codes(files.audio_codes, num_codes=settings.num_codes, tr=settings.tr)
    text = read_text_embeddings(files.text_embeddings, tr=settings.tr)
    brains = {name: [_opened(path) for path in paths] for name, paths in files.runs.items()}
    notes = _check_grids(files, brains) + _check_clock(brains, settings.tr)
    lengths = {"codes": len(codes), "text": len(text)}
    lengths |= {name: sum(run.shape[3] for run in runs) for name, runs in brains.items()}
    shortest = _common_length(lengths, settings.max_trim_trs)
    limit = min(shortest + settings.max_trim_trs + 1, settings.max_trs or shortest + settings.max_trim_trs + 1)
    pictures = read_pictures(files.film, settings.pictures, limit)
    if len(pictures) != settings.max_trs:
        lengths["film" if len(pictures) < limit else "film at least"] = len(pictures)
    num_trs = min(_common_length(lengths, settings.max_trim_trs), settings.max_trs or len(pictures))
    if len(set(lengths.values())) > 1:
        notes += (f"the first {num_trs} TRs are used; TRs of each part: {lengths}",)
    runs = _run_lengths(brains, num_trs)
    series = _series(settings, files, brains, runs, mask_file)
    for note in notes:
        log.warning("%s", note)
    return RawFilm(
        pictures=pictures[:num_trs],
        audio=codes[:num_trs],
        num_codes=settings.num_codes,
        text=text[:num_trs],
        series=series,
        subject_ids=tuple(brains),
        runs=runs,
        notes=notes,
    )


def _series(
    settings: FilmDataSettings,
    files: FilmFiles,
    brains: Mapping[str, list[NiftiFile]],
    runs: tuple[int, ...],
    mask_file: Path,
) -> list[np.ndarray]:
    """float32 [T, voxels] of each subject, through the mask that all have voted for, less drift and confounds where the
    settings say so. The vote looks at the first 200 TRs, and at training TRs only.
    """
    split = settings.split(sum(runs))
    first = min(MASK_TRS, len(split.train), runs[0])
    ballots = [varying(_voxels(files.runs[name][0], brain[0], first)) for name, brain in brains.items()]
    affine = next(iter(brains.values()))[0].image.affine
    mask = save_mask(vote(ballots), affine, mask_file)
    starts = np.cumsum([0, *runs])
    series = []
    for name, brain in brains.items():
        parts = []
        for path, run, start, length in zip(files.runs[name], brain, starts, runs, strict=False):  # the end may be cut
            values = masked(_voxels(path, run, length), mask)
            if (values == values[0]).all():
                raise ValueError(f"{path.name}: no voxel of the brain mask varies over {length} TRs: is the run blank?")
            sides = [trs[(trs >= start) & (trs < start + length)] - start for trs in split]
            parts.append(_cleaned(settings, files, path, run, values, sides))
        series.append(np.concatenate(parts))
    return series


def _cleaned(
    settings: FilmDataSettings,
    files: FilmFiles,
    path: Path,
    run: NiftiFile,
    values: np.ndarray,
    sides: list[np.ndarray],
) -> np.ndarray:
    """A run [T, voxels] as data.detrend and data.confounds want it; sides: its TRs that train, and that validate."""
    if not (settings.detrend or settings.confounds):
        return values
    table = files.confounds.get(path)
    confounds = read_confounds(table, settings.confounds, run.shape[3])[: len(values)] if table else None
    return cleaned(values, sides, settings.detrend, confounds, path.name)


def _run_lengths(brains: Mapping[str, list[NiftiFile]], num_trs: int) -> tuple[int, ...]:
    """TRs of each run, num_trs together; raises ValueError where subjects change runs at different TRs."""
    ends = {name: tuple(np.cumsum([run.shape[3] for run in runs]).tolist()) for name, runs in brains.items()}
    borders = {name: tuple(end for end in of_runs if end < num_trs) for name, of_runs in ends.items()}
    if len(set(borders.values())) > 1:
        raise ValueError(f"subjects change runs at different TRs: {borders}; leave some out by data.subjects")
    inner = next(iter(borders.values()))
    return tuple(np.diff([0, *inner, num_trs]).tolist())


def _common_length(lengths: Mapping[str, int], max_trim_trs: int) -> int:
    """The shortest part's TRs; raises ValueError where another is longer by more than max_trim_trs."""
    shortest = min(lengths.values())
    if max(lengths.values()) - shortest > max_trim_trs:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"parts differ by more than data.max_trim_trs={max_trim_trs} TRs: {found}. Do all of them begin with the "
            f"film, and is data.tr right?"
        )
    return shortest


def _check_grids(files: FilmFiles, brains: Mapping[str, list[NiftiFile]]) -> tuple[str, ...]:
    """What was odd in the headers; raises ValueError for a run that is no series or on another grid than the first."""
    notes = []
    (first_name, first_runs) = next(iter(brains.items()))
    wanted = first_runs[0]
    for name, runs in brains.items():
        for path, run in zip(files.runs[name], runs, strict=True):
            if len(run.shape) != 4:
                raise ValueError(f"{path.name}: one volume of shape {list(run.shape)} where a run is needed")
            same = run.shape[:3] == wanted.shape[:3] and np.allclose(run.image.affine, wanted.image.affine, atol=1e-3)
            if not same:
                raise ValueError(
                    f"{path.name}: {NeuroReason.WRONG_DIMS}: a grid of {list(run.shape[:3])} voxels, affine "
                    f"{run.image.affine.round(3).tolist()}; {first_name} has {list(wanted.shape[:3])}, "
                    f"{wanted.image.affine.round(3).tolist()}. Register all subjects to one space, on one grid"
                )
            notes += [f"{path.name}: {note}" for note in run.notes]
    return tuple(notes)


def _check_clock(brains: Mapping[str, list[NiftiFile]], tr: float) -> tuple[str, ...]:
    """A note where headers tell another TR: they are often wrong, so that data.tr decides."""
    others = sorted(
        {run.tr_s for runs in brains.values() for run in runs if run.tr_s and abs(run.tr_s - tr) > 0.01 * tr}
    )
    return (f"headers tell a TR of {', '.join(f'{s:g}' for s in others)} s; data.tr={tr:g} is used",) if others else ()


def _opened(path: Path) -> NiftiFile:
    with _named(path):
        return open_nifti(path)


def _voxels(path: Path, run: NiftiFile, length: int) -> np.ndarray:
    """float32 [X, Y, Z, length]: the first so many volumes."""
    with _named(path):
        return run.voxels(slice(0, length))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file into a ValueError that names it."""
    try:
        yield
    except NeuroFileError as error:
        raise ValueError(f"{path.name}: {error}") from None
