"""An rsfMRI run -> float32 [1, S, S, S, T]: a window of frames, scaled, cut or padded about its middle.

Windows and scalings follow SwiFT (arXiv 2307.05916) and its version 2. Frames keep their own voxels: nothing is
resampled, as in the frame folders that other tools have prepared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data_setup.neuro.cube import centred
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.runs import RunStats, open_run

Scaling = Literal["none", "minmax", "znorm_zeroback", "znorm_minback"]


@dataclass(frozen=True, kw_only=True)
class FunctionalSettings:
    """sequence_length frames, each stride_within_seq after the one before. stride_between_seq: from the start of a
    window to the next, in windows (1: they touch, .5: they overlap by half). size: voxels a side.

    input_scaling_method: `none`; `minmax`: by the maximum of the run; `znorm_*`: by mean and deviation of the brain,
    background (voxels of 0) at 0 (zeroback) or where the formula puts it, lowest (minback).
    """

    size: int = 96
    sequence_length: int = 20
    stride_within_seq: int = 1
    stride_between_seq: float = 1.0
    input_scaling_method: Scaling = "znorm_zeroback"

    def __post_init__(self) -> None:
        for name, least in (("size", 2), ("sequence_length", 1), ("stride_within_seq", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"rsfMRI.{name} must be at least {least}; found {getattr(self, name)}")
        if not self.stride_between_seq > 0:
            raise ValueError(f"rsfMRI.stride_between_seq must be above 0; found {self.stride_between_seq}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (1, size, size, size, sequence_length)."""
        return (1, *(self.size,) * 3, self.sequence_length)

    @property
    def span(self) -> int:
        """Frames from the first of a window to its last, both counted."""
        return (self.sequence_length - 1) * self.stride_within_seq + 1


def window_starts(num_frames: int, settings: FunctionalSettings) -> range:
    """First frames of the windows of a run; raises NeuroFileError(too_short) where none fits."""
    if num_frames < settings.span:
        found = f"{num_frames} frames, a window needs {settings.span}"
        raise NeuroFileError(NeuroReason.TOO_SHORT, found)
    duration = settings.sequence_length * settings.stride_within_seq
    return range(0, num_frames - settings.span + 1, max(1, round(settings.stride_between_seq * duration)))


def check_run(path: Path, settings: FunctionalSettings) -> tuple[str, ...]:
    """Headers, names, statistics and one frame of a folder; returns what was odd. Raises NeuroFileError."""
    run = open_run(path)
    window_starts(run.num_frames, settings)
    if path.is_dir():
        run.frames([0])
        if settings.input_scaling_method != "none":
            run.stats()
    return run.notes if run.tr_s is None else (*run.notes, f"a TR of {run.tr_s:g} s")


def read_window(path: Path, settings: FunctionalSettings, place: float | None = None) -> torch.Tensor:
    """float32 [1, S, S, S, T]: the window at `place` in [0, 1) of all windows, None: the middle one.

    Raises NeuroFileError.
    """
    run = open_run(path)
    starts = window_starts(run.num_frames, settings)
    start = starts[len(starts) // 2 if place is None else int(place * len(starts))]
    frames = run.frames(range(start, start + settings.span, settings.stride_within_seq))
    stats = run.stats() if settings.input_scaling_method != "none" else None
    return prepared(frames, stats, settings)


def prepared(frames: np.ndarray, stats: RunStats | None, settings: FunctionalSettings) -> torch.Tensor:
    """float32 [X, Y, Z, T] -> [1, S, S, S, T]; without stats those of the window. Raises NeuroFileError(constant)."""
    if float(frames.min()) == float(frames.max()):
        raise NeuroFileError(NeuroReason.CONSTANT, f"every voxel is {float(frames.min()):g}")
    window, background = scaled(frames, stats or window_stats(frames), settings.input_scaling_method)
    return torch.from_numpy(centred(window, (settings.size,) * 3, background))[None]


def window_stats(frames: np.ndarray) -> RunStats:
    """Over voxels that are not 0. A 4-D file carries no statistics, and a gzip run would be unpacked whole for them."""
    brain = frames[frames != 0].astype(np.float64)
    return RunStats(float(brain.mean()), float(brain.std()) or 1.0, float(np.abs(brain).max()))


def scaled(frames: np.ndarray, stats: RunStats, method: Scaling) -> tuple[np.ndarray, float]:
    """The scaled frames, and the value of what lies outside them: a voxel of 0 after scaling; the lowest where the
    run has no voxels of 0, as raw EPI.
    """
    outside = frames == 0
    match method:
        case "none":
            window = frames
        case "minmax":
            window = frames / np.float32(stats.maximum)
        case "znorm_zeroback" | "znorm_minback":
            window = (frames - np.float32(stats.mean)) / np.float32(stats.std)
            if method == "znorm_zeroback":
                window[outside] = 0
                return window, 0.0
    return window, float(window[outside][0] if outside.any() else window.min())
