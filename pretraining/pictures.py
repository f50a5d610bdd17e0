"""What a report shows of a few held-out volumes: the scan, its mask, features as colours, how well they were predicted.

Written at each reading into `pictures-<step>.npz`, so that a report needs neither model nor data; the first and the
newest stay.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pretraining.held_out import HeldOut
from pretraining.observe import Layer

_MOST = 4  # volumes


def write_pictures(folder: Path, step: int, held_out: HeldOut, layer: Layer) -> None:
    """Writes the file, whole or not at all; nothing where features are not finite. Raises OSError.

    bscans uint8 [K, H, W], the B-scan in the middle of the layer of patches; hidden bool [K, h, w]; pca uint8
    [K, h, w, 3]; similarity float32 [K, h, w], cosine of prediction and target, NaN at visible patches; ids, vendors
    [K]; aspect float [K], height : width of a B-scan in mm, NaN where the file does not say.
    """
    numbers = _worth_showing(list(dict.fromkeys(layer.numbers)), held_out)
    places = [layer.numbers.index(number) for number in numbers]
    if not bool(torch.isfinite(layer.features[places]).all()):
        return
    _, height, width = held_out.grid.grid
    plane = (len(numbers), height, width)
    similarity = F.cosine_similarity(layer.predictions[places], layer.features[places], dim=-1)
    similarity = torch.where(layer.hidden[places], similarity, torch.nan)
    depth, patch = held_out.grid.grid[0] // 2, held_out.grid.patch_size[0]
    bscans = np.stack([held_out.volume(number)[depth * patch + patch // 2] for number in numbers])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".pictures-{step}.{os.getpid()}.npz"
    try:
        np.savez_compressed(
            temporary,
            bscans=bscans,
            hidden=layer.hidden[places].numpy().reshape(plane),
            pca=principal_colours(layer.features[places].numpy()).reshape(*plane, 3),
            similarity=similarity.numpy().astype(np.float32).reshape(plane),
            ids=np.array([held_out.ids[number] for number in numbers]),
            vendors=np.array([held_out.domains[number] for number in numbers]),
            aspect=np.array([held_out.aspect(number) for number in numbers]),
        )
        os.replace(temporary, folder / f"pictures-{step}.npz")
    finally:
        temporary.unlink(missing_ok=True)
    for older in sorted(folder.glob("pictures-*.npz"), key=_step_of)[1:]:
        if _step_of(older) < step:
            older.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("pictures-"))


def _worth_showing(numbers: list[int], held_out: HeldOut) -> list[int]:
    """At most _MOST of them: the first of each maker, then others, in their order."""
    firsts = {held_out.domains[number]: number for number in reversed(numbers)}
    by_worth = sorted(numbers, key=lambda number: number not in firsts.values())
    return sorted(by_worth[:_MOST])


def principal_colours(features: np.ndarray) -> np.ndarray:
    """The three main directions in which features [K, n, E] differ, as red, green, blue: uint8 [K, n, 3].

    The 2nd and 98th percentile of each are dark and bright. A direction's sign is chosen so that its largest weight
    is positive, else colours would flip between readings.
    """
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centred = tokens - tokens.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    scores = centred @ directions.T
    low, high = np.percentile(scores, [2, 98], axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = np.zeros((len(scores), 3))
    colours[:, : scaled.shape[1]] = scaled
    return np.round(colours * 255).astype(np.uint8).reshape(*features.shape[:2], 3)
