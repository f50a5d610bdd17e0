"""Prepared volumes by number, and the data set that turns (epoch, number) into a training sample."""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from data_setup.epoch_order import EpochOrder
from data_setup.errors import UnreadableInput
from data_setup.index import IndexRow, PreparedSet
from data_setup.sampler import SampleKey
from data_setup.selection import EVERYTHING, Selection
from data_setup.splits import Split

SampleTransform = Callable[[np.ndarray, SampleKey], dict[str, Any]]


_MAX_REPLACEMENTS = 8  # in a row, for one sample: then it is the disk that fails, not a file


class BadVolume(UnreadableInput):
    """A prepared volume that cannot be read any more: its id, and what was found."""

    def __init__(self, volume_id: str, found: str) -> None:
        super().__init__(volume_id, found)
        self.volume_id, self.found = volume_id, found

    def __str__(self) -> str:
        return f"prepared volume {self.volume_id} cannot be read ({self.found}): prepare it again"


class Volumes(Protocol):
    """A sequence of volumes of one shape."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [D, H, W]; raises BadVolume."""
        ...

    def name(self, index: int) -> str:
        """By what a volume is known in logs."""
        ...

    def fingerprint(self) -> str:
        """Changes when the volumes or their order change."""
        ...


class PreparedVolumes:
    """The accepted and selected volumes of one split (None: of all), by their order in the index."""

    def __init__(self, prepared: PreparedSet, split: Split | None, select: Selection = EVERYTHING) -> None:
        self._prepared = prepared
        self._rows = prepared.accepted(split, select)

    def keep_first(self, count: int | None) -> None:
        """Drops all volumes but the first `count`; None keeps all."""
        self._rows = self._rows[:count]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        row = self._rows[index]
        try:
            volume = self._prepared.volume(row)
        except (OSError, ValueError, EOFError) as error:  # gone, cut, emptied or overwritten since it was prepared
            raise BadVolume(row.id, type(error).__name__) from None
        if volume.shape != row.shape or volume.dtype != np.uint8:
            raise BadVolume(row.id, f"{volume.dtype} {volume.shape} instead of uint8 {row.shape}")
        return volume

    def name(self, index: int) -> str:
        """The id of a volume."""
        return self._rows[index].id

    def row(self, index: int) -> IndexRow:
        """What the index says of a volume."""
        return self._rows[index]

    def domains(self) -> list[str]:
        """The maker of each volume's device."""
        return [row.vendor or "unknown" for row in self._rows]

    def fingerprint(self) -> str:
        """Hash of the volumes' ids and of the settings that they were prepared with."""
        names = [self._prepared.info["settings_sha256"], *(row.id for row in self._rows)]
        return hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]


class VolumeDataset(Dataset[dict[str, Any]]):
    """`transform(volume, key)` of the volume that a SampleKey names.

    With `order`, a volume that cannot be read is replaced by the next one of the same epoch's order, the same in every
    run; the sample says so in `replaced`, the ids of what was left out.
    """

    def __init__(self, volumes: Volumes, transform: SampleTransform, order: EpochOrder | None = None) -> None:
        self._volumes, self._transform, self._order = volumes, transform, order

    def __len__(self) -> int:
        return len(self._volumes)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        bad: list[str] = []
        index = key.index
        while True:
            try:
                volume = self._volumes[index]
                break
            except BadVolume as error:
                bad.append(error.volume_id)
                if self._order is None or len(bad) > _MAX_REPLACEMENTS:
                    raise
                order = self._order.order(key.epoch).tolist()
                index = order[(order.index(key.index) + len(bad)) % len(order)]
        return {**self._transform(volume, key), "replaced": bad}

    def name(self, index: int) -> str:
        """Of a volume."""
        return self._volumes.name(index)

    def fingerprint(self) -> str:
        """Of the volumes."""
        return self._volumes.fingerprint()
