"""Rows of scores -> a table to read, and JSON for the report and for scripts.

JSON: a list of objects, one per score, with the fields of diagnostics.probes.ProbeRow. label, metric (r2, mae, auroc,
balanced_accuracy), probe (ridge, logistic, knn, attentive, mean), contestant (encoder, random_init, pca, patch_means,
intensity, mean_predictor); score, low, high (95 % interval); num_volumes, num_patients, num_missing; differences:
{control: [value, low, high]} of the encoder; beats: the controls whose interval it clears; beats_controls: random_init
and pca are among them. What was probed, on what: source, step, data, split, volumes; seen_in_pretraining: how many of
the volumes the encoder was pretrained on, acquaintance: the same in words, notes: sentences. What is not known is null.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_setup.sources import is_gcs
from oct_foundation.diagnostics.probes import CONTROLS, ENCODER, MEAN_PREDICTOR, NOTHING_KNOWN, ProbeRow
from pretraining.label_table import PHANTOMS
from pretraining.run_folder import write_atomic

WIDE = 160  # columns that the table needs; narrower ones fold its cells
_SHOWN_METRICS = {"r2": "R2", "auroc": "AUROC"}
_LEGEND = (
    "(volumes of people). * the whole 95 % interval lies above those of random_init and pca. Who knows nothing has "
    + ", ".join(f"{_SHOWN_METRICS[metric]} {value:g}" for metric, value in NOTHING_KNOWN.items())
    + "."
)
_SLUG_LENGTH = 24


def print_table(rows: Sequence[ProbeRow], console: Console) -> None:
    """A line per label and probe: score [low, high] of the encoder and of its controls, as R2 or AUROC, "cannot tell"
    where nothing can be scored; below it what the marks mean. In a narrow terminal cells take several lines.
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


def data_slug(data: str, *, split: str = "all", labels: str | None = None, dense: bool = False) -> str:
    """A name for files about `data`: its last part, the split, and 6 hex digits of the whole and of its table.

    So /a/prepared and /b/prepared, or two tables of labels, have files of their own.
    """
    if data == PHANTOMS:
        return f"{PHANTOMS}-dense" if dense else PHANTOMS
    last = re.sub(r"[^a-z0-9]+", "-", data.rstrip("/").rpartition("/")[2].lower()).strip("-")[:_SLUG_LENGTH]
    whole = [path if is_gcs(path) else str(Path(path).resolve()) for path in (data, labels) if path is not None]
    digest = hashlib.sha256("\n".join(whole).encode()).hexdigest()[:6]
    parts = [last or "data", *([split.replace(" and ", "-")] if split != "all" else []), digest]
    return "-".join(parts)


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
    if not all(map(math.isfinite, (row.score, row.low, row.high))):
        return f"cannot tell{other}"
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
