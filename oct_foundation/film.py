"""A film cut by the scanner's clock: shapes of one TR, batches of TRs, and what the training TRs are like.

Floor 0, as batch.py: data, model, losses and evaluation all speak of these. Modalities: video, audio, text, fmri.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from oct_foundation.batch import TensorBatch

CONTINUOUS = ("video", "text", "fmri")
AUDIO = "audio"
FILM_MODALITIES = ("video", "audio", "text", "fmri")


@dataclass(frozen=True, kw_only=True)
class FilmShape:
    """What a TR holds: `frames` pictures [height, width, 3]; `codes_per_tr` codes of each of `codebooks`, from 0 to
    num_codes - 1; a text embedding of text_dim; an answer of `voxels`. Raises ValueError for a size below 1.
    """

    frames: int
    height: int
    width: int
    codebooks: int
    codes_per_tr: int
    text_dim: int
    voxels: int
    num_codes: int = 1024

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"{item.name} must be at least 1; found {getattr(self, item.name)}")

    @property
    def frame_dim(self) -> int:
        """Values of one picture: what the decoder shows of a TR."""
        return self.height * self.width * 3

    @property
    def video_dim(self) -> int:
        """Values of all pictures of a TR: what the encoder sees."""
        return self.frames * self.frame_dim

    @property
    def audio_dim(self) -> int:
        """Codes of a TR."""
        return self.codebooks * self.codes_per_tr


@dataclass(frozen=True, kw_only=True)
class FilmBatch(TensorBatch):
    """B TRs. video: float32 [B, video_dim], 0 to 1, after the blood's response a little beyond; video_target: float32
    [B, frame_dim], the picture to show, 0 to 1; audio: int64 [B, audio_dim], all codes of the first book, then of the
    next; text: float32 [B, text_dim]; fmri: float32 [B, voxels], z-scored.
    """

    video: torch.Tensor
    video_target: torch.Tensor
    audio: torch.Tensor
    text: torch.Tensor
    fmri: torch.Tensor

    @property
    def num_samples(self) -> int:
        """B."""
        return self.video.shape[0]


@dataclass(frozen=True, kw_only=True)
class TargetStatistics:
    """Of the training TRs, fixed for a run: all that predict-the-mean and guess-the-commonest know.

    mean: float32 [features] of each continuous target (video: of video_target). variance: the mean over features of
    their variance about that mean. std: of all values of the target together. unigram: float32 [codebooks, num_codes],
    how frequent each code is, none at 0. num_trs: how many TRs they come from.
    """

    mean: Mapping[str, torch.Tensor]
    variance: Mapping[str, float]
    std: Mapping[str, float]
    unigram: torch.Tensor
    num_trs: int
