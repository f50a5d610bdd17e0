"""An rsfMRI run on disk, a folder of frames or a 4-D NIfTI, as one thing: so many frames, read only when asked for."""

import pickle
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.nifti import NiftiFile, open_nifti

_FRAME = re.compile(r"frame_(\d+)\.pt")
STATS_FILE = "global_stats.pt"


class RunStats(NamedTuple):
    """Of the voxels inside the brain, in stored units."""

    mean: float
    std: float
    maximum: float


class Run(Protocol):
    """num_frames frames; tr_s: seconds from one to the next, None where the file does not tell."""

    num_frames: int
    tr_s: float | None
    notes: tuple[str, ...]

    def frames(self, numbers: Sequence[int]) -> np.ndarray:
        """float32 [X, Y, Z, n]; raises NeuroFileError."""
        ...

    def stats(self) -> RunStats | None:
        """Stored beside the run; None where the form has no place for them."""
        ...


class FrameFolder:
    """`frame_0.pt` to `frame_N.pt`, one tensor each, (X, Y, Z) with or without an axis of length 1 at an end, and
    `global_stats.pt`. Loaded with weights_only, for a pickle can run any code. Raises NeuroFileError(missing,
    bad_frame).
    """

    tr_s: float | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NeuroFileError(NeuroReason.MISSING, "no such folder of frames")
        self._folder = folder
        numbers = sorted(int(found[1]) for path in folder.iterdir() if (found := _FRAME.fullmatch(path.name)))
        if not numbers:
            raise NeuroFileError(NeuroReason.MISSING, "the folder holds no frame_N.pt")
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            lost = next(number for number in range(numbers[0], numbers[-1]) if number not in numbers)
            raise NeuroFileError(NeuroReason.BAD_FRAME, f"frame_{lost}.pt is missing between others")
        self._first = numbers[0]
        self.num_frames = len(numbers)

    def frames(self, numbers: Sequence[int]) -> np.ndarray:
        """float32 [X, Y, Z, n]; raises NeuroFileError(bad_frame, unsafe_pickle, not_finite)."""
        loaded = [self._frame(self._first + number) for number in numbers]
        shapes = {frame.shape for frame in loaded}
        if len(shapes) > 1:
            raise NeuroFileError(NeuroReason.BAD_FRAME, f"frames of one run differ in shape: {sorted(shapes)}")
        return np.stack(loaded, axis=-1)

    def stats(self) -> RunStats:
        """Of `global_stats.pt`; raises NeuroFileError(no_stats, unsafe_pickle)."""
        path = self._folder / STATS_FILE
        if not path.exists():
            raise NeuroFileError(NeuroReason.NO_STATS, f"no {STATS_FILE} beside the frames")
        found = _loaded(path)
        try:
            stats = RunStats(*(float(found[name]) for name in ("global_mean", "global_std", "global_max")))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise NeuroFileError(NeuroReason.NO_STATS, f"{STATS_FILE} lacks its three numbers") from None
        if not (np.isfinite(stats).all() and stats.std > 0 and stats.maximum > 0):
            raise NeuroFileError(NeuroReason.NO_STATS, f"{STATS_FILE} says {tuple(stats)}")
        return stats

    def _frame(self, number: int) -> np.ndarray:
        frame = _loaded(self._folder / f"frame_{number}.pt")
        if not isinstance(frame, torch.Tensor) or frame.is_complex():
            raise NeuroFileError(NeuroReason.BAD_FRAME, f"frame_{number}.pt holds {type(frame).__name__}")
        shape = frame.shape
        if frame.ndim > 3 and shape[0] == 1:
            frame = frame[0]
        if frame.ndim > 3 and shape[-1] == 1:
            frame = frame[..., 0]
        if frame.ndim != 3:
            raise NeuroFileError(NeuroReason.BAD_FRAME, f"frame_{number}.pt has the shape {tuple(shape)}")
        array = frame.to(torch.float32).numpy()
        if not np.isfinite(array).all():
            raise NeuroFileError(NeuroReason.NOT_FINITE, f"frame_{number}.pt holds NaN or infinite voxels")
        return array


class NiftiRun:
    """A NIfTI series, of which a window is read and turned to canonical axes; raises NeuroFileError(wrong_dims)."""

    def __init__(self, path: Path) -> None:
        self._file: NiftiFile = open_nifti(path)
        if len(self._file.shape) != 4:
            raise NeuroFileError(
                NeuroReason.WRONG_DIMS, f"one volume of shape {self._file.shape} where a run is needed"
            )
        self.num_frames = self._file.shape[3]
        self.tr_s = self._file.tr_s
        self.notes = self._file.notes

    def frames(self, numbers: Sequence[int]) -> np.ndarray:
        """float32 [X, Y, Z, n]; raises NeuroFileError(truncated, not_finite)."""
        voxels, _ = self._file.canonical(self._file.voxels(_as_slice(numbers)))
        return voxels

    def stats(self) -> None:
        """A header has none; a gzip run would have to be unpacked whole for them."""
        return


def open_run(path: Path) -> Run:
    """A folder holds frames, a file is NIfTI; raises NeuroFileError."""
    return NiftiRun(path) if path.name.endswith((".nii", ".nii.gz")) else FrameFolder(path)


def _as_slice(numbers: Sequence[int]) -> slice | list[int]:
    """Evenly spaced frames as a slice, which nibabel reads in one sweep."""
    steps = {after - before for before, after in pairwise(numbers)}
    if len(steps) > 1 or min(steps, default=1) < 1:
        return list(numbers)
    return slice(numbers[0], numbers[-1] + 1, min(steps, default=1))


def _loaded(path: Path) -> Any:
    """What torch.load gives with weights_only; raises NeuroFileError(missing, empty, unsafe_pickle, bad_frame)."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        if not start:
            raise NeuroFileError(NeuroReason.EMPTY, f"{path.name} has 0 bytes")
        if start != b"PK" and start[:1] != b"\x80":  # a zip archive; a pickle, before torch 1.6
            raise NeuroFileError(NeuroReason.BAD_FRAME, f"{path.name} is no file of torch.save")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NeuroFileError(NeuroReason.MISSING, f"{path.name} is gone") from None
    except pickle.UnpicklingError as error:
        reason = NeuroReason.UNSAFE_PICKLE if "global" in str(error).lower() else NeuroReason.BAD_FRAME
        found = "holds more than tensors" if reason == NeuroReason.UNSAFE_PICKLE else "is damaged"
        raise NeuroFileError(reason, f"{path.name} {found}") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise NeuroFileError(NeuroReason.BAD_FRAME, f"{path.name} is damaged ({type(error).__name__})") from None
