"""Volumes that are arrays already -> a prepared set, as if they had been scans: for phantoms and for one's own data."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
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

    A row needs id and split; shape and sha256 are filled in. Other volumes are another version of the set, beside the
    one that is there. Raises ValueError for volumes of another type or of different shapes, and for ids that repeat.
    """
    if not rows or len(rows) != len(volumes):
        raise ValueError(f"as many rows as volumes, at least one, are needed; found {len(rows)} and {len(volumes)}")
    shape = volumes[0].shape
    image_size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if len({row.id for row in rows}) < len(rows) or any(row.split is None for row in rows):
        raise ValueError("every row needs a split and an id of its own")
    finished = []
    with TemporaryDirectory(dir=_existing(folder)) as work:
        for number, row in enumerate(rows):
            volume = volumes[number]
            if volume.dtype != np.uint8 or volume.shape != shape:
                raise ValueError(f"{row.id} is {volume.dtype} {list(volume.shape)}; uint8 {list(shape)} is wanted")
            np.save(Path(work) / f"{row.id}.npy", volume)
            sha256 = hashlib.sha256(volume.tobytes()).hexdigest()
            finished.append(IndexRow(**asdict(row) | {"shape": image_size, "sha256": sha256}))
        settings = asdict(PrepareSettings(image_size=image_size))
        content = ["arrays", settings, sorted((row.id, row.sha256) for row in finished)]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        version = folder / digest[:12]
        (version / VOLUMES_NAME).mkdir(parents=True, exist_ok=True)
        for row in finished:
            os.replace(Path(work) / f"{row.id}.npy", volume_path(version, row.id))
    facts = {"settings": settings, "settings_sha256": digest, "versions": {}, **counts(finished, 0), "split_note": None}
    write_index(folder, version, finished, facts)
    return PreparedSet.load(folder)


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
