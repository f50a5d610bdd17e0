"""Patients -> folds: who is scored by a probe has never been seen by it, with neither eye and at no visit.

Two eyes of one person look alike and share most labels: folds by volume would score the memory of a face.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from oct_foundation.diagnostics.labels import Label


class Split(NamedTuple):
    """Positions of the volumes that a probe learns from, and of those that it is scored on: int64 [K1], [K2]."""

    train: np.ndarray
    test: np.ndarray


def patient_folds(label: Label, groups: np.ndarray, num_folds: int, seed: int) -> list[Split]:
    """`num_folds` splits of the label's K known volumes; `groups` [K] are their patients. Classes are spread evenly.

    Raises ValueError where there are fewer patients than folds, in all or of one class, and where a class is missing
    from a training part.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    check_enough(label, groups, num_folds)
    rows = np.zeros(len(groups))
    if label.kind == "values":
        found = GroupKFold(num_folds, shuffle=True, random_state=seed).split(rows, groups=groups)
        return [Split(train, test) for train, test in found]
    stratified = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = [Split(train, test) for train, test in stratified.split(rows, label.targets, groups)]
    for code in range(len(label.classes)):
        if any(code not in label.targets[fold.train] for fold in folds):
            raise ValueError(
                f"label {label.name}: a fold leaves no volume of class {label.classes[code]!r} to learn from; its "
                "patients are too few or too unequal: use fewer folds, or join the class with another"
            )
    return folds


def check_enough(label: Label, groups: np.ndarray, num_folds: int) -> None:
    """Raises ValueError where fewer patients than folds know the label, or have one of its classes."""
    for name, count in _patients(label, groups):
        if count < num_folds:
            raise ValueError(
                f"label {label.name}: {count} patients{name} cannot fill {num_folds} folds; use fewer folds"
                f"{', or leave this class empty' if name else ''}"
            )


def inner_folds(label: Label, groups: np.ndarray, rows: np.ndarray, num_folds: int, seed: int) -> list[Split]:
    """Folds inside the volumes `rows` [K1] of an outer training part, as positions in `rows`.

    There are fewer where a class has fewer patients; raises ValueError where it has only one.
    """
    part = Label(
        name=label.name, kind=label.kind, known=label.known, targets=label.targets[rows], classes=label.classes
    )
    name, fewest = min(_patients(part, groups[rows]), key=lambda found: found[1])
    if fewest < 2:
        raise ValueError(
            f"label {label.name}: a training part holds {fewest} patient{name}, too few to choose how strongly to "
            "regularise; use more folds, or leave this class empty"
        )
    return patient_folds(part, groups[rows], min(num_folds, fewest), seed)


def _patients(label: Label, groups: np.ndarray) -> Iterator[tuple[str, int]]:
    """How many patients there are: in all, then of each class."""
    yield "", len(np.unique(groups))
    for code, name in enumerate(label.classes):
        yield f" of class {name!r}", len(np.unique(groups[label.targets == code]))
