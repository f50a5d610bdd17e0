"""A film and the brains that watched it: opened, split, normalised, in batches of TRs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from data_setup.epoch_order import Shuffled
from data_setup.neuro.film_data import Film, open_film
from data_setup.neuro.film_dataset import FilmDataset, film_batch
from data_setup.sampler import ShardedBatchSampler
from oct_foundation.film import FilmBatch
from oct_foundation.runtime.base import Runtime
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import ConfigError
from pretraining.run_folder import RunFolder
from pretraining.tasks.autoencoder_objective import AutoencoderObjective
from pretraining.tasks.sampled import SampledTask, epoch_sampler
from pretraining.tasks.task import Watch


class AutoencoderTask(SampledTask[FilmDataset]):
    """The TRs of a run around its objective; raises ConfigError where there is nothing to train on."""

    def __init__(self, config: AutoencoderRunConfig) -> None:
        self.config = config
        self.film = opened(config)
        self.objective = AutoencoderObjective(config, self.film.statistics)
        super().__init__(FilmDataset(self.film, "train"), config.data.loader, film_batch)
        self.held_out = FilmDataset(self.film, "val")
        self._order = Shuffled(len(self.samples), config.seed)

    def sampler(self, rank: int, world_size: int) -> ShardedBatchSampler:
        """Every TR once per epoch."""
        return epoch_sampler(self.config, self._order, rank, world_size)

    def val_batches(self, *, rank: int, world_size: int) -> Iterable[FilmBatch]:
        """None: the watch predicts every held-out TR once, and its loss is that of all of them."""
        return ()

    def held_out_of(self, rank: int, world_size: int) -> list[tuple[Sequence[int], int]]:
        """The held-out samples of a rank, each in one place of one rank, as many batches of one size on all ranks:
        numbers, and how many of them are no repetition that fills the batch.
        """
        size, count = self.config.batch.per_core_batch_size, len(self.held_out)
        found: list[tuple[Sequence[int], int]] = []
        for first in range(0, count, size * world_size):
            start = first + rank * size
            own = range(start, min(start + size, count))
            found.append(([*own, *(number % count for number in range(size - len(own)))], len(own)))
        return found

    def data_fingerprint(self, *, world_size: int) -> str:
        """Hash of the order, of what is held out (or scores would not compare) and of all values that train."""
        parts = self.sampler(0, world_size).order_hash(), self.held_out.fingerprint(), self.samples.fingerprint()
        return "".join(parts)

    def facts(self) -> dict[str, Any]:
        """TRs, subjects, the ceiling."""
        return {"film": self.film.facts()}

    def watch(self, model: nn.Module, runtime: Runtime, *, total_steps: int, folder: RunFolder) -> Watch | None:
        """Held-out TRs, predicted and judged."""
        from pretraining.film_watch import FilmWatch

        per_epoch = self.steps_per_epoch(world_size=runtime.world_size)
        every = self.config.evaluation.every_steps or per_epoch
        return FilmWatch(
            task=self,
            runtime=runtime,
            total_steps=total_steps,
            every_steps=every,
            steps_per_epoch=per_epoch,
            folder=folder,
        )


def opened(config: AutoencoderRunConfig, cache_dir: Path | None = None) -> Film:
    """The film of a configuration; raises ConfigError where it cannot be read or is of other sizes than the model."""
    try:
        film = open_film(config.data, cache_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if film.shape != config.network.shape:
        found, wanted = vars(film.shape), vars(config.network.shape)
        differing = {name: size for name, size in found.items() if size != wanted[name]}
        said = ", ".join(
            f"{name}: {size} in the files, {wanted[name]} in the model" for name, size in differing.items()
        )
        keys = {"voxels": "n_voxels", "codebooks": "audio_codebooks", "codes_per_tr": "audio_frames_per_tr"}
        remedy = " ".join(f"model.{keys.get(name, name)}={size}" for name, size in differing.items())
        raise ConfigError(f"the film does not fit the model section: {said}; if the files are right, set {remedy}")
    return film
