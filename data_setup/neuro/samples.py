"""What a data set hands to the collator, and where images come from."""

from dataclasses import dataclass
from typing import Protocol

import torch

from data_setup.neuro.conversations import Conversation, ImageRef
from data_setup.neuro.errors import NeuroReason
from oct_foundation.batch import ModalitySpec


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A record and its images, float32 of the modality's shape, in the record's order.

    replaced: samples that were planned in its place and could not be read, and why.
    """

    record: Conversation
    images: tuple[torch.Tensor, ...]
    replaced: tuple[tuple[str, NeuroReason], ...] = ()


class ImageSource(Protocol):
    """Turns references into tensors."""

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """The enabled modalities and their shapes."""
        ...

    def check(self, ref: ImageRef) -> tuple[str, ...]:
        """What can be told without reading the image; returns what was odd. Raises NeuroFileError."""
        ...

    def read(self, ref: ImageRef, draw: tuple[float, float] | None) -> torch.Tensor:
        """float32 of the modality's shape. draw: two numbers in [0, 1) that decide what training varies (the window
        of a run, the mirror of a volume), None: the fixed view of evaluation. Raises NeuroFileError.
        """
        ...
