"""What a task's loader hands to the step: frozen batches of plain tensors of fixed shapes, and nothing else.

No metadata, paths or ids travel here: a tensor subclass or an object inside a batch breaks the transfer to XLA.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """Fields that are tensors, mappings of tensors, or facts for the host."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with `change` of every tensor."""
        return type(self)(**{field.name: _changed(getattr(self, field.name), change) for field in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    return change(value) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True, kw_only=True)
class JEPABatch(TensorBatch):
    """Two aligned views and the split of their tokens (shape letters: geometry.py).

    context_view, target_view: uint8 or float [B, 1, D, H, W]; context_idx: int64 [B, Nc]; target_idx: int64 [B, Nt],
    positions in the flattened patch grid, disjoint within a volume.
    """

    context_view: torch.Tensor
    target_view: torch.Tensor
    context_idx: torch.Tensor
    target_idx: torch.Tensor

    @classmethod
    def from_dict(cls, collated: Mapping[str, torch.Tensor]) -> Self:
        """Takes the fields by name out of a collated training batch; further entries (`mask`) stay behind."""
        return cls(**{field.name: collated[field.name] for field in fields(cls)})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def num_samples(self) -> int:
        """B, the volumes of this batch."""
        return self.context_view.shape[0]


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """A kind of input: `name` in batches, logs and checkpoints; `aliases`, which files may use; `shape` without B."""

    name: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConversationBatch(TensorBatch):
    """Rows of text with images in them: R rows of L tokens, sorted by modality.

    images: modality -> float [n, *shape], in the order of that modality's places in the rows; only modalities that
    are there. input_ids, attention_mask: int64 [R, L]; labels: int64 [R, L], -100 outside the answer. rows: modality
    (`text` for rows without an image) -> how many rows, in the order of the rows.
    """

    images: Mapping[str, torch.Tensor]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    rows: Mapping[str, int]

    @property
    def present(self) -> frozenset[str]:
        """Modalities with an image: known on the host, never read from a tensor."""
        return frozenset(self.images)

    @property
    def num_samples(self) -> int:
        """R, the rows."""
        return self.input_ids.shape[0]
