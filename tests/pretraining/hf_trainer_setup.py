"""A tiny model, phantoms of three kinds and a trainer around them; every start builds the same.

Its users run in processes of their own with USE_TORCH_XLA=0: else Trainer moves to XLA where torch_xla is installed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from data_setup.neuro.brain_phantom import BrainPhantomSettings, PhantomImages, phantom_records
from data_setup.neuro.collate import ConversationCollator
from data_setup.neuro.dataset import ConversationDataset
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.samples import Sample
from data_setup.neuro.tokenizer import byte_tokenizer, image_token_ids
from data_setup.sampler import SampleKey
from oct_foundation.models.language import LanguageConfig
from oct_foundation.models.vision_language import TokenIds, VisionLanguageConfig, VisionLanguageModel
from oct_foundation.models.volume_patches import PatchLayout
from pretraining.hf_trainer import DummyLossTrainer, MultimodalSettings

PHANTOM = BrainPhantomSettings(num_per_modality=8, volume_size=16, functional_size=12, num_frames=8)
VOLUME = PatchLayout(shape=(1, 16, 16, 16), patch_size=(8, 8, 8), pool=(2, 2, 2))
LAYOUTS = {"T1": VOLUME, "rsfMRI": PatchLayout(shape=(1, 12, 12, 12, 8), patch_size=(12, 12, 12, 4)), "dMRI": VOLUME}
TOKENIZER = byte_tokenizer()
ENCODER = PromptEncoder(TOKENIZER, {name: layout.num_image_tokens for name, layout in LAYOUTS.items()}, max_length=72)
COLLATOR = ConversationCollator(ENCODER)


def new_model(language: LanguageConfig | None = None, layouts: dict[str, PatchLayout] = LAYOUTS) -> VisionLanguageModel:
    torch.manual_seed(0)
    config = VisionLanguageConfig(
        modalities=layouts, language=language or LanguageConfig(width=32, num_heads=2), width=24, depth=1, num_heads=2
    )
    tokens = TokenIds(vocabulary_size=len(TOKENIZER), image=image_token_ids(TOKENIZER), end=int(TOKENIZER.eos_token_id))
    return VisionLanguageModel(config, tokens)


def phantoms() -> ConversationDataset:
    return ConversationDataset(phantom_records(PHANTOM), PhantomImages(settings=PHANTOM), seed=0, training=False)


def samples_of(kinds: Sequence[str]) -> list[Sample]:
    """A sample of each kind named, another one each time; `text` asks a phantom's question without the image."""
    everything = phantoms()
    by_kind = {name: [n for n, r in enumerate(everything.records) if r.kind == name] for name in LAYOUTS}
    found, used = [], dict.fromkeys((*LAYOUTS, "text"), 0)
    for kind in kinds:
        numbers = by_kind["T1" if kind == "text" else kind]
        sample = everything[SampleKey(0, numbers[used[kind] % len(numbers)])]
        used[kind] += 1
        if kind == "text":
            record = dataclasses.replace(sample.record, images=(), prompt="left or right?", sample_id="text")
            sample = Sample(record=record, images=())
        found.append(sample)
    return found


class Listed(Dataset[Sample]):
    """Samples in the order of a list."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def trainer_of(
    folder: Path,
    kinds: Sequence[str],
    settings: MultimodalSettings | None = None,
    model: VisionLanguageModel | None = None,
    more: dict[str, Any] | None = None,
    **arguments: Any,
) -> DummyLossTrainer:
    """Trains on `kinds` in their order; by default two rows a batch, AdamW with decay and clip, a log every update."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.1,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
    }
    return DummyLossTrainer(
        model or new_model(),
        TrainingArguments(output_dir=str(folder), **defaults | arguments),
        data_collator=COLLATOR,
        train_dataset=Listed(samples_of(kinds)),
        processing_class=TOKENIZER,
        multimodal=settings,
        **more or {},
    )
