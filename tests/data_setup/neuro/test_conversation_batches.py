"""Samples to batches: the nested form, the joint form, and where each row and image goes."""

import pytest
import torch

from data_setup.neuro.collate import ConversationCollator, joined, rows_by_sample
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.samples import Sample
from data_setup.neuro.tokenizer import byte_tokenizer

SHAPES = {"T1": (1, 4, 4, 4), "rsfMRI": (1, 3, 3, 3, 2), "dMRI": (1, 4, 4, 4)}
COLLATE = ConversationCollator(PromptEncoder(byte_tokenizer(), {"T1": 2, "rsfMRI": 3, "dMRI": 4}, 64))


@pytest.fixture
def sample(make_record):
    """sample("T1", number=7): every image is filled with the number."""

    def make(*modalities: str, number: int = 0) -> Sample:
        images = tuple(torch.full(SHAPES[modality], float(number)) for modality in modalities)
        return Sample(record=make_record(*modalities, number=number, answer=str(number)), images=images)

    return make


def test_the_nested_form_of_a_mixed_batch(sample) -> None:
    nested = COLLATE([sample("dMRI", number=1), sample("T1", number=2), sample(number=3), sample("T1", number=4)])
    assert list(nested) == ["T1", "dMRI", "text"]
    assert set(nested["T1"]) == {"pixel_values", "input_ids", "attention_mask", "labels", "sample"}
    assert set(nested["text"]) == {"input_ids", "attention_mask", "labels", "sample"}
    assert {name: entry["sample"].tolist() for name, entry in nested.items()} == {
        "T1": [1, 3],
        "dMRI": [0],
        "text": [2],
    }
    assert rows_by_sample(nested).tolist() == [2, 0, 3, 1]
    assert nested["T1"]["pixel_values"].shape == (2, 1, 4, 4, 4)
    assert nested["T1"]["pixel_values"][:, 0, 0, 0, 0].tolist() == [2, 4]
    assert all(entry["input_ids"].shape[1] == 64 for entry in nested.values())


def test_padding_is_masked_and_never_trained_on(sample) -> None:
    [entry] = COLLATE([sample("T1", number=5)]).values()
    length = int(entry["attention_mask"].sum())
    assert entry["attention_mask"][0].tolist() == [1] * length + [0] * (64 - length)
    assert (entry["input_ids"][0, length:] == 0).all()
    assert entry["labels"][0].ne(-100).nonzero().ravel().tolist() == [length - 2, length - 1]  # "5" and the end


def test_joined_rows_and_images_keep_one_order(sample) -> None:
    batch = joined(
        COLLATE([sample("dMRI", number=1), sample(number=3), sample("T1", number=2), sample("rsfMRI", number=4)])
    )
    assert batch.rows == {"T1": 1, "rsfMRI": 1, "dMRI": 1, "text": 1}
    assert list(batch.rows) == ["T1", "rsfMRI", "dMRI", "text"]
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape == (4, 64)
    assert batch.present == {"T1", "rsfMRI", "dMRI"}
    answers = [chr(int(row[row != -100][0]) - 6 + 33) for row in batch.labels]  # "!" is the first byte of the alphabet
    assert answers == ["2", "4", "1", "3"]


def test_images_follow_the_places_of_their_modality_row_by_row(sample) -> None:
    batch = joined(COLLATE([sample("dMRI", number=1), sample("dMRI", "T1", number=2), sample("T1", "dMRI", number=3)]))
    assert batch.rows == {"T1": 1, "dMRI": 2}
    assert batch.images["T1"][:, 0, 0, 0, 0].tolist() == [3, 2]
    assert batch.images["dMRI"][:, 0, 0, 0, 0].tolist() == [3, 1, 2]
    for modality, (token, count) in {"T1": (3, 2), "dMRI": (5, 4)}.items():
        assert int((batch.input_ids == token).sum()) == count * len(batch.images[modality])


def test_a_modality_may_have_images_and_no_rows(sample) -> None:
    nested = COLLATE([sample("T1", "dMRI", number=3)])
    assert set(nested["dMRI"]) == {"pixel_values"}
    assert joined(nested).rows == {"T1": 1}


def test_what_cannot_be_joined_is_refused(sample) -> None:
    with pytest.raises(ValueError, match="no rows"):
        joined({})
    with pytest.raises(ValueError, match="CT"):
        joined({"CT": {}})
    nested = COLLATE([sample("T1"), sample("dMRI")])
    nested["dMRI"] = {key: value[:, :9] if value.ndim == 2 else value for key, value in nested["dMRI"].items()}
    with pytest.raises(ValueError, match=r"one length.*T1.*64.*dMRI.*9"):
        joined(nested)
    odd = sample("T1")
    other = Sample(record=odd.record, images=(torch.zeros(1, 5, 5, 5),))
    with pytest.raises(ValueError, match="T1 images of one batch differ"):
        COLLATE([odd, other])
