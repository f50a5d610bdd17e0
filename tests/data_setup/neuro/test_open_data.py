"""The data section of a run: from a place on disk to the records of each split, or a sentence that says why not."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_setup.neuro.bids import BidsSettings
from data_setup.neuro.brain_phantom import BrainPhantomSettings
from data_setup.neuro.collate import ConversationCollator
from data_setup.neuro.dataset import ConversationDataset
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.fmri import FunctionalSettings
from data_setup.neuro.open_data import NeuroDataSettings, image_source, open_data
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.tokenizer import byte_tokenizer
from data_setup.neuro.volumes import VolumeSettings
from data_setup.sampler import SampleKey

ENCODER = PromptEncoder(byte_tokenizer(), {"T1": 8, "rsfMRI": 8, "dMRI": 8}, 128)


def test_the_default_needs_no_file() -> None:
    settings = NeuroDataSettings(phantom=BrainPhantomSettings(num_per_modality=20))
    data = open_data(settings, image_source(settings), ENCODER)
    assert {side: len(found) for side, found in data.splits.items()} == {"train": 42, "val": 9, "test": 9}


@pytest.fixture
def study(tmp_path: Path, write_nifti) -> Path:
    """A JSON of 6 people with a T1 each, of which the last file is absent."""
    entries = []
    for number in range(6):
        name = f"img/{number}.nii.gz"
        if number < 5:
            write_nifti(np.random.default_rng(number).normal(size=(6, 6, 6)), name)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "this"}]
        entries.append(
            {
                "task_id": f"t{number}",
                "subject_id": number + 1,
                "modality_paths": {"sMRI": name},
                "conversations": turns,
            }
        )
    (tmp_path / "all.json").write_text(json.dumps(entries))
    return tmp_path / "all.json"


def test_a_json_file_with_images_beside_it(study: Path, caplog) -> None:
    settings = NeuroDataSettings(source="json", path=str(study), T1=VolumeSettings(size=8), rsfMRI=None, dMRI=None)
    source = image_source(settings)
    with caplog.at_level(logging.INFO):
        data = open_data(settings, source, ENCODER)
    assert data.audit.by_reason == {"missing": 1}
    assert "6 samples: 5 usable, 1 refused" in caplog.text
    assert sum(map(len, data.splits.values())) == 5
    dataset = ConversationDataset(data.splits["train"], source, seed=0, training=True)
    assert dataset[SampleKey(0, 0)].images[0].shape == (1, 8, 8, 8)
    assert dataset.name(0) == data.splits["train"][0].sample_id
    again = ConversationDataset(data.splits["train"][::-1], source, seed=0, training=True)
    assert dataset.fingerprint() != again.fingerprint()
    with pytest.raises(ValueError, match=r"max_bad_fraction=0\.1"):
        open_data(NeuroDataSettings(source="json", path=str(study), max_bad_fraction=0.1), source, ENCODER)


def test_a_worker_process_can_be_given_all_of_it(study: Path) -> None:
    settings = NeuroDataSettings(source="json", path=str(study), T1=VolumeSettings(size=8), max_bad_fraction=1)
    source = image_source(settings)
    records = open_data(settings, source, ENCODER).audit.kept
    dataset = ConversationDataset(records, source, seed=0, training=True)
    there, collator = pickle.loads(pickle.dumps((dataset, ConversationCollator(ENCODER))))
    (study.parent / "img/1.nii.gz").unlink()
    batch, replaced = collator.joint([there[SampleKey(0, 0)], there[SampleKey(0, 1)]])
    assert batch.rows == {"T1": 2}
    assert replaced == [["t1 (missing)"]]
    error = pickle.loads(pickle.dumps(NeuroFileError(NeuroReason.EMPTY, "found")))
    assert (error.reason, error.detail) == (NeuroReason.EMPTY, "found")


def test_a_bids_folder(tmp_path: Path, write_nifti) -> None:
    for number in range(4):
        write_nifti(np.random.default_rng(number).normal(size=(6, 6, 6)), f"sub-{number}/anat/sub-{number}_T1w.nii.gz")
        run = np.random.default_rng(number).normal(9, 1, size=(6, 6, 6, 4))
        write_nifti(run, f"sub-{number}/func/sub-{number}_task-rest_bold.nii.gz", tr=2)
    rows = "".join(f"sub-{number}\t{'FM'[number % 2]}\n" for number in range(4))
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\n" + rows)
    run_settings = FunctionalSettings(size=8, sequence_length=3)
    settings = NeuroDataSettings(source="bids", path=str(tmp_path), rsfMRI=run_settings, bids=BidsSettings())
    data = open_data(settings, image_source(settings), ENCODER)
    assert data.audit.refused == ()
    assert data.audit.notes == {"a TR of 2 s": 4}
    for found in data.splits.values():
        assert sum(record.kind == "T1" for record in found) * 2 == len(found), "both images of a person on one side"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"source": "json"}, "data.path"),
        ({"path": "x"}, "data.path"),
        ({"source": "json", "path": "x", "T1": None, "rsfMRI": None, "dMRI": None}, "at least one"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction"),
    ],
)
def test_settings_that_contradict_each_other_are_named(values, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NeuroDataSettings(**values)


def test_a_place_without_records_is_named(tmp_path: Path) -> None:
    for kind in ("json", "bids"):
        settings = NeuroDataSettings(source=kind, path=str(tmp_path / "none"))
        with pytest.raises(ValueError, match=r"data\.path=.*none: missing"):
            open_data(settings, image_source(settings), ENCODER)
