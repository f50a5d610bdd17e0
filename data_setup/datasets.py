"""Prepared volumes by number, and the data set that turns (epoch, number) into a training sample."""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from data_setup.index import PreparedSet
from data_setup.sampler import SampleKey
from data_setup.splits import Split

SampleTransform = Callable[[np.ndarray, SampleKey], dict[str, Any]]


class Volumes(Protocol):
    """A sequence of volumes of one shape."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [D, H, W]."""
        ...

    def fingerprint(self) -> str:
        """Changes when the volumes or their order change."""
        ...


class PreparedVolumes:
    """The accepted volumes of one split, by their order in the index, at most `max_samples`."""

    def __init__(self, prepared: PreparedSet, split: Split, max_samples: int | None) -> None:
        self._prepared = prepared
        self._rows = prepared.accepted(split)[:max_samples]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._prepared.volume(self._rows[index])

    def fingerprint(self) -> str:
        """Hash of the volumes' ids and of the settings that they were prepared with."""
        names = [self._prepared.info["settings_sha256"], *(row.id for row in self._rows)]
        return hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]


class VolumeDataset(Dataset[dict[str, Any]]):
    """`transform(volume, key)` of the volume that a SampleKey names."""

    def __init__(self, volumes: Volumes, transform: SampleTransform) -> None:
        self._volumes, self._transform = volumes, transform

    def __len__(self) -> int:
        return len(self._volumes)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return self._transform(self._volumes[key.index], key)

    def fingerprint(self) -> str:
        """Of the volumes."""
        return self._volumes.fingerprint()
