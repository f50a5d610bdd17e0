"""The `data:` section of a brain/stimulus run: where the film and the brains come from, and how they are cut in TRs."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from data_setup.neuro.film_phantom import FilmPhantomSettings
from data_setup.neuro.film_split import Alignment, FilmSplit, answer_trs, split_trs
from data_setup.neuro.film_video import PictureSettings

Mode = Literal["per_subject", "cross_subject"]
Source = Literal["phantom", "folder"]
VideoTarget = Literal["mean", "first"]


@dataclass(frozen=True, kw_only=True)
class FilmDataSettings:
    """source: a generated film, or a `folder` at `path` with fmri_folder/*.nii.gz (a run each), film_file,
    audio_codes_file and text_embeddings_file. What is derived from them goes to cache_dir, null: path/cache.

    fmri_files: pattern of the names in fmri_folder that count, where there are others, `*task-film*space-MNI*`.
    subjects: `all`, the number at the end of one's file name, or a list of numbers or names. mode: a sample is a TR
    with the mean of all brains (cross_subject), or a TR with one brain (per_subject).
    tr: seconds of a volume. fps, frame_skip: the encoder sees every frame_skip-th of fps pictures a second, scaled to
    video_height x video_width; video_target: what the decoder shows of a TR, their mean or the first.
    apply_hrf: pictures and text reach the encoder as late and as smeared as the blood; codes and video_target do not.
    train_split: share of the film, from its start, that trains; after gap_trs (null: as many as 30 s hold, and 20 at
    least) the rest validates. alignment: `shuffled` is the negative control. detrend, confounds: take a line, and
    columns of fMRIPrep's tables by name or pattern, out of each run, apart for what trains and what validates.
    max_trs: the first so many TRs alone. max_trim_trs: how many TRs the film, the codes, the text and the runs may
    differ in length; the longer ones lose their end.
    fmri_stats_file: normalise by the statistics of another run (fmri_normalization_stats.npz), not by one's own.
    """

    source: Source = "phantom"
    path: str | None = None
    cache_dir: str | None = None
    fmri_folder: str = "sherlock_nii"
    fmri_files: str = "*"
    film_file: str = "stimuli_Sherlock.m4v"
    audio_codes_file: str = "audio_codes.npz"
    text_embeddings_file: str = "text_embeddings.npz"
    fmri_stats_file: str | None = None
    detrend: bool = False
    confounds: tuple[str, ...] = ()
    phantom: FilmPhantomSettings = field(default_factory=FilmPhantomSettings)
    subjects: Any = "all"
    mode: Mode = "cross_subject"
    tr: float = 1.5
    fps: float = 25.0
    frame_skip: int = 4
    video_height: int = 90
    video_width: int = 160
    video_target: VideoTarget = "mean"
    num_codes: int = 1024
    apply_hrf: bool = True
    train_split: float = 0.8
    gap_trs: int | None = None
    alignment: Alignment = "aligned"
    max_trs: int | None = None
    max_trim_trs: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.subjects, list):
            object.__setattr__(self, "subjects", tuple(self.subjects))
        choices = {"source": Source, "mode": Mode, "alignment": Alignment, "video_target": VideoTarget}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"data.{name} must be {' or '.join(get_args(kind))}; found {getattr(self, name)}")
        if (self.path is None) != (self.source == "phantom"):
            raise ValueError(f"data.path is needed by the source folder only; source {self.source}, {self.path}")
        _check_subjects(self.subjects)
        if self.source == "phantom" and (self.detrend or self.confounds):
            raise ValueError("data.detrend and data.confounds are for the source folder: a phantom has neither")
        least = {"frame_skip": 1, "video_height": 1, "video_width": 1, "num_codes": 2, "max_trim_trs": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"data.{name} must be at least {lowest}; found {getattr(self, name)}")
        for name in ("tr", "fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"data.{name} must be above 0; found {getattr(self, name)}")
        if not 0 < self.train_split < 1:
            raise ValueError(f"data.train_split must be between 0 and 1; found {self.train_split}")
        if self.gap_trs is not None and self.gap_trs < 0:
            raise ValueError(f"data.gap_trs must be null or at least 0; found {self.gap_trs}")
        if self.max_trs is not None and self.max_trs < 2:
            raise ValueError(f"data.max_trs must be null or at least 2; found {self.max_trs}")

    @property
    def pictures(self) -> PictureSettings:
        """How a film file is cut."""
        return PictureSettings(
            tr=self.tr, fps=self.fps, frame_skip=self.frame_skip, height=self.video_height, width=self.video_width
        )

    def split(self, num_trs: int) -> FilmSplit:
        """Raises ValueError where a side stays empty."""
        return split_trs(num_trs, self.train_split, answer_trs(self.tr) if self.gap_trs is None else self.gap_trs)

    def chosen(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the subjects found that the settings name, in the order found; raises ValueError for one absent."""
        if self.subjects == "all":
            return found
        wanted = self.subjects if isinstance(self.subjects, tuple) else (self.subjects,)
        named = [name for name in found if any(_is(name, subject) for subject in wanted)]
        absent = [subject for subject in wanted if not any(_is(name, subject) for name in found)]
        if absent:
            raise ValueError(f"data.subjects names {', '.join(map(str, absent))}; there are: {', '.join(found)}")
        return tuple(named)


def _check_subjects(subjects: object) -> None:
    """Raises ValueError for what is neither `all`, nor a number, nor a list of numbers or names."""
    listed = subjects if isinstance(subjects, tuple) else (subjects,)
    right = [isinstance(subject, int | str) and not isinstance(subject, bool) for subject in listed]
    if not listed or not all(right):
        raise ValueError(f"data.subjects must be all, a number, or a list of numbers or names; found {subjects}")


def _is(name: str, subject: int | str) -> bool:
    """Whether `subject` means the one called `name`: by name, or by the digits at its end."""
    return name == subject or (isinstance(subject, int) and number_of(name) == subject)


def number_of(name: str) -> int | None:
    """The digits at the end of a subject's name, None without."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else None
