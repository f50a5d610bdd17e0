"""What the data report looks for in the pixels of prepared volumes: grey levels, near-duplicates, upside-down scans.

uint8 [D, H, W] (row 0 = vitreous side) in, small numbers out. Only eight B-scans of a
volume are looked at, so that 600 volumes of [64, 384, 384] cost seconds; given just those, the answers are the same.
"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data_setup.resample import triangle_weights

NUM_SAMPLED = 8

# Share of unlike bits up to which two volumes are called alike. Measured at [16, 128, 128] | [24, 256, 256] on 300
# phantoms (44,850 pairs of different eyes) and two real scans, a macula and an optic disc:
#   different phantoms   at least 0.216 | 0.244      macula and disc, thirds of the macula   at least 0.38 | 0.42
#   gain 0.7, 1.4, gamma 0.8, +20 levels   at most 0.040 | 0.058      the same eye with new speckle   0.181 | 0.222
#   noise of 12 levels   at most 0.139 | 0.087      shifted by 1 % of H   0.060 | 0.075, by 2 % of W   0.167 | 0.129
NEAR_DISTANCE = 0.18
_GRID, _KEPT = 32, 8  # a tile is shrunk to 32 x 32, of its cosine transform the lowest 8 x 8 waves are kept

_STRIPS = 16  # groups of A-scans, each with a profile of its own, so that a tilted retina is not smeared
_MIN_ROWS = 3  # of the window above and below; with fewer the retina touches the border and the strip abstains


class DuplicateGroup(NamedTuple):
    """Volumes linked by likeness, sorted; `distance` is the largest share of unlike bits among the links."""

    ids: tuple[str, ...]
    distance: float


def mid_bscan(volume: np.ndarray) -> np.ndarray:
    """The B-scan in the middle of [D, H, W] (the later one of two), as an array [H, W] of its own."""
    return np.array(volume[len(volume) // 2])


def sampled_bscans(volume: np.ndarray) -> np.ndarray:
    """NUM_SAMPLED evenly spread B-scans [8, H, W] of [D, H, W]; of fewer than 8, some twice; of exactly 8, all."""
    places = ((np.arange(NUM_SAMPLED) + 0.5) * len(volume) / NUM_SAMPLED).astype(int)
    return np.array(volume[places])


def intensity_histogram(volume: np.ndarray) -> np.ndarray:
    """How many voxels of the sampled B-scans of uint8 [D, H, W] have each grey level: int64 [256]."""
    return np.bincount(sampled_bscans(volume).ravel(), minlength=256)


def fingerprint(volume: np.ndarray) -> np.ndarray:
    """A perceptual hash of uint8 [D, H, W]: bool [504], alike for copies that differ in gain, gamma or light noise.

    Signs of the lowest waves of eight B-scans, each minus their mean: the bright band that all retinas share would
    make strangers alike (smallest distance 0.17 with it, 0.22 without). A scan whose B-scans are all equal has no
    extent along D; eight strips of its width stand in (different eyes then at least 0.32).
    """
    tiles = sampled_bscans(volume)
    if (tiles == tiles[0]).all():
        tiles = np.stack([tiles[0][:, places] for places in _strip_places(tiles.shape[2])])
    down, across = (triangle_weights(size, _GRID) for size in tiles.shape[1:])
    small = down @ tiles.astype(np.float32) @ across.T
    waves = _cosines() @ (small - small.mean(axis=0)) @ _cosines().T
    return (waves.reshape(len(tiles), -1)[:, 1:] > 0).ravel()  # without the mean: it would follow the brightness


def near_duplicates(fingerprints: Mapping[str, np.ndarray], limit: float = NEAR_DISTANCE) -> list[DuplicateGroup]:
    """Groups of ids whose fingerprints are linked by at most `limit` of unlike bits, most alike first.

    Single linkage: if A is like B and B like C, all three are one group.
    """
    ids = sorted(fingerprints)
    if len(ids) < 2:
        return []
    bits = np.stack([fingerprints[name] for name in ids])
    packed = np.packbits(bits, axis=1)
    parent = np.arange(len(ids))
    links: list[tuple[int, float]] = []
    for left in range(len(ids) - 1):
        distances = np.bitwise_count(packed[left + 1 :] ^ packed[left]).sum(axis=1) / bits.shape[1]
        for offset in np.flatnonzero(distances <= limit):
            heads = _root(parent, left), _root(parent, left + 1 + int(offset))
            parent[max(heads)] = min(heads)
            links.append((left, float(distances[offset])))
    members: defaultdict[int, list[str]] = defaultdict(list)
    for place, name in enumerate(ids):
        members[_root(parent, place)].append(name)
    widest: defaultdict[int, float] = defaultdict(float)
    for left, distance in links:
        head = _root(parent, left)
        widest[head] = max(widest[head], distance)
    found = [DuplicateGroup(tuple(names), widest[head]) for head, names in members.items() if len(names) > 1]
    return sorted(found, key=lambda group: (group.distance, group.ids))


def _root(parent: np.ndarray, place: int) -> int:
    """The head of the group that a place belongs to; shortens the way there."""
    while parent[place] != place:
        parent[place] = place = int(parent[parent[place]])
    return place


def upside_down_score(volume: np.ndarray) -> float:
    """How much brighter it is above the retina than below it, -1 to 1: above 0, the scan may stand on its head.

    Above lies the dark vitreous, below the choroid that still scatters. Each strip of A-scans is cut at its first
    and last row of half its greatest brightness; the means of the windows before and after are compared. 0 where
    the retina leaves no room on one side in any strip. Opposite for np.flip(volume, axis=1).
    Measured upright: 90 phantoms -0.93 to -0.85, 124 real B-scans -0.91 to -0.60 (with noise of 50 levels -0.50,
    gamma 2 -0.24 for the worst; moved to the image's border, phantoms -0.09): the sign never turned.
    """
    profiles = _depth_profiles(sampled_bscans(volume))
    height = profiles.shape[1]
    gap, reach = max(1, height // 40), max(2 + _MIN_ROWS, height // 6)  # of the edge's blur; of the window
    bright = profiles >= 0.5 * profiles.max(axis=1, keepdims=True)
    first = bright.argmax(axis=1)[:, None]
    last = height - 1 - bright[:, ::-1].argmax(axis=1)[:, None]
    row = np.arange(height)[None, :, None]
    above, num_above = _window_mean(profiles, (first - reach <= row) & (row < first - gap))
    below, num_below = _window_mean(profiles, (last + gap < row) & (row <= last + reach))
    seen = (num_above >= _MIN_ROWS) & (num_below >= _MIN_ROWS)
    if not seen.any():
        return 0.0
    contrast = (above - below) / (above + below + 1)  # one grey level: two black windows say nothing
    return float(contrast[seen].mean())


def _depth_profiles(bscans: np.ndarray) -> np.ndarray:
    """Brightness over depth of each strip of [n, H, W], above the strip's darkest 5 %: float32 [n, H, strips]."""
    strips = [bscans[:, :, places].mean(axis=2, dtype=np.float32) for places in _strip_places(bscans.shape[2], _STRIPS)]
    profiles = np.stack(strips, axis=2)
    box = 2 * (profiles.shape[1] // 128) + 3  # rows; odd, so that it is the same from both ends
    padded = np.pad(profiles, ((0, 0), (box // 2, box // 2), (0, 0)), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, box, axis=1).mean(axis=-1)
    return smooth - np.percentile(smooth, 5, axis=1, keepdims=True)


def _strip_places(width: int, count: int = NUM_SAMPLED) -> list[slice]:
    """`count` slices that cover a width evenly; of a width below `count`, single columns, some twice."""
    edges = np.arange(count + 1) * width // count
    return [slice(int(start), int(max(stop, start + 1))) for start, stop in pairwise(edges)]


def _window_mean(profiles: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of [n, H, strips] over the rows of a window (0 where it has none), and how many rows it has."""
    rows = window.sum(axis=1)
    return np.where(window, profiles, 0).sum(axis=1) / np.maximum(rows, 1), rows


def _cosines() -> np.ndarray:
    """The lowest 8 rows of the type II cosine transform of 32 places: float64 [8, 32]."""
    return np.cos(np.pi / _GRID * (np.arange(_GRID) + 0.5) * np.arange(_KEPT)[:, None])
