"""The volumes that a run is judged by: prepared volumes enter, fixed masks, positions and foreground come with them.

Everything here depends on (seed, volumes) only, so that readings of one run compare, also after a resume and on other
devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from data_setup.datasets import BadVolume, PreparedVolumes
from data_setup.masking import MaskGenerator
from data_setup.randomness import Purpose, sample_rng
from oct_foundation.batch import TensorBatch

MAX_POSITIONS = 64  # where tokens are compared between volumes: all M x N x E of large volumes are gigabytes
NUM_VIEWS = 8  # masked views of a volume, the q of LiDAR (arXiv 2312.04000)
NUM_COMPONENTS = 8
_VOLUMES_FOR_THRESHOLD = 8


@dataclass(frozen=True, kw_only=True)
class Look(TensorBatch):
    """B volumes and all that is asked about them (shape letters: geometry.py).

    volume: uint8 [B, 1, D, H, W]; context_idx, target_idx: int64 [B, Nc], [B, Nt]; positions: int64 [B, n], those that
    are looked at; slots: int64 [B, n], where among the targets each of them stands, 0 for visible ones; foreground:
    float [B, N], 1 on tissue.
    """

    volume: torch.Tensor
    context_idx: torch.Tensor
    target_idx: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    foreground: torch.Tensor


class HeldOut:
    """The first `num_volumes` of `volumes`; raises ValueError where there is none.

    compared: int64 [P], rising, where tokens are compared between volumes; middle_layer: int64 [h * w], the layer of
    patches that pictures show; positions: both.
    """

    def __init__(self, volumes: PreparedVolumes, masks: MaskGenerator, *, num_volumes: int, seed: int) -> None:
        if len(volumes) == 0:
            raise ValueError("there is no volume to hold out")
        self._volumes, self._masks, self._seed = volumes, masks, seed
        self.grid = masks.grid
        self.num_volumes = min(num_volumes, len(volumes))
        self.ids = [volumes.name(number) for number in range(self.num_volumes)]
        self.domains = volumes.domains()[: self.num_volumes]
        rng = sample_rng(seed, 0, 0, Purpose.POSITIONS)
        self.compared = np.sort(rng.permutation(self.grid.num_patches)[:MAX_POSITIONS])
        depth, height, width = self.grid.grid
        self.middle_layer = depth // 2 * height * width + np.arange(height * width)
        self.positions = np.concatenate([self.compared, self.middle_layer])
        self._foreground: dict[int, np.ndarray] = {}

    def volume(self, number: int) -> np.ndarray:
        """uint8 [D, H, W]."""
        return self._volumes[number]

    def unreadable(self, numbers: list[int]) -> list[str]:
        """Ids of those whose file is gone, cut or overwritten."""
        bad = []
        for number in numbers:
            try:
                self._volumes[number]
            except BadVolume as error:
                bad.append(error.volume_id)
        return bad

    def aspect(self, number: int) -> float:
        """Height : width of a B-scan in mm; NaN where the file does not say."""
        _, height, width = self.grid.image_size
        _, high, wide = self._volumes.row(number).spacing_mm or (None, None, None)
        if high is None or wide is None:
            return float("nan")
        return height * high / (width * wide)

    @cached_property
    def threshold(self) -> float:
        """Grey level between background and tissue: Otsu's, over patch means of a few volumes."""
        few = range(min(_VOLUMES_FOR_THRESHOLD, self.num_volumes))
        return otsu(np.concatenate([self._patch_means(number) for number in few]))

    @cached_property
    def components(self) -> np.ndarray:
        """Float [M, K]: in what the volumes differ most, the main components of their patch means; K 0 where all are
        alike.
        """
        means = np.stack([self._patch_means(number) for number in range(self.num_volumes)])
        left, sizes, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
        num_real = int(np.sum(sizes[:NUM_COMPONENTS] > 1e-9 * means.max(initial=1.0)))
        return (left * sizes)[:, :num_real]

    def foreground(self, number: int) -> np.ndarray:
        """Bool [N]: which patches of a volume are tissue."""
        if number not in self._foreground:
            self._foreground[number] = self._patch_means(number) > self.threshold
        return self._foreground[number]

    def hidden(self, number: int) -> np.ndarray:
        """Bool [N]: the volume's mask, the same in every reading."""
        return self._masks.draw(sample_rng(self._seed, 0, number, Purpose.VALIDATION_MASK)).mask

    def looks(self, numbers: list[int], batch_size: int) -> Iterator[Look]:
        """Those volumes in batches; `numbers` fill whole batches."""
        for start in range(0, len(numbers), batch_size):
            yield self.look(numbers[start : start + batch_size])

    def look(self, numbers: list[int]) -> Look:
        """One batch."""
        masks = [self._masks.draw(sample_rng(self._seed, 0, n, Purpose.VALIDATION_MASK)) for n in numbers]
        slots = [np.where(mask.mask, np.cumsum(mask.mask) - 1, 0)[self.positions] for mask in masks]
        return Look(
            volume=self.volumes(numbers),
            context_idx=_stack([mask.context_idx for mask in masks]),
            target_idx=_stack([mask.target_idx for mask in masks]),
            positions=_stack([self.positions] * len(numbers)),
            slots=_stack(slots),
            foreground=_stack([self.foreground(number) for number in numbers]).float(),
        )

    def volumes(self, numbers: list[int]) -> torch.Tensor:
        """uint8 [B, 1, D, H, W]."""
        return _stack([self._volumes[number] for number in numbers])[:, None]

    def views(self, numbers: list[int]) -> Iterator[torch.Tensor]:
        """For each of NUM_VIEWS other masks its context, int64 [B, Nc]."""
        for view in range(NUM_VIEWS):
            rngs = [sample_rng(self._seed, view, number, Purpose.LIDAR_VIEW) for number in numbers]
            yield _stack([self._masks.draw(rng).context_idx for rng in rngs])

    def _patch_means(self, number: int) -> np.ndarray:
        """Float [N]."""
        (gd, gh, gw), (pd, ph, pw) = self.grid.grid, self.grid.patch_size
        return self._volumes[number].reshape(gd, pd, gh, ph, gw, pw).mean(axis=(1, 3, 5)).ravel()


def otsu(values: np.ndarray) -> float:
    """The cut with the largest variance between the two sides (Otsu 1979), over sorted values; above is foreground."""
    ordered = np.sort(np.asarray(values, np.float64))
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    gap = (sums[-1] - sums[:-1]) / (len(ordered) - below) - sums[:-1] / below
    best = int(np.argmax(below * (len(ordered) - below) * gap**2)) if len(ordered) > 1 else 0
    return float(ordered[best])


def _stack(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))
