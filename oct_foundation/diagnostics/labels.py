"""What is known of each volume -> a label that a probe can be trained on: numbers to predict, or classes to tell apart.

Enters a column as a table or a phantom gives it, with gaps; leaves numbers or class codes, and where they are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LabelKind = Literal["values", "classes"]

_MOST_CLASSES = 10  # a count of drusen has more values than that, a grade of a disease has not


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label of M volumes. known: bool [M]; targets: of the K known volumes, float64 [K], or int64 [K] codes that
    point into `classes` (empty for values).
    """

    name: str
    kind: LabelKind
    known: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...] = ()

    @property
    def num_missing(self) -> int:
        """Volumes without this label."""
        return int(np.sum(~self.known))

    def onehot(self) -> np.ndarray:
        """Classes as float64 [K, classes]."""
        return np.eye(len(self.classes))[self.targets]


def read_label(name: str, column: Sequence[Any] | np.ndarray, kind: LabelKind | None = None) -> Label:
    """The label in a column of M numbers or texts; None, "" and NaN are missing.

    Numbers with more than 10 distinct values are values, and fewer with fractions that hardly repeat; everything else
    is classes, unless `kind` says which. Raises
    ValueError where nothing is known, all is alike, a value is infinite, or values are asked for and texts found.
    """
    cells = [_cell(value) for value in np.asarray(column).tolist()]
    known = np.array([cell is not None for cell in cells], dtype=bool)
    found = [cell for cell in cells if cell is not None]
    if len(set(found)) < 2:
        what = f"only {found[0]!r}" if found else "no value"
        raise ValueError(f"label {name}: {what} in {len(cells)} volumes; a probe needs at least two different values")
    numbers = _as_numbers(name, found)
    kind = kind or ("values" if numbers is not None and _are_values(numbers) else "classes")
    if kind == "values":
        if numbers is None:
            text = next(cell for cell in found if _number(cell) is None)
            raise ValueError(f"label {name}: {text!r} is no number; leave it empty, or name the label in --classes")
        return Label(name=name, kind="values", known=known, targets=numbers)
    if numbers is None:
        classes, codes = np.unique(np.array([str(cell) for cell in found]), return_inverse=True)
        return Label(name=name, kind="classes", known=known, targets=codes, classes=tuple(classes.tolist()))
    levels, codes = np.unique(numbers, return_inverse=True)
    names = tuple(f"{level:g}" for level in levels)
    return Label(name=name, kind="classes", known=known, targets=codes, classes=names)


def _are_values(numbers: np.ndarray) -> bool:
    """Whether numbers measure something, and name no classes: many different ones, or fractions that hardly repeat."""
    num_distinct = len(np.unique(numbers))
    fractions = bool(np.any(numbers != np.round(numbers)))
    return num_distinct > _MOST_CLASSES or (fractions and num_distinct > len(numbers) / 2)


def _cell(value: Any) -> float | str | None:
    """A number or a text; None where nothing is known."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    return None if np.isnan(value) else float(value)


def _number(cell: float | str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _as_numbers(name: str, cells: Sequence[float | str]) -> np.ndarray | None:
    """float64 [K], or None where one of the cells is a text. Raises ValueError for an infinite one."""
    numbers = [_number(cell) for cell in cells]
    found = np.array([number for number in numbers if number is not None], dtype=np.float64)
    if len(found) < len(numbers):
        return None
    if not np.isfinite(found).all():
        raise ValueError(f"label {name} holds {found[~np.isfinite(found)][0]}; leave unknown values empty")
    return found
