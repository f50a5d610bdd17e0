"""Chosen TRs and the whole split -> PNG files in a folder, and their bytes for the page."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oct_foundation.diagnostics.noise_ceiling import Ceiling
from pretraining.reconstruct.overview import overview_picture
from pretraining.reconstruct.pictures import PICTURES, STYLE
from pretraining.reconstruct.samples import Predictions, Score, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = "overview.png"
_DPI = 130  # 832 pixels wide: sharp on a phone, and 30 to 90 kB each


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A TR: its name, and by modality its scores and its picture, PNG."""

    name: str
    scores: Mapping[str, tuple[Score, ...]]
    pictures: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Album:
    """What was drawn; overview: PNG, of all TRs."""

    overview: bytes
    samples: tuple[ShownSample, ...]


def draw_album(folder: Path, predictions: Predictions, chosen: Sequence[int], ceiling: Ceiling | None) -> Album:
    """Writes sample_{i}/{video,audio,text,fmri}_reconstruction.png and overview.png; raises OSError."""
    best = (ceiling.best_r, ceiling.best_fvu) if ceiling else (None, None)
    samples = []
    for place, index in enumerate(chosen):
        pictures = {}
        for name, draw in PICTURES.items():
            pictures[name] = as_png(draw, predictions, index)
            write_whole(_path(folder, place, name), pictures[name])
        samples.append(ShownSample(name=predictions.names[index], scores=scores(predictions, index), pictures=pictures))
    _remove_later(folder, len(chosen))
    overview = as_png(overview_picture, predictions, *best)
    write_whole(folder / OVERVIEW, overview)
    return Album(overview=overview, samples=tuple(samples))


def as_png(draw: "Callable[..., Figure]", *arguments: Any) -> bytes:
    """The figure that `draw` makes of its arguments, in one style; equal figures give equal bytes."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        buffer = io.BytesIO()
        draw(*arguments).savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Under a temporary name first; raises OSError and leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _path(folder: Path, place: int, name: str) -> Path:
    return folder / f"sample_{place}" / f"{name}_reconstruction.png"


def _remove_later(folder: Path, num_samples: int) -> None:
    """Pictures of an earlier call that showed more TRs: they may be of another checkpoint."""
    place = num_samples
    while (folder / f"sample_{place}").is_dir():
        for name in PICTURES:
            _path(folder, place, name).unlink(missing_ok=True)
        if not any((folder / f"sample_{place}").iterdir()):
            (folder / f"sample_{place}").rmdir()
        place += 1
