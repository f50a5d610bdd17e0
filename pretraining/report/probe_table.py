"""Rows of one file of probes -> groups to compare: one label read by one probe, the encoder beside its controls.

A score without its interval and its controls says nothing, so both are always shown, on one scale a group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from oct_foundation.diagnostics.probes import ENCODER, NOTHING_KNOWN
from oct_foundation.diagnostics.scores import Metric, higher_is_better

_NO_PROBE = "mean"
_NOTHING_KNOWN: Mapping[str, float] = {str(metric): value for metric, value in NOTHING_KNOWN.items()}
_LESS_IS_BETTER = {metric for metric in get_args(Metric) if not higher_is_better(metric)}


@dataclass(frozen=True, kw_only=True)
class ContestantRow:
    """One score with its 95 % interval, as numbers and as text; left, width and dot: percent of the group's scale."""

    contestant: str
    is_encoder: bool
    score: float
    low: float
    high: float
    text: str
    left: float
    width: float
    dot: float


@dataclass(frozen=True, kw_only=True)
class ProbeGroup:
    """One label by one probe. zero: percent of the scale where who knows nothing stands, None where no such point is.

    higher_is_better: False for errors. outcome: "better" where the encoder's interval beats those of all controls,
    "worse" where all of them beat it, else "not told apart"; "" without an encoder or a control.
    """

    label: str
    probe: str
    metric: str
    num_volumes: int | None
    num_patients: int | None
    rows: tuple[ContestantRow, ...]
    zero: float | None
    higher_is_better: bool
    outcome: str


def groups_of(table: Sequence[Mapping[str, Any]]) -> tuple[list[ProbeGroup], int]:
    """Groups in the order of the table, and how many of its rows cannot be shown (a part missing, or no number)."""
    shown = [row for row in table if _is_whole(row)]
    groups = []
    for label, metric in dict.fromkeys((row["label"], row["metric"]) for row in shown):
        rows = [row for row in shown if (row["label"], row["metric"]) == (label, metric)]
        # The mean predictor has a probe of its own, and some controls have none for tokens: they join the encoder's.
        probes = dict.fromkeys(row["probe"] for row in rows if row["contestant"] == ENCODER)
        for probe in probes or dict.fromkeys(row["probe"] for row in rows):
            own = [row for row in rows if row["probe"] == probe]
            groups.append(_group(label, probe, metric, own + (_joining(rows, own) if probes else [])))
    return groups, len(table) - len(shown)


def _joining(rows: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each contestant that `own` lacks the first row, which names its probe unless that is its only one."""
    others: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["contestant"] not in {known["contestant"] for known in own}:
            others.setdefault(row["contestant"], row)
    return [
        row if row["probe"] == _NO_PROBE else {**row, "contestant": f"{name} ({row['probe']})"}
        for name, row in others.items()
    ]


def _is_whole(row: Mapping[str, Any]) -> bool:
    named = all(isinstance(row.get(name), str) for name in ("label", "metric", "probe", "contestant"))
    numbers = [row.get(name) for name in ("score", "low", "high")]
    return named and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _group(label: str, probe: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> ProbeGroup:
    higher = metric not in _LESS_IS_BETTER
    nothing = _NOTHING_KNOWN.get(metric)
    anchors = [] if nothing is None else [nothing]
    least = min(*(row["low"] for row in rows), *(row["score"] for row in rows), *anchors)
    most = max(*(row["high"] for row in rows), *(row["score"] for row in rows), *anchors)
    span = (most - least) or 1.0

    widest = max(row["high"] - row["low"] for row in rows)
    places = min(max(1 - math.floor(math.log10(widest)), 0), 6) if widest > 0 else 2  # two digits of the interval

    def percent(value: float) -> float:
        return 100 * (value - least) / span

    contestants = [
        ContestantRow(
            contestant=row["contestant"].replace("_", " "),
            is_encoder=row["contestant"] == ENCODER,
            score=row["score"],
            low=row["low"],
            high=row["high"],
            text=f"{row['score']:z.{places}f} [{row['low']:z.{places}f}, {row['high']:z.{places}f}]",  # z: no -0.0
            left=percent(row["low"]),
            width=percent(row["high"]) - percent(row["low"]),
            dot=percent(row["score"]),
        )
        for row in rows
    ]
    return ProbeGroup(
        label=label.replace("_", " "),
        probe=probe,
        metric=metric.replace("_", " "),
        num_volumes=rows[0].get("num_volumes"),
        num_patients=rows[0].get("num_patients"),
        rows=tuple(sorted(contestants, key=lambda row: not row.is_encoder)),
        zero=None if nothing is None else percent(nothing),
        higher_is_better=higher,
        outcome=_outcome(contestants, 1 if higher else -1),
    )


def _outcome(rows: Sequence[ContestantRow], sign: int) -> str:
    """By intervals that do not overlap, which is the stricter side of a test; sign -1 where less is better."""
    ranges = {row.contestant: sorted((sign * row.low, sign * row.high)) for row in rows}
    encoders = [ranges[row.contestant] for row in rows if row.is_encoder]
    controls = [ranges[row.contestant] for row in rows if not row.is_encoder]
    if not encoders or not controls:
        return ""
    if all(encoders[0][0] > high for _, high in controls):
        return "better"
    return "worse" if all(encoders[0][1] < low for low, _ in controls) else "not told apart"
