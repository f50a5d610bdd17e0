"""Questions about brain images, from JSON, a BIDS folder or generated: checked, split by subject, in batches."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from data_setup.loaders import TrainBatches
from data_setup.neuro.collate import ConversationCollator
from data_setup.neuro.conversations import Conversation
from data_setup.neuro.dataset import ConversationDataset
from data_setup.neuro.errors import NeuroFileError
from data_setup.neuro.modality_sampler import AlignedSampler, Layout, build_sampler, evaluation_batches
from data_setup.neuro.open_data import image_source, open_data
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.samples import Sample
from data_setup.sampler import SampleKey, ShardedBatchSampler
from oct_foundation.batch import ConversationBatch
from oct_foundation.models.vision_language import NO_ANSWER
from oct_foundation.runtime.base import Runtime
from pretraining.config import ConfigError
from pretraining.multimodal_config import MultimodalRunConfig
from pretraining.run_folder import RunFolder
from pretraining.tasks.multimodal_objective import MultimodalObjective
from pretraining.tasks.sampled import SampledTask
from pretraining.tasks.task import Watch

log = logging.getLogger(__name__)


class MultimodalTask(SampledTask[ConversationDataset]):
    """The samples of a multi-modal run around its objective; raises ConfigError where there is nothing to train on."""

    def __init__(self, config: MultimodalRunConfig) -> None:
        self.config = config
        self.objective = MultimodalObjective(config)
        layouts = config.network.modalities
        self.encoder = PromptEncoder(
            self.objective.tokenizer,
            {name: layout.num_image_tokens for name, layout in layouts.items()},
            config.data.max_length,
        )
        source = image_source(config.data)
        try:
            splits, self.audit = open_data(config.data, source, self.encoder)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        held_out = splits["val"][: config.answers.max_samples]
        self._collator = ConversationCollator(self.encoder)
        samples = ConversationDataset(splits["train"], source, seed=config.seed, training=True)
        super().__init__(samples, config.data.loader, self._collator.joint)
        self.held_out = ConversationDataset(held_out, source, seed=config.seed, training=False)
        self._unreadable: set[int] = set()  # held-out questions whose images could not be read

    def sampler(self, rank: int, world_size: int) -> ShardedBatchSampler | AlignedSampler:
        """The order of the training samples; raises ValueError when they do not fill one global batch."""
        layout = self.layout(rank, world_size)
        kinds = [record.kind for record in self.samples.records]
        return build_sampler(
            kinds,
            self.config.data.sampling,
            layout,
            seed=self.config.seed,
            drop_last=self.config.train.drop_last,
        )

    def layout(self, rank: int, world_size: int) -> Layout:
        """Rows of a micro-batch, and who has which."""
        batch = self.config.batch
        return Layout(rank, world_size, batch.per_core_batch_size, batch.accumulation(world_size))

    def train_batches(self, *, rank: int, world_size: int, start_step: int, num_steps: int) -> TrainBatches:
        """Micro-batches of this rank."""
        if isinstance(sampler := self.sampler(rank, world_size), AlignedSampler):
            self.objective.num_programs = len(sampler.sets)
        return super().train_batches(rank=rank, world_size=world_size, start_step=start_step, num_steps=num_steps)

    def val_batches(self, *, rank: int, world_size: int) -> Iterable[ConversationBatch]:
        """Held-out questions, each kind in batches of its own; rows that only fill a batch have no label."""
        for batch, _ in self.held_out_batches(rank, world_size):
            yield batch

    def held_out_batches(self, rank: int, world_size: int) -> Iterator[tuple[ConversationBatch, list[int | None]]]:
        """Each batch with the number of each row's question, None where the row does not count: it repeats another to
        fill the batch, or its images cannot be read, which a warning says once.
        """
        kinds = [record.kind for record in self.held_out.records]
        for wanted in evaluation_batches(kinds, self.layout(rank, world_size)):
            samples = [self._held_out_sample(index) for index in wanted.indices]
            numbers = [
                index if place < wanted.num_real and index not in self._unreadable else None
                for place, index in enumerate(wanted.indices)
            ]
            batch, _ = self._collator.joint(samples)
            batch.labels[torch.tensor([number is None for number in numbers])] = NO_ANSWER
            yield batch, numbers

    def _held_out_sample(self, index: int) -> Sample:
        """With blank images where its own cannot be read: one lost file is no reason to lose a run."""
        try:
            return self.held_out[SampleKey(0, index)]
        except NeuroFileError as error:
            if index not in self._unreadable:
                log.warning("a held-out question is left out of losses and scores: %s", error)
            self._unreadable.add(index)
            return self.held_out.blank(index)

    @property
    def training_records(self) -> tuple[Conversation, ...]:
        """What the run trains on."""
        return self.samples.records

    def watch(self, model: nn.Module, runtime: Runtime, *, total_steps: int, folder: RunFolder) -> Watch | None:
        """Answers to the held-out questions."""
        if not len(self.held_out):
            log.warning("no question is held out, so nothing says whether the run learns; raise data.val_fraction")
            return None
        from pretraining.answers import AnswerWatch

        return AnswerWatch(
            task=self, total_steps=total_steps, record=folder.metrics, logs=folder.path / "generation_logs.jsonl"
        )

    def facts(self) -> dict[str, Any]:
        """Volumes and bad files, for the summary."""
        return {
            "samples": {"train": len(self.samples), "held_out": len(self.held_out), "accepted": len(self.audit.kept)},
            "bad_files": {str(reason): count for reason, count in self.audit.by_reason.items()},
        }
