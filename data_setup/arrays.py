"""Volumes that are arrays already -> a prepared set, as if they had been scans: for phantoms and for one's own data."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from data_setup.index import VOLUMES_NAME, IndexRow, PreparedSet, volume_path
from data_setup.prepare import PrepareSettings
from data_setup.publish import counts, write_index


class Volumes(Protocol):
    """Arrays by number; made when asked for, if they are many."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [D, H, W]."""
        ...


def write_prepared(folder: Path, rows: Sequence[IndexRow], volumes: Volumes) -> PreparedSet:
    """Writes accepted rows and their volumes, uint8 [D, H, W] of one shape, in the same order.

    A row needs id and split; shape and sha256 are filled in. Writing the same again changes nothing. Raises ValueError
    for volumes of another type or of different shapes.
    """
    if not rows or len(rows) != len(volumes):
        raise ValueError(f"as many rows as volumes, at least one, are needed; found {len(rows)} and {len(volumes)}")
    shape = volumes[0].shape
    image_size = (int(shape[0]), int(shape[1]), int(shape[2]))
    settings = asdict(PrepareSettings(image_size=image_size))
    digest = hashlib.sha256(json.dumps(["arrays", settings], sort_keys=True).encode()).hexdigest()
    version = folder / digest[:12]
    (version / VOLUMES_NAME).mkdir(parents=True, exist_ok=True)
    finished = []
    for number, row in enumerate(rows):
        volume = volumes[number]
        if volume.dtype != np.uint8 or volume.shape != shape:
            raise ValueError(f"{row.id} is {volume.dtype} {list(volume.shape)}; uint8 {list(shape)} is wanted")
        np.save(volume_path(version, row.id), volume)
        sha256 = hashlib.sha256(volume.tobytes()).hexdigest()
        finished.append(IndexRow(**asdict(row) | {"shape": image_size, "sha256": sha256}))
    facts = {"settings": settings, "settings_sha256": digest, "versions": {}, **counts(finished, 0), "split_note": None}
    write_index(folder, version, finished, facts)
    return PreparedSet.load(folder)
