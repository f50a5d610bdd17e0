"""Which persons train, validate and test: all samples of a person stand on one side."""

from collections import Counter
from collections.abc import Sequence

from data_setup.neuro.conversations import Conversation
from data_setup.splits import Split, assign_splits


def split_by_subject(
    records: Sequence[Conversation], *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[Split, list[Conversation]], tuple[str, ...]]:
    """The records of each split, in their order, and notes where the rule had to bend (a single person).

    Persons are ranked by hash, the first of them test, the next validate: a new person moves at most one other
    across each border. A fraction of 0 leaves its split empty. Raises ValueError for fractions that leave nothing to
    train on, and for sample ids that occur twice.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be 0 or more and leave something to "
            f"train on: together below 1"
        )
    subject_of = {record.sample_id: record.subject_id for record in records}
    if len(subject_of) < len(records):
        [(example, times)] = Counter(record.sample_id for record in records).most_common(1)
        raise ValueError(
            f"{len(records) - len(subject_of)} of {len(records)} samples have the id of another, e.g. {example!r} "
            f"{times} times: make task_id unique, or leave it out"
        )
    sides: dict[str, Split] = dict.fromkeys(subject_of, "train")
    notes = []
    for side, fraction in (("test", test_fraction), ("val", val_fraction / (1 - test_fraction))):
        left = {sample: subject_of[sample] for sample, now in sides.items() if now == "train"}
        if fraction == 0 or not left:
            continue
        chosen, note = assign_splits(left, fraction, seed)
        sides.update((sample, side) for sample, now in chosen.items() if now == "val")  # type: ignore[misc]
        notes += [note] if note else []
    split: dict[Split, list[Conversation]] = {"train": [], "val": [], "test": []}
    for record in records:
        split[sides[record.sample_id]].append(record)
    return split, tuple(dict.fromkeys(notes))
