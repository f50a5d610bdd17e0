"""Rows of scores -> a table to read, and JSON for the report and for scripts.

JSON: a list of objects, one per score, with the fields of diagnostics.probes.ProbeRow. label, metric (r2, mae, auroc,
balanced_accuracy), probe (ridge, logistic, knn, attentive, mean), contestant (encoder, random_init, pca, patch_means,
intensity, mean_predictor); score, low, high (95 % interval); num_volumes, num_patients, num_missing; differences:
{control: [value, low, high]} of the encoder; beats: the controls whose interval it clears; beats_controls: random_init
and pca are among them. And source, step, data: what was probed, on what. A bound that is not known is null.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oct_foundation.diagnostics.probes import CONTROLS, MEAN_PREDICTOR, ProbeRow
from pretraining.run_folder import write_atomic

ENCODER = "encoder"
WIDE = 160  # columns that the table needs; narrower ones fold its cells
_LEGEND = (
    "(volumes of people). * the whole 95 % interval lies above those of random_init and pca. Who knows nothing has "
    "R2 0, AUROC 0.5."
)
_SHOWN_METRICS = {"r2": "R2", "auroc": "AUROC"}


def print_table(rows: Sequence[ProbeRow], console: Console) -> None:
    """A line per label and probe: score [low, high] of the encoder and of its controls, as R2 or AUROC; below it what
    the marks mean. In a narrow terminal cells take several lines.
    """
    controls = [name for name in CONTROLS if name != MEAN_PREDICTOR and any(row.contestant == name for row in rows)]
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("label", "probe", ENCODER, *controls):
        table.add_column(name, overflow="fold")
    between = " " if console.width >= WIDE else "\n"
    for row in rows:
        if row.contestant != ENCODER or row.metric not in _SHOWN_METRICS:
            continue
        rivals = (_rival(rows, row, name) for name in controls)
        cells = [_cell(row, row, between), *("" if rival is None else _cell(rival, row, between) for rival in rivals)]
        people = f"{row.num_volumes} of {row.num_patients}"
        table.add_row(
            *map(
                escape, (f"{row.label}{between}({people})", f"{row.probe}{between}{_SHOWN_METRICS[row.metric]}", *cells)
            )
        )
    console.print(table)
    console.print(_LEGEND, highlight=False, markup=False)


def write_json(path: Path, rows: Iterable[ProbeRow], **about: Any) -> None:
    """Writes the rows, each with what they are `about`; whole or not at all. Raises OSError."""
    found = [asdict(row) | {"beats_controls": row.beats_controls} | about for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(_without_nan(found), indent=1, allow_nan=False) + "\n")


def _rival(rows: Sequence[ProbeRow], row: ProbeRow, control: str) -> ProbeRow | None:
    """The control's row beside this one: under the same probe, else under its linear one."""
    alike = [one for one in rows if (one.label, one.metric, one.contestant) == (row.label, row.metric, control)]
    linear = [one for one in alike if one.probe in ("ridge", "logistic")]
    return next((one for one in alike if one.probe == row.probe), next(iter(linear), None))


def _cell(row: ProbeRow, beside: ProbeRow, between: str) -> str:
    mark = " *" if row.beats_controls else ""
    other = f"{between}({row.probe})" if row.probe != beside.probe else ""
    return f"{row.score:.2f}{mark}{between}[{row.low:.2f}, {row.high:.2f}]{other}"


def _without_nan(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _without_nan(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_without_nan(entry) for entry in value]
        case _:
            return value
