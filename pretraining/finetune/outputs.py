"""What the network's outputs mean: a class each, or one number on the scale of the training label."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch.nn import functional as F

from oct_foundation.diagnostics.labels import Label, LabelKind


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Enough to train towards a label and to read a prediction; centre and scale are those of the training volumes."""

    name: str
    kind: LabelKind
    classes: tuple[str, ...] = ()
    centre: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, label: Label, train: np.ndarray) -> Self:
        """For `label`, learned from the volumes `train` [K1]."""
        if label.kind == "classes":
            return cls(name=label.name, kind=label.kind, classes=label.classes)
        values = label.targets[train]
        return cls(name=label.name, kind=label.kind, centre=float(values.mean()), scale=float(values.std()) or 1.0)

    @property
    def num_outputs(self) -> int:
        """One per class, or one."""
        return len(self.classes) or 1

    def targets(self, label: Label) -> torch.Tensor:
        """What `loss` takes: int64 codes [K], or float32 [K] of mean 0 and deviation 1 over the training volumes."""
        if self.kind == "classes":
            return torch.from_numpy(np.asarray(label.targets, dtype=np.int64))
        return torch.from_numpy(((label.targets - self.centre) / self.scale).astype(np.float32))

    def loss(self, found: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, or the mean squared error in units of the label's variance."""
        if self.kind == "classes":
            return F.cross_entropy(found.float(), targets)
        return F.mse_loss(found.float()[:, 0], targets)

    def predictions(self, found: torch.Tensor) -> np.ndarray:
        """Probabilities float64 [B, classes], or values float64 [B] in the label's unit."""
        found = found.detach().double().cpu()
        if self.kind == "classes":
            return found.softmax(dim=1).numpy()
        return (found[:, 0] * self.scale + self.centre).numpy()

    def mean_predictions(self, label: Label, train: np.ndarray, count: int) -> np.ndarray:
        """What somebody says who has not looked: the training mean, or the training frequencies, `count` times."""
        if self.kind == "classes":
            frequencies = np.bincount(label.targets[train], minlength=len(self.classes)) / len(train)
            return np.tile(frequencies, (count, 1))
        return np.full(count, self.centre)
