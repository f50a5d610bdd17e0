"""diagnostics/pictures-<step>.npz -> small pictures of a few volumes: what the network saw, and what it made of it.

Each volume has its scan, the mask on it, and for the first and the newest reading the colours of its patch features
and how well hidden patches were predicted. Pictures are data URIs; equal files give equal ones.
"""

import base64
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_WIDTH, _ASPECTS = 340, (0.2, 0.75)  # pixels; height : width that a damaged spacing may not pass
_MOST_VOLUMES = 4
_HIDDEN_COLOUR = np.array([213, 94, 0], dtype=np.float64)  # vermilion: black would look like vitreous
_HIDDEN_WEIGHT, _FEATURE_WEIGHT, _SIMILAR_WEIGHT = 0.6, 0.6, 0.85
SIMILARITY_COLOURS = "viridis"  # even to the eye, and to the colour-blind one
_SIMILARITY_STOPS = 9


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`uri`: image/jpeg; size: width, height in pixels."""

    caption: str
    alt: str
    uri: str
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class VolumePictures:
    """What is shown of one volume, first pictures first."""

    volume_id: str
    vendor: str
    to_scale: bool
    pictures: tuple[Picture, ...]


def show(files: Mapping[int, Path], notes: list[str]) -> list[VolumePictures]:
    """Pictures of the first and the newest file that can be read, by step; a damaged file becomes a note."""
    oldest = _first_readable(files.items(), notes)
    if oldest is None:
        return []
    later = [(step, path) for step, path in files.items() if step > oldest.step]
    newest = _first_readable(reversed(later), notes)
    readings = [oldest] if newest is None else [oldest, newest]
    return [_volume(str(volume_id), readings) for volume_id in readings[-1].ids[:_MOST_VOLUMES]]


def similarity_gradient() -> str:
    """The colours of the similarity maps from 0 to 1, as CSS colours in a row."""
    colours = (_similarity_colours(np.linspace(0, 1, _SIMILARITY_STOPS))).round().astype(int)
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours)


_FIELDS = ("bscans", "hidden", "pca", "similarity", "ids", "vendors", "aspect")


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """One file: K volumes. bscans uint8 [K, H, W], hidden bool [K, h, w], pca uint8 [K, h, w, 3], similarity
    float [K, h, w] (NaN where shown), ids and vendors str [K], aspect float [K]: mm of height over mm of width.
    """

    step: int
    bscans: np.ndarray
    hidden: np.ndarray
    pca: np.ndarray
    similarity: np.ndarray
    ids: np.ndarray
    vendors: np.ndarray
    aspect: np.ndarray

    def __post_init__(self) -> None:
        count, grid = len(self.bscans), self.hidden.shape[1:]
        kinds = (
            self.bscans.dtype,
            self.pca.dtype,
            self.hidden.dtype,
            self.similarity.dtype.kind,
            self.aspect.dtype.kind,
        )
        fits = kinds == (np.uint8, np.uint8, np.bool_, "f", "f") and self.bscans.ndim == self.hidden.ndim == 3
        fits = fits and self.similarity.shape == self.hidden.shape == (count, *grid) and 0 not in self.bscans.shape[1:]
        fits = fits and self.pca.shape == (count, *grid, 3) and 0 not in grid
        if not fits or not len(self.ids) == len(self.vendors) == len(self.aspect) == count:
            raise ValueError("the arrays do not fit each other")


def _first_readable(files: Iterable[tuple[int, Path]], notes: list[str]) -> _Reading | None:
    for step, path in files:
        try:
            with np.load(path, allow_pickle=False) as file:
                return _Reading(step=step, **{name: file[name] for name in _FIELDS})
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            notes.append(f"diagnostics/{path.name} cannot be read ({type(error).__name__}) and is left out.")
    return None


def _volume(volume_id: str, readings: list[_Reading]) -> VolumePictures:
    """Scan and mask from the newest reading, then features and similarity of each reading that has the volume."""
    places = [(reading, list(reading.ids).index(volume_id)) for reading in readings if volume_id in reading.ids]
    newest, place = places[-1]
    scan = newest.bscans[place]
    aspect = float(newest.aspect[place])
    known = math.isfinite(aspect) and aspect > 0
    shown = min(max(aspect if known else scan.shape[0] / scan.shape[1], _ASPECTS[0]), _ASPECTS[1])
    size = (_WIDTH, round(_WIDTH * shown))
    grey = np.repeat(_resized(scan, size, Image.Resampling.BILINEAR)[..., None], 3, axis=2).astype(np.float64)
    pictures = [
        _picture("B-scan", f"middle B-scan of volume {volume_id}", grey),
        _picture("hidden part", f"patches that were hidden of volume {volume_id}", _masked(grey, newest.hidden[place])),
    ]
    for reading, place in places:
        colours = _spread(reading.pca[place], size)
        features = (1 - _FEATURE_WEIGHT) * grey + _FEATURE_WEIGHT * colours
        pictures.append(_picture(f"features, step {reading.step:,}", f"features of volume {volume_id}", features))
    for reading, place in places:
        similar = _similar(grey, reading.similarity[place])
        mean = _mean(reading.similarity[place])
        caption = f"prediction, step {reading.step:,}{mean}"
        pictures.append(_picture(caption, f"likeness of prediction and target, volume {volume_id}", similar))
    vendor = str(newest.vendors[place])
    return VolumePictures(
        volume_id=volume_id, vendor=vendor, to_scale=known and shown == aspect, pictures=tuple(pictures)
    )


def _masked(grey: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The scan with hidden patches under a colour."""
    over = _spread(hidden.astype(np.uint8), (grey.shape[1], grey.shape[0]))[..., None] * _HIDDEN_WEIGHT
    return (1 - over) * grey + over * _HIDDEN_COLOUR


def _similar(grey: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Hidden patches in the colour of their cosine, 0 to 1 (less is shown as 0); shown ones as the darkened scan."""
    judged = np.isfinite(similarity)
    colours = _similarity_colours(np.where(judged, similarity, 0).clip(0, 1)).round().astype(np.uint8)
    size = (grey.shape[1], grey.shape[0])
    over = _spread(judged.astype(np.uint8), size)[..., None]
    mixed = (1 - _SIMILAR_WEIGHT) * grey + _SIMILAR_WEIGHT * _spread(colours, size)
    return np.where(over == 1, mixed, 0.35 * grey)


def _similarity_colours(values: np.ndarray) -> np.ndarray:
    """Red, green, blue: float [..., 3], 0 to 255, of values in 0 to 1."""
    from matplotlib import colormaps

    return 255 * colormaps[SIMILARITY_COLOURS](np.asarray(values, dtype=np.float64))[..., :3]


def _mean(similarity: np.ndarray) -> str:
    judged = similarity[np.isfinite(similarity)]
    return f": mean cosine {judged.mean():.2f}" if judged.size else ": nothing hidden in this B-scan"


def _spread(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] or [h, w, 3] uint8 -> float64 [height, width, ...]; each patch a block, as the network has it."""
    return _resized(patches, size, Image.Resampling.NEAREST).astype(np.float64)


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).resize(size, how))


def _picture(caption: str, alt: str, pixels: np.ndarray) -> Picture:
    file = io.BytesIO()
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=80)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(caption=caption, alt=alt, uri=uri, size=image.size)
