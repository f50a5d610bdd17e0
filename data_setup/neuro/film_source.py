"""What a source of films gives: stimuli and brains TR by TR, as they were measured; no TR knows of a split yet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from oct_foundation.film import FilmShape


@dataclass(frozen=True, kw_only=True)
class NoiseCeiling:
    """The best that any model can reach on the brain: fvu, the share of variance that stays unexplained, and r, the
    correlation over time.
    """

    fvu: float
    r: float

    @classmethod
    def of_average(cls, signal_share: float, num_subjects: int) -> "NoiseCeiling":
        """Of the mean of `num_subjects` brains, each of which shares `signal_share` of its variance with all others.

        q = N s / (1 + (N - 1) s) is the mean's reliability; fvu = 1 - q, r = sqrt(q) (Spearman 1910, Brown 1910).
        """
        reliability = num_subjects * signal_share / (1 + (num_subjects - 1) * signal_share)
        return cls(fvu=1 - reliability, r=math.sqrt(reliability))


@dataclass(frozen=True, kw_only=True)
class RawFilm:
    """T TRs. pictures: uint8 [T, frames, height, width, 3]; audio: int64 [T, codebooks, codes_per_tr], 0 to num_codes
    - 1; text: float32 [T, text_dim]; series: float32 [T, voxels] of each subject, in the scanner's units; runs: how
    many TRs each run has, T together. signal_share: what a voxel's variance shares with other subjects', where known.
    notes: what was odd or left out.
    """

    pictures: np.ndarray
    audio: np.ndarray
    num_codes: int
    text: np.ndarray
    series: Sequence[np.ndarray]
    subject_ids: tuple[str, ...]
    runs: tuple[int, ...]
    signal_share: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.pictures), len(self.audio), len(self.text), *map(len, self.series), sum(self.runs)}
        assert len(lengths) == 1, f"parts of different lengths: {sorted(lengths)}"  # sources trim them, and say so
        assert len(self.series) == len(self.subject_ids)

    @property
    def num_trs(self) -> int:
        """T."""
        return len(self.pictures)

    def part(self, num_trs: int, subject_ids: Sequence[str]) -> "RawFilm":
        """The first num_trs TRs, with these subjects only."""
        ends = np.minimum(np.cumsum(self.runs), num_trs)
        return replace(
            self,
            pictures=self.pictures[:num_trs],
            audio=self.audio[:num_trs],
            text=self.text[:num_trs],
            series=[self.series[self.subject_ids.index(name)][:num_trs] for name in subject_ids],
            subject_ids=tuple(subject_ids),
            runs=tuple(length for length in np.diff(ends, prepend=0).tolist() if length),
        )

    @property
    def shape(self) -> FilmShape:
        """Of one TR."""
        _, frames, height, width, _ = self.pictures.shape
        _, codebooks, codes_per_tr = self.audio.shape
        return FilmShape(
            frames=frames,
            height=height,
            width=width,
            codebooks=codebooks,
            codes_per_tr=codes_per_tr,
            text_dim=self.text.shape[1],
            voxels=self.series[0].shape[1],
            num_codes=self.num_codes,
        )
