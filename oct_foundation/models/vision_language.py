"""Brain volumes and a question -> the answer: an embedding per modality, one vision tower, any causal language model.

Rows of text with image tokens and the volumes of those images enter; each row's loss on its answer leaves. What the
tower sees of a volume takes the places of its image tokens, as in LLaVA (arXiv 2304.08485).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from oct_foundation.batch import ConversationBatch
from oct_foundation.models.blocks import LAYER_NORM_EPS, build_blocks, initialize
from oct_foundation.models.language import Images, LanguageConfig, LanguageModel
from oct_foundation.models.remat import run_block
from oct_foundation.models.volume_patches import PatchLayout, VolumeEmbedding, pool_tokens

NO_ANSWER = -100  # the label of a token that is not to be predicted, as transformers has it


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig:
    """What decides the shape of a VisionLanguageModel. modalities: the enabled ones, in the order of a batch's rows."""

    modalities: Mapping[str, PatchLayout]
    language: LanguageConfig = field(default_factory=LanguageConfig)
    width: int = 192
    depth: int = 4
    num_heads: int = 3

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError("model.modalities is empty; enable at least one of T1, rsfMRI, dMRI")
        for key in ("width", "depth", "num_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} must be at least 1; found {getattr(self, key)}")
        if self.width % self.num_heads:
            raise ValueError(f"model.width {self.width} does not divide into model.num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """What the model must know of its tokenizer. image: modality -> the token that marks a place of its images."""

    vocabulary_size: int
    image: Mapping[str, int]
    end: int


class ConversationLoss(NamedTuple):
    """loss: 0-d; sums: modality (or `text`) -> detached 0-d sum of its rows' mean losses; counts: 0-d, rows with an
    answer.
    """

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]


class VisionTower(nn.Module):
    """A pre-norm vision transformer that all modalities share, each with its own `{modality}_patch_embed`."""

    def __init__(self, config: VisionLanguageConfig) -> None:
        super().__init__()
        for name, layout in config.modalities.items():
            self.add_module(f"{name}_patch_embed", VolumeEmbedding(layout, config.width))
        self.blocks = build_blocks(config.width, config.depth, config.num_heads)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        initialize(self, self.blocks)

    def embedding(self, name: str) -> VolumeEmbedding:
        """Of one modality."""
        module = self.get_submodule(f"{name}_patch_embed")
        assert isinstance(module, VolumeEmbedding)
        return module

    def forward(self, name: str, volume: torch.Tensor | None) -> torch.Tensor:
        """volume: float [n, *shape] of modality `name`, or None for one empty token. Returns float32 [n, N, E]."""
        tokens = self.embedding(name)(volume)
        for block in self.blocks:
            tokens = run_block(block, tokens, None)
        return self.norm(tokens)


class VisionLanguageModel(nn.Module):
    """Vision tower, projector, language model; `forward` is the only entry in training (DDP wraps it).

    runs_absent: an enabled modality that the batch lacks runs on one empty token, times 0. FSDP2 wants that where
    ranks may hold different modalities: else one rank's all-gather of T1 meets another's of rsfMRI, and the result is
    wrong without an error. Weights come from torch's global generator.
    """

    def __init__(self, config: VisionLanguageConfig, tokens: TokenIds) -> None:
        super().__init__()
        for name in config.modalities:
            if not 0 <= tokens.image.get(name, -1) < tokens.vocabulary_size:
                raise ValueError(
                    f"modality {name} needs an image token below {tokens.vocabulary_size}, the size of the "
                    f"vocabulary; found {tokens.image.get(name)}"
                )
        self.config, self.tokens = config, tokens
        self.runs_absent = False
        self.vision_tower = VisionTower(config)
        self.language_model = LanguageModel(config.language, tokens.vocabulary_size)
        language_width = self.language_model.width
        self.projector = nn.Sequential(
            nn.Linear(config.width, language_width), nn.GELU(), nn.Linear(language_width, language_width)
        )

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """What one modality alone owns. After sharding, the shares."""
        return {name: list(self.vision_tower.embedding(name).parameters()) for name in self.config.modalities}

    def trunk(self) -> list[nn.Parameter]:
        """What all modalities pass through and text alone does not: blocks, norm and projector."""
        tower = self.vision_tower
        return [parameter for part in (tower.blocks, tower.norm, self.projector) for parameter in part.parameters()]

    def forward(
        self,
        images: Mapping[str, torch.Tensor],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        rows: Mapping[str, int],
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> ConversationLoss:
        """The fields of a ConversationBatch -> the mean over rows of each row's mean loss over its answer tokens.

        So a question counts once, however long its answer, and ranks with equally many rows average exactly to their
        union. A row without an answer does not count. num_items_in_batch, where given: the sum over all answer tokens
        divided by it, the convention of transformers.Trainer.
        """
        logits = self.language_model(input_ids, attention_mask, self.look(images, input_ids))
        answers = labels[:, 1:]
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), answers.flatten(), ignore_index=NO_ANSWER, reduction="none"
        ).view_as(answers)
        totals, num_tokens = losses.sum(1), (answers != NO_ANSWER).sum(1)
        row_losses, answered = totals / num_tokens.clamp(min=1), (num_tokens > 0).float()
        if num_items_in_batch is None:
            loss = row_losses.sum() / answered.sum().clamp(min=1)
        else:
            loss = totals.sum() / num_items_in_batch
        sizes = list(rows.values())
        sums, counts = (
            {name: part.sum() for name, part in zip(rows, per_row.split(sizes), strict=True)}
            for per_row in (row_losses.detach(), answered)
        )
        return ConversationLoss(loss, sums, counts)

    def look(self, images: Mapping[str, torch.Tensor], input_ids: torch.Tensor) -> Images | None:
        """What the tower sees, as wide as the language model reads, at the places of `input_ids` (int64 [R, L]).

        None where there is nothing to see. Raises ValueError for a modality that is not enabled.
        """
        if unknown := images.keys() - self.config.modalities.keys():
            raise ValueError(
                f"the batch holds {', '.join(sorted(unknown))}; this model has branches for "
                f"{', '.join(self.config.modalities)} only"
            )
        if not images and not self.runs_absent:
            return None
        shown = torch.zeros_like(input_ids, dtype=torch.bool)
        embeddings = torch.zeros(*input_ids.shape, self.language_model.width, device=input_ids.device)
        for name, layout in self.config.modalities.items():
            if name in images:
                seen = pool_tokens(self.vision_tower(name, images[name]), layout)
                places = input_ids == self.tokens.image[name]
                embeddings, shown = place_features(embeddings, places, self.projector(seen)), shown | places
            elif self.runs_absent:
                embeddings = embeddings + 0.0 * self.projector(self.vision_tower(name, None)).sum()
        return Images(embeddings, shown)

    @torch.no_grad()
    def generate(self, batch: ConversationBatch, max_new_tokens: int) -> torch.Tensor:
        """Greedy answers to the prompts, what stands before the first labelled token: int64 [R, max_new_tokens].

        After its first end token a row holds end tokens. The training mode is put back. Every token runs all places
        again: for a few samples in a log, and one shape, so one program, for all of them.
        """
        was_training = self.training
        self.eval()
        try:
            return self._decode(batch, max_new_tokens)
        finally:
            self.train(was_training)

    def _decode(self, batch: ConversationBatch, max_new_tokens: int) -> torch.Tensor:
        attended, answered = batch.attention_mask > 0, batch.labels != NO_ANSWER
        num_rows, length = attended.shape
        places = torch.arange(length + max_new_tokens, device=attended.device)
        behind_text = (places[:length] * attended).amax(1) + 1
        start = torch.where(answered.any(1), answered.int().argmax(1), behind_text)
        prompt = F.pad(attended, (0, max_new_tokens)) & (places < start[:, None])
        images = self.look(batch.images, batch.input_ids)
        if images is not None:
            embeddings = F.pad(images.embeddings, (0, 0, 0, max_new_tokens))
            images = Images(embeddings, F.pad(images.shown, (0, max_new_tokens)) & prompt)
        ids, mask = F.pad(batch.input_ids, (0, max_new_tokens)), prompt
        row, ended, generated = torch.arange(num_rows, device=start.device), torch.zeros_like(start).bool(), []
        for number in range(max_new_tokens):
            logits = self.language_model(ids, mask, images)[row, start + number - 1]
            token = torch.where(ended, self.tokens.end, logits.argmax(-1))
            ended = ended | (token == self.tokens.end)
            generated.append(token)
            here = places == (start + number)[:, None]
            ids, mask = torch.where(here, token[:, None], ids), mask | here
        return torch.stack(generated, dim=1)


def place_features(embeddings: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Puts `features` [n, k, H] into `embeddings` [R, L, H] where `places` (bool [R, L]) holds, in row order.

    The shapes do not depend on the values, so XLA makes one program: the number of places so far is the index of the
    feature. The n k places must be as many as features: `check_places` counts on the host.
    """
    flat = features.flatten(0, 1).to(embeddings.dtype)
    # As numbers first: XLA sums a bool to a bool.
    index = (places.flatten().long().cumsum(0) - 1).clamp(0, flat.shape[0] - 1)
    return torch.where(places.unsqueeze(-1), flat.index_select(0, index).view_as(embeddings), embeddings)


def check_places(batch: ConversationBatch, config: VisionLanguageConfig, tokens: TokenIds) -> None:
    """Raises ValueError unless each modality has as many places in the text as its images give tokens.

    Reads tensors: for a batch on the host, or for the first ones on a device.
    """
    for name, layout in config.modalities.items():
        found = int((batch.input_ids == tokens.image[name]).sum())
        num_images = len(batch.images[name]) if name in batch.images else 0
        if found != num_images * layout.num_image_tokens:
            raise ValueError(
                f"{num_images} images of {name} need {layout.num_image_tokens} places each in the text; found "
                f"{found}. Was the prompt cut off, or the collator told another number of image tokens?"
            )
