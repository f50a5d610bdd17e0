"""Patients, not files, are split: counts, stability and the two small cases that bend the rule."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_setup.splits import assign_splits


@given(
    patient_of=st.dictionaries(st.text(max_size=5), st.integers(0, 30).map(str), max_size=60),
    val_fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_no_patient_stands_on_both_sides(patient_of: dict[str, str], val_fraction: float, seed: int) -> None:
    splits, note = assign_splits(patient_of, val_fraction, seed)
    assert set(splits) == set(patient_of)
    patients = set(patient_of.values())
    if len(patients) < 2:
        assert (note is None) == (not patients)
        return
    val = {patient_of[volume] for volume, split in splits.items() if split == "val"}
    train = {patient_of[volume] for volume, split in splits.items() if split == "train"}
    assert note is None
    assert not val & train
    assert len(val) == min(ceil(val_fraction * len(patients)), len(patients) - 1)


def test_order_of_the_files_does_not_matter_and_the_seed_does() -> None:
    patient_of = {f"v{number}": f"p{number // 2}" for number in range(40)}
    splits, _ = assign_splits(patient_of, 0.25, 0)
    assert assign_splits(dict(reversed(patient_of.items())), 0.25, 0)[0] == splits
    assert assign_splits(patient_of, 0.25, 1)[0] != splits


def test_a_new_patient_moves_at_most_one_other() -> None:
    patient_of = {f"v{number}": f"p{number}" for number in range(40)}
    before, _ = assign_splits(patient_of, 0.25, 0)
    after, _ = assign_splits({**patient_of, "new": "new"}, 0.25, 0)
    assert sum(before[volume] != after[volume] for volume in before) <= 1


def test_one_patient_is_split_by_volume_and_says_so() -> None:
    splits, note = assign_splits({f"v{number}": "p" for number in range(10)}, 0.2, 0)
    assert sorted(splits.values()) == ["train"] * 8 + ["val"] * 2
    assert note is not None
    assert "ONE PATIENT" in note


def test_one_volume_trains_and_says_so() -> None:
    splits, note = assign_splits({"v": "p"}, 0.5, 0)
    assert splits == {"v": "train"}
    assert note is not None
    assert "ONE VOLUME" in note


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_outside_its_range_is_named(val_fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        assign_splits({}, val_fraction, 0)
