"""A film -> samples by key and FilmBatches: a TR with the mean brain, or a TR with one brain."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch.utils.data import Dataset

from data_setup.neuro.film_cache import fingerprint
from data_setup.neuro.film_data import Film
from data_setup.sampler import SampleKey
from oct_foundation.film import FILM_MODALITIES, FilmBatch

Split = Literal["train", "val"]


class Place(NamedTuple):
    """Where a sample comes from: the number of its subject (None: the mean of all), and its TR in the film."""

    subject: int | None
    tr: int


class FilmDataset(Dataset[FilmBatch]):
    """The TRs of one split in time order; per_subject: all of the first subject, then of the next.

    Holds tensors, which workers share with the trainer instead of copying them.
    """

    def __init__(self, film: Film, split: Split) -> None:
        self.trs = torch.from_numpy(film.train if split == "train" else film.val)
        self.subject_ids = film.subject_ids if film.mode == "per_subject" else ()
        brains = film.subject_series if self.subject_ids else film.fmri[None]
        self._brains = torch.from_numpy(brains)  # float32 [subjects or 1, T, voxels]
        self._stimuli = {
            name: torch.from_numpy(getattr(film, name)) for name in ("video", "video_target", "audio", "text")
        }

    def __len__(self) -> int:
        return len(self.trs) * len(self._brains)

    def place(self, index: int) -> Place:
        """Of sample `index`."""
        subject, position = divmod(index, len(self.trs))
        return Place(subject if self.subject_ids else None, int(self.trs[position]))

    def moved(self, index: int) -> int:
        """The sample of the same subject a quarter of the split later, the end coming round to the start."""
        num_trs = len(self.trs)
        subject, position = divmod(index, num_trs)
        return subject * num_trs + (position + max(num_trs // 4, 1)) % num_trs

    def name(self, index: int) -> str:
        """By what a sample is known in logs: `sherlock_movie_s3 TR 12`."""
        place = self.place(index)
        return f"TR {place.tr}" if place.subject is None else f"{self.subject_ids[place.subject]} TR {place.tr}"

    def fingerprint(self) -> str:
        """Changes with the samples, their order and the split."""
        tensors = {**self._stimuli, "brains": self._brains, "trs": self.trs}
        return fingerprint({name: tensor.numpy() for name, tensor in tensors.items()})

    def __getitem__(self, key: SampleKey) -> FilmBatch:
        return self.batch([key.index])

    def batch(self, indices: Sequence[int]) -> FilmBatch:
        """These samples, in this order."""
        numbers = torch.tensor(indices)
        trs = self.trs[numbers % len(self.trs)]
        stimuli = {name: values[trs] for name, values in self._stimuli.items()}
        stimuli["video"] = stimuli["video"].float()
        return FilmBatch(fmri=self._brains[numbers // len(self.trs), trs], **stimuli)


def film_batch(samples: Sequence[FilmBatch]) -> tuple[FilmBatch, list[list[str]]]:
    """The samples of a micro-batch in one, and that none was replaced: as TrainBatches wants it."""
    names = (*FILM_MODALITIES, "video_target")
    return FilmBatch(**{name: torch.cat([getattr(sample, name) for sample in samples]) for name in names}), []
