"""Held-out questions of a multi-modal run: which rows count, and what an image that cannot be read costs."""

import json

import nibabel
import numpy as np
import pytest

from data_setup.neuro.tokenizer import byte_tokenizer
from pretraining.config import ConfigError, load_config
from pretraining.tasks.multimodal import MultimodalTask
from pretraining.tasks.multimodal_objective import MultimodalObjective
from tests.integration.conftest import PROJECT

CONFIG = PROJECT / "configs" / "umbrella_llava_train.yaml"


def write_volume(path, broken: bool = False) -> None:
    voxels = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    voxels[0, 0, 0] = np.nan if broken else 1.0
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


@pytest.fixture
def task(tmp_path):
    """Ten persons with a T1 each, about half of them held out."""
    entries = []
    for number in range(10):
        write_volume(tmp_path / f"{number}.nii")
        turns = [{"from": "human", "value": "Old?"}, {"from": "gpt", "value": "yes"}]
        entry = {"task_id": str(number), "subject_id": str(number), "modality_paths": {"T1": f"{number}.nii"}}
        entries.append(entry | {"conversations": turns})
    (tmp_path / "train.json").write_text(json.dumps(entries))
    small = ("data.T1.size=8", "data.dMRI=null", "data.rsfMRI=null", "data.val_fraction=0.5", "data.test_fraction=0")
    overrides = ("data.source=json", f"data.path={tmp_path / 'train.json'}", *small, "batch.per_core_batch_size=2")
    return MultimodalTask(load_config(CONFIG, overrides))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_held_out_question_has_one_row_that_counts_whatever_the_ranks(task, world_size):
    counted, num_batches = [], set()
    for rank in range(world_size):
        batches = list(task.held_out_batches(rank, world_size))
        num_batches.add(len(batches))
        for batch, numbers in batches:
            assert batch.num_samples == 2
            assert (batch.labels != -100).any(1).tolist() == [number is not None for number in numbers]
            counted += [number for number in numbers if number is not None]
    assert sorted(counted) == list(range(len(task.held_out)))
    assert len(num_batches) == 1, "sharded ranks run each module together"


def test_an_image_that_cannot_be_read_costs_its_own_question_and_is_named_once(task, tmp_path, caplog):
    broken = task.held_out.records[1].sample_id
    write_volume(tmp_path / f"{broken}.nii", broken=True)
    for _ in range(2):
        counted = [number for _, numbers in task.held_out_batches(0, 1) for number in numbers if number is not None]
        assert counted == [number for number in range(len(task.held_out)) if number != 1]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"sample {broken}: 1 of 216 voxels are NaN" in warning


def test_rows_longer_than_the_language_model_reads_are_refused_before_training():
    config = load_config(CONFIG, ["model.language.max_tokens=150", "answers.max_new_tokens=7"])
    with pytest.raises(ConfigError, match=r"data\.max_length=144 .* rows of 151 tokens, the language model reads 150"):
        MultimodalObjective(config).build_model()


def test_a_model_that_is_no_text_decoder_is_a_mistake_in_the_configuration(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    objective = MultimodalObjective(load_config(CONFIG, [f"model.hf_name={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"model\.hf_name=.* of kind 'llava'"):
        objective.build_model()
