"""Generated brains of the three kinds with a question each: the embedded data set, whose truth is known.

The answer is in the image and nowhere else: questions of a kind read alike, answers are balanced, and neither the mean
intensity nor any one voxel tells. Images pass through the same scaling as files do.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data_setup.neuro.brain_anatomy import lesion_scan, resting_run, tract_scan
from data_setup.neuro.conversations import Conversation, ImageRef
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.fmri import FunctionalSettings, prepared
from data_setup.neuro.modalities import ALIASES, IMAGE_TOKENS, MODALITIES
from data_setup.neuro.volumes import normalised
from data_setup.randomness import Purpose, sample_rng
from oct_foundation.batch import ModalitySpec

QUESTIONS = {
    "T1": ("Which hemisphere holds the lesion?", ("left", "right")),
    "rsfMRI": ("Is the oscillation slow or fast?", ("slow", "fast")),
    "dMRI": ("Which way do the fibres run?", ("front-back", "left-right")),
}


@dataclass(frozen=True, kw_only=True)
class BrainPhantomSettings:
    """num_per_modality brains of each kind, one person each; volume_size and functional_size in voxels a side."""

    num_per_modality: int = 512
    modalities: tuple[str, ...] = MODALITIES
    volume_size: int = 32
    functional_size: int = 24
    num_frames: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        if not self.modalities or not set(self.modalities) <= set(MODALITIES):
            raise ValueError(
                f"phantom.modalities must be some of {', '.join(MODALITIES)}; found {list(self.modalities)}"
            )
        for name, least in (("num_per_modality", 2), ("volume_size", 16), ("functional_size", 12), ("num_frames", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"phantom.{name} must be at least {least}; found {getattr(self, name)}")

    @property
    def functional(self) -> FunctionalSettings:
        """How its runs are scaled."""
        return FunctionalSettings(size=self.functional_size, sequence_length=self.num_frames)


def phantom_records(settings: BrainPhantomSettings) -> list[Conversation]:
    """All samples, kinds taking turns; each answer of a kind equally often."""
    return [
        _record(modality, number)
        for number in range(settings.num_per_modality)
        for modality in MODALITIES
        if modality in settings.modalities
    ]


def render(modality: str, number: int, settings: BrainPhantomSettings) -> np.ndarray:
    """Brain `number` of a kind as a scanner would give it: float32 [S, S, S], or [S, S, S, T] of rsfMRI."""
    rng = sample_rng(settings.seed, MODALITIES.index(modality), number, Purpose.PHANTOM)
    second = answer_of(modality, number) == QUESTIONS[modality][1][1]
    match modality:
        case "T1":
            return lesion_scan(settings.volume_size, second, rng)
        case "dMRI":
            return tract_scan(settings.volume_size, second, rng)
        case _:
            return resting_run(settings.functional_size, settings.num_frames, second, rng)


def answer_of(modality: str, number: int) -> str:
    """The truth about brain `number` of a kind; a pair of brains holds both answers."""
    return QUESTIONS[modality][1][number % 2]


@dataclass(frozen=True, kw_only=True)
class PhantomImages:
    """The source of generated images: a path is `phantom:<number>`."""

    settings: BrainPhantomSettings

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """The enabled modalities, in the order of rows."""
        volume = (1, *(self.settings.volume_size,) * 3)
        return tuple(
            ModalitySpec(
                name=name, shape=self.settings.functional.shape if name == "rsfMRI" else volume, aliases=ALIASES[name]
            )
            for name in MODALITIES
            if name in self.settings.modalities
        )

    def check(self, ref: ImageRef) -> tuple[str, ...]:
        """Raises NeuroFileError(missing, not_enabled)."""
        if ref.modality not in self.settings.modalities:
            raise NeuroFileError(NeuroReason.NOT_ENABLED, f"{ref.modality} is switched off")
        self._number(ref)
        return ()

    def read(self, ref: ImageRef, draw: tuple[float, float] | None) -> torch.Tensor:
        """float32 of the modality's shape, the same whatever is drawn: a mirror would change an answer."""
        self.check(ref)
        image = render(ref.modality, self._number(ref), self.settings)
        return prepared(image, None, self.settings.functional) if ref.modality == "rsfMRI" else normalised(image)

    def _number(self, ref: ImageRef) -> int:
        scheme, _, number = ref.path.partition(":")
        if scheme != "phantom" or not number.isdecimal() or int(number) >= self.settings.num_per_modality:
            raise NeuroFileError(NeuroReason.MISSING, f"no generated brain {ref.path!r}")
        return int(number)


def _record(modality: str, number: int) -> Conversation:
    name = f"phantom-{modality}-{number:05d}"
    return Conversation(
        sample_id=name,
        subject_id=name,
        images=(ImageRef(modality, f"phantom:{number}"),),
        prompt=f"{IMAGE_TOKENS[modality]}\n{QUESTIONS[modality][0]}",
        answer=answer_of(modality, number),
    )
