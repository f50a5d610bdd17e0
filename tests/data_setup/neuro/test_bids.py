"""A BIDS folder is read by places and names; persons without an answer are counted."""

from pathlib import Path

import pytest

from data_setup.neuro.bids import BidsSettings, entities_of, read_bids
from data_setup.neuro.conversations import ImageRef
from data_setup.neuro.errors import NeuroFileError

FILES = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz",
    "sub-01/func/sub-01_task-nback_bold.nii.gz",
    "sub-01/dwi/sub-01_dwi.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii",
    "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii",
    "sub-03/anat/sub-03_T1w.nii.gz",
    "sub-04/anat/sub-04_T1w.nii.gz",
    "derivatives/sub-01/anat/sub-01_T1w.nii.gz",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t30\tF\nsub-02\t40\tM\nsub-03\t50\tn/a\n"
    )
    return tmp_path


def test_images_with_their_answers(root: Path) -> None:
    records, refused = read_bids(root, BidsSettings(answers={"F": "female"}))
    assert [(record.sample_id, record.kind, record.subject_id, record.answer) for record in records] == [
        ("sub-01_T1w", "T1", "01", "female"),
        ("sub-02_ses-a_T1w", "T1", "02", "M"),
        ("sub-01_task-rest_run-1_bold", "rsfMRI", "01", "female"),
        ("sub-01_dwi", "dMRI", "01", "female"),
    ]
    assert records[0].images == (ImageRef("T1", FILES[0]),)
    assert records[2].prompt == "<image_fMRI>\nWhat is the sex of this person?"
    assert [(found.sample_id, found.error.reason) for found in refused] == [
        ("sub-03_T1w", "no_answer"),
        ("sub-04_T1w", "no_answer"),
    ]


def test_all_tasks_and_another_column(root: Path) -> None:
    records, _ = read_bids(root, BidsSettings(column="age", question="How old?", task=None))
    assert sum(record.kind == "rsfMRI" for record in records) == 2
    assert {record.answer for record in records} == {"30", "40", "50"}


def test_a_dangling_link_is_listed_and_found_missing_later(root: Path) -> None:
    (root / "sub-02/anat").mkdir()
    (root / "sub-02/anat/sub-02_T1w.nii.gz").symlink_to(root / "annex-object-not-fetched")
    assert "sub-02_T1w" in [record.sample_id for record in read_bids(root, BidsSettings())[0]]


def test_a_short_line_of_the_table_is_nobody(root: Path) -> None:
    (root / "participants.tsv").write_text("age\tparticipant_id\tsex\n30\tsub-01\tF\n40\n")
    assert {record.subject_id for record in read_bids(root, BidsSettings())[0]} == {"01"}


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(NeuroFileError, match=r"columns participant_id, age, sex; needed: participant_id, iq"):
        read_bids(root, BidsSettings(column="iq"))
    (root / "participants.tsv").write_bytes(b"participant_id\tsex\nsub-01\tm\xe4nnlich\n")
    with pytest.raises(NeuroFileError, match=r"no text in UTF-8"):
        read_bids(root, BidsSettings())
    (root / "participants.tsv").unlink()
    with pytest.raises(NeuroFileError, match=r"missing.*participants\.tsv"):
        read_bids(root, BidsSettings())
    with pytest.raises(ValueError, match=r"bids\.question"):
        BidsSettings(question=" ")


def test_entities_of_a_name() -> None:
    assert entities_of("sub-01_ses-2_task-rest_run-1_bold.nii.gz") == {
        "sub": "01", "ses": "2", "task": "rest", "run": "1", "suffix": "bold",
    }  # fmt: skip
