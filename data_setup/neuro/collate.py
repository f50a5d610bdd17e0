"""Samples -> {modality: {pixel_values, input_ids, attention_mask, labels}} of fixed shapes, and the joint batch.

A row stands under the modality of its first image, `text` without one. A row with two kinds of image leaves the second
under its own modality, where images may so outnumber rows.
"""

from collections.abc import Mapping, Sequence

import torch

from data_setup.neuro.modalities import MODALITIES, TEXT
from data_setup.neuro.prompt import IGNORED, PromptEncoder
from data_setup.neuro.samples import Sample
from oct_foundation.batch import ConversationBatch

Nested = dict[str, dict[str, torch.Tensor]]
_ROW_ORDER = (*MODALITIES, TEXT)
_ROW_KEYS = ("input_ids", "attention_mask", "labels")


class ConversationCollator:
    """The nested batch of a list of samples, rows padded on the right to the encoder's max_length."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    def __call__(self, samples: Sequence[Sample]) -> Nested:
        """Rows sorted by modality, in the order of the samples within one. pixel_values: float32 [n, *shape], in the
        order of the modality's places in the sorted rows; the next three: int64 [rows, max_length]; sample: int64
        [rows], the place of a row's sample in the list.

        Raises NeuroFileError(too_long), which check_records finds before training, ValueError for shapes that differ.
        """
        nested: Nested = {}
        places = sorted(range(len(samples)), key=lambda place: _ROW_ORDER.index(_home(samples[place])))
        ordered = [samples[place] for place in places]
        for name in _ROW_ORDER:
            entry: dict[str, torch.Tensor] = {}
            images = [
                image
                for sample in ordered
                for ref, image in zip(sample.record.images, sample.images, strict=True)
                if ref.modality == name
            ]
            if images:
                entry["pixel_values"] = _stacked(name, images)
            rows = [self._row(sample) for sample in ordered if _home(sample) == name]
            if rows:
                entry |= {key: torch.stack([row[key] for row in rows]) for key in _ROW_KEYS}
                entry["sample"] = torch.tensor([place for place in places if _home(samples[place]) == name])
            if entry:
                nested[name] = entry
        return nested

    def joint(self, samples: Sequence[Sample]) -> tuple[ConversationBatch, list[list[str]]]:
        """The joint batch, and for each sample that was replaced the ids of those that could not be read, with why."""
        replaced = [[f"{name} ({reason})" for name, reason in sample.replaced] for sample in samples if sample.replaced]
        return joined(self(samples)), replaced

    def _row(self, sample: Sample) -> dict[str, torch.Tensor]:
        """int64 [max_length] each."""
        ids, labels = self._encoder.encode(sample.record)
        rest = self._encoder.max_length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self._encoder.pad_id] * rest),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * rest),
            "labels": torch.tensor(labels + [IGNORED] * rest),
        }


def joined(nested: Mapping[str, Mapping[str, torch.Tensor]]) -> ConversationBatch:
    """One batch of all rows, in the order T1, rsfMRI, dMRI, text.

    Raises ValueError for an unknown modality, no rows at all, or rows of different lengths.
    """
    unknown = sorted(set(nested) - set(_ROW_ORDER))
    if unknown:
        raise ValueError(f"a batch holds {', '.join(unknown)}; known: {', '.join(_ROW_ORDER)}")
    with_rows = [name for name in _ROW_ORDER if "input_ids" in nested.get(name, {})]
    lengths = {name: nested[name]["input_ids"].shape[1] for name in with_rows}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows of one batch need one length; found {lengths or 'no rows'}")
    return ConversationBatch(
        images={name: nested[name]["pixel_values"] for name in MODALITIES if "pixel_values" in nested.get(name, {})},
        rows={name: nested[name]["input_ids"].shape[0] for name in with_rows},
        **{key: torch.cat([nested[name][key] for name in with_rows]) for key in _ROW_KEYS},
    )


def rows_by_sample(nested: Mapping[str, Mapping[str, torch.Tensor]]) -> torch.Tensor | None:
    """int64 [R]: which row of the joint batch is that of the first sample, the second ...; None where the nested batch
    does not tell.
    """
    with_rows = [nested[name] for name in _ROW_ORDER if "input_ids" in nested.get(name, {})]
    if not all("sample" in entry for entry in with_rows):
        return None
    return torch.cat([entry["sample"] for entry in with_rows]).argsort()


def _home(sample: Sample) -> str:
    """Under which name a sample's row stands."""
    return sample.record.images[0].modality if sample.record.images else TEXT


def _stacked(name: str, images: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{name} images of one batch differ in shape: {sorted(shapes)}")
    return torch.stack(list(images))
