"""Records and a source of images -> samples, by a key (epoch, index); a broken file is replaced and reported."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data_setup.neuro.conversations import Conversation, ImageRef
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.fmri import FunctionalSettings, check_run, read_window
from data_setup.neuro.modalities import ALIASES, MODALITIES
from data_setup.neuro.samples import ImageSource, Sample
from data_setup.neuro.volumes import VolumeSettings, check_volume, read_volume
from data_setup.randomness import Purpose, sample_rng
from data_setup.sampler import SampleKey
from oct_foundation.batch import ModalitySpec

_MAX_REPLACEMENTS = 8  # in a row, for one sample: then it is the disk that fails, not a file


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """Images in files below `data_root`; settings: of each enabled modality, FunctionalSettings of rsfMRI."""

    data_root: Path
    settings: Mapping[str, VolumeSettings | FunctionalSettings]

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """The enabled modalities, in the order of rows."""
        return tuple(
            ModalitySpec(name=name, shape=self.settings[name].shape, aliases=ALIASES[name])
            for name in MODALITIES
            if name in self.settings
        )

    def check(self, ref: ImageRef) -> tuple[str, ...]:
        """By headers and names; returns what was odd. Raises NeuroFileError."""
        path = self.data_root / ref.path
        match self._settings(ref):
            case FunctionalSettings() as settings:
                return check_run(path, settings)
            case settings:
                return check_volume(path, settings)

    def read(self, ref: ImageRef, draw: tuple[float, float] | None) -> torch.Tensor:
        """float32 of the modality's shape: draw decides the window of a run and the mirror of a volume.

        Raises NeuroFileError.
        """
        path = self.data_root / ref.path
        match self._settings(ref):
            case FunctionalSettings() as settings:
                return read_window(path, settings, None if draw is None else draw[0])
            case settings:
                volume = read_volume(path, settings)
                return volume.flip(1) if draw is not None and draw[1] < settings.flip_probability else volume

    def _settings(self, ref: ImageRef) -> VolumeSettings | FunctionalSettings:
        if ref.modality not in self.settings:
            raise NeuroFileError(NeuroReason.NOT_ENABLED, f"{ref.modality} is switched off")
        return self.settings[ref.modality]


class ConversationDataset(Dataset[Sample]):
    """The sample that a SampleKey names.

    training: windows and mirrors are drawn by (seed, epoch, index), and what cannot be read is replaced by the next
    record of the same kind, so that shapes stay; else the view is fixed and an unreadable image is an error, which
    names the sample.
    """

    def __init__(self, records: Sequence[Conversation], source: ImageSource, *, seed: int, training: bool) -> None:
        self.records = tuple(records)
        self._source, self._seed, self._training = source, seed, training

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """By what a sample is known in logs."""
        return self.records[index].sample_id

    def fingerprint(self) -> str:
        """Changes when the samples, their order, questions or answers change, or the shapes of images."""
        parts = [repr((record.sample_id, record.images, record.prompt, record.answer)) for record in self.records]
        return hashlib.sha256("\n".join([repr(self._source.specs), *parts]).encode()).hexdigest()[:16]

    def __getitem__(self, key: SampleKey) -> Sample:
        bad: list[tuple[str, NeuroReason]] = []
        kind = self.records[key.index].kind
        for step in range(len(self.records)):
            index = (key.index + step) % len(self.records)
            record = self.records[index]
            if record.kind != kind:
                continue
            try:
                images = self._images(record, SampleKey(key.epoch, index))
            except NeuroFileError as error:
                bad.append((record.sample_id, error.reason))
                if not self._training or len(bad) > _MAX_REPLACEMENTS:
                    raise NeuroFileError(error.reason, f"sample {record.sample_id}: {error.detail}") from error
                continue
            return Sample(record=record, images=images, replaced=tuple(bad))
        raise NeuroFileError(NeuroReason.MISSING, f"none of the {len(bad)} samples of kind {kind} can be read")

    def blank(self, index: int) -> Sample:
        """A sample's text with images of zeros: keeps the shapes of a batch where its images cannot be read."""
        record, shapes = self.records[index], {spec.name: spec.shape for spec in self._source.specs}
        return Sample(record=record, images=tuple(torch.zeros(shapes[ref.modality]) for ref in record.images))

    def _images(self, record: Conversation, key: SampleKey) -> tuple[torch.Tensor, ...]:
        draws = sample_rng(self._seed, key.epoch, key.index, Purpose.VIEWS).random((len(record.images), 2))
        return tuple(
            self._source.read(ref, (float(first), float(second)) if self._training else None)
            for ref, (first, second) in zip(record.images, draws, strict=True)
        )
