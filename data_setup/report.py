"""A prepared set -> one HTML page for whoever answers for the data: what came in, what was refused, how it looks.

The page needs nothing but itself: styles, figures and pictures are inside. It holds ids and index fields, no names and
no paths, but it shows retinas, so it stays beside the data. Equal sets give equal bytes.
"""

import base64
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from data_setup.errors import MEANING, REMEDY, Reason
from data_setup.index import IndexRow, PreparedSet
from data_setup.report_findings import (
    NEAR_DISTANCE,
    NUM_SAMPLED,
    DuplicateGroup,
    fingerprint,
    intensity_histogram,
    mid_bscan,
    near_duplicates,
    sampled_bscans,
    upside_down_score,
)

_TEMPLATE = "report.html.jinja"
_BARS, _BINS = 12, 10  # rows of a table of counts before the rest is one row; bins of sizes where they vary
_LEVELS_PER_BIN = 4  # grey levels of one step of the curve: 64 steps
_SHEET, _SHEET_VENDORS = 6, 12  # pictures of a vendor; vendors with pictures
_LISTED, _PICTURED, _PER_GROUP = 50, 12, 3  # findings in a list, findings with pictures, pictures of a group
_PICTURE_WIDTH, _ASPECTS = 480, (0.8, 4.0)  # pixels; width : height that a damaged spacing may not pass

_LATERALITY = {"R": "right eye (R, OD)", "L": "left eye (L, OS)", None: "not stated"}
_VOLUMETRIC = {True: "parallel B-scans", False: "radial, circular or single", None: "file does not say"}


class Bar(NamedTuple):
    """A row of a table of counts; share: of all that were counted, 0 to 1."""

    label: str
    number: int
    share: float


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What the pixels showed: int64 [256] per vendor, groups of look-alikes, score by id of suspected flips."""

    levels: dict[str, np.ndarray]
    duplicates: list[DuplicateGroup]
    upside_down: dict[str, float]


def write_report(prepared: PreparedSet, target: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes the page to `target`, whole or not at all, and returns it; progress(done, total) per volume.

    Raises OSError where a volume cannot be read or the page cannot be written.
    """
    target = Path(target)
    page = _render(prepared, _examine(prepared, progress))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _examine(prepared: PreparedSet, progress: Callable[[int, int], None] | None = None) -> _Findings:
    """Looks at a few B-scans of each accepted volume, once."""
    rows = prepared.accepted()
    levels: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(256, np.int64))
    prints: dict[str, np.ndarray] = {}
    scores: dict[str, float] = {}
    for done, row in enumerate(rows, start=1):
        bscans = sampled_bscans(prepared.volume(row))
        levels[_vendor(row)] += intensity_histogram(bscans)
        prints[row.id] = fingerprint(bscans)
        scores[row.id] = upside_down_score(bscans)
        if progress is not None:
            progress(done, len(rows))
    suspected = sorted((name for name in scores if scores[name] > 0), key=lambda name: (-scores[name], name))
    return _Findings(
        levels=dict(levels),
        duplicates=near_duplicates(prints),
        upside_down={name: scores[name] for name in suspected},
    )


def _render(prepared: PreparedSet, findings: _Findings) -> str:
    rows = prepared.accepted()
    groups = _groups(prepared, findings.duplicates)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("data_setup").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        headline=_headline(prepared),
        version=str(prepared.info.get("settings_sha256", ""))[:12],
        shapes=[" × ".join(map(str, shape)) for shape in sorted({row.shape for row in rows if row.shape})],
        split_note=prepared.info.get("split_note"),
        reasons=_reasons(prepared.rows),
        foreign=_tally([row.reason or "" for row in prepared.rows if row.foreign]),
        counts=_counts(rows),
        levels=_curves(findings.levels),
        sizes=_sizes(rows),
        spacings=_spacings(rows),
        sheets=_sheets(prepared),
        other_vendors=max(0, len({_vendor(row) for row in rows}) - _SHEET_VENDORS),
        groups=groups,
        num_leaks=sum(group["leak"] for group in groups),
        flips=_flips(prepared, findings.upside_down),
        listed=_LISTED,
        near_percent=round(100 * NEAR_DISTANCE),
        num_sampled=NUM_SAMPLED,
    )


def _headline(prepared: PreparedSet) -> dict[str, Any]:
    """How many files were looked at, are usable, were refused, and lay beside the scans without being meant."""
    looked_at = [row for row in prepared.rows if not row.foreign]
    return {
        "looked_at": len(looked_at),
        "usable": len(prepared.accepted()),
        "refused": sum(row.status == "rejected" for row in looked_at),
        "refused_percent": 100 * prepared.bad_fraction,
        "foreign": len(prepared.rows) - len(looked_at),
    }


def _reasons(rows: Sequence[IndexRow]) -> list[dict[str, Any]]:
    """Reasons of refusal, most frequent first, with what they mean, what helps, and where to look first."""
    refused = [row for row in rows if row.status == "rejected" and not row.foreign]
    table = []
    for bar in _tally([row.reason or "" for row in refused], most=len(Reason)):
        same = [row for row in refused if row.reason == bar.label]
        known = Reason(bar.label) if bar.label in set(Reason) else None  # an index may be newer than this program
        meaning, remedy = (MEANING[known], REMEDY[known]) if known else (same[0].message or "", "")
        table.append({"bar": bar, "meaning": meaning, "remedy": remedy, "ids": [row.id for row in same[:3]]})
    return table


def _counts(rows: Sequence[IndexRow]) -> list[tuple[str, list[Bar]]]:
    """Tables of what the usable volumes are."""
    return [
        ("Vendor", _tally([_vendor(row) for row in rows])),
        ("Model", _tally([row.model or "not stated" for row in rows])),
        ("Protocol", _tally([row.protocol or "not stated" for row in rows])),
        ("Region", _tally([row.region or "not stated" for row in rows])),
        ("Laterality", _tally([_LATERALITY[row.laterality] for row in rows])),
        ("Split", _tally([row.split or "none" for row in rows])),
        ("Volume", _tally([_VOLUMETRIC[row.volumetric] for row in rows])),
        ("File format", _tally([row.format or "not stated" for row in rows])),
    ]


def _vendor(row: IndexRow) -> str:
    return row.vendor or "not stated"


def _tally(labels: Sequence[str], most: int = _BARS) -> list[Bar]:
    """Counts by label, most frequent first; what goes beyond `most` rows becomes one."""
    ranked = sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ranked[:most], ranked[most:]
    if rest:
        shown = [*shown, (f"{len(rest)} others", sum(count for _, count in rest))]
    return [Bar(label, count, count / len(labels)) for label, count in shown]


def _sizes(rows: Sequence[IndexRow]) -> list[tuple[str, list[Bar]]]:
    """Histograms of the sizes of the source files, per axis."""
    names = ("B-scans (D)", "Rows in depth (H)", "A-scans across (W)")
    shapes = [row.source_shape for row in rows if row.source_shape is not None]
    return [(name, _binned([shape[axis] for shape in shapes])) for axis, name in enumerate(names)]


def _spacings(rows: Sequence[IndexRow]) -> list[tuple[str, list[Bar]]]:
    """Histograms of the spacings of the source files in µm, per axis; three digits, for files round differently."""
    names = ("Between B-scans (D)", "In depth (H)", "Between A-scans (W)")
    known = [row.source_spacing_mm or (None, None, None) for row in rows]
    columns = [
        [None if mm is None else float(f"{1000 * mm:.3g}") for mm in column] for column in zip(*known, strict=True)
    ]
    return [(name, _binned(column)) for name, column in zip(names, columns or [[]] * 3, strict=True)]


def _binned(values: Sequence[float | None]) -> list[Bar]:
    """A row per value where they are few, else 10 equal bins; the unknown ones (None) as the last row."""
    known = np.array([value for value in values if value is not None], dtype=float)
    distinct, counts = np.unique(known, return_counts=True)
    labels = [f"{value:g}" for value in distinct]
    if len(distinct) > _BINS:
        counts, edges = np.histogram(known, bins=_BINS)
        labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    bars = [Bar(label, int(count), int(count) / len(values)) for label, count in zip(labels, counts, strict=True)]
    unknown = len(values) - len(known)
    return [*bars, Bar("unknown", unknown, unknown / len(values))] if unknown else bars


def _curves(levels: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Per vendor the share of voxels per step of grey, as points of one common scale, and what the ends hold.

    The first step is left out of the scale: black padding would flatten all the rest.
    """
    steps = {vendor: counts.reshape(-1, _LEVELS_PER_BIN).sum(axis=1) for vendor, counts in levels.items()}
    shares = {vendor: counts / counts.sum() for vendor, counts in steps.items()}
    top = max((float(share[1:].max()) for share in shares.values()), default=0.0) or 1.0
    curves = []
    for vendor, share in sorted(shares.items()):
        counts = levels[vendor]
        heights = np.minimum(share / top, 1)
        curves.append(
            {
                "vendor": vendor,
                "points": [(_LEVELS_PER_BIN * step, round(float(height), 4)) for step, height in enumerate(heights)],
                "median": int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)),
                "black_percent": 100 * float(counts[0] / counts.sum()),
                "white_percent": 100 * float(counts[255] / counts.sum()),
            }
        )
    return curves


def _sheets(prepared: PreparedSet) -> list[dict[str, Any]]:
    """Pictures of each vendor, the largest first. The first ids are a fair sample: ids are keyed hashes."""
    by_vendor: defaultdict[str, list[IndexRow]] = defaultdict(list)
    for row in prepared.accepted():
        by_vendor[_vendor(row)].append(row)
    ranked = sorted(by_vendor.items(), key=lambda item: (-len(item[1]), item[0]))[:_SHEET_VENDORS]
    return [
        {"vendor": vendor, "total": len(rows), "pictures": [_picture(prepared, row) for row in rows[:_SHEET]]}
        for vendor, rows in ranked
    ]


def _groups(prepared: PreparedSet, found: Iterable[DuplicateGroup]) -> list[dict[str, Any]]:
    """Look-alikes with their split sides: those on two sides first, for they leak from training into validation."""
    by_id = {row.id: row for row in prepared.accepted()}
    groups = [([by_id[name] for name in group.ids], group.distance) for group in found]
    return [
        {
            "rows": rows,
            "distance_percent": 100 * distance,
            "likeness": _likeness([row.sha256 for row in rows]),
            "sides": sorted(Counter(row.split or "none" for row in rows).items()),
            "leak": _crosses_splits(rows),
            "pictures": [_picture(prepared, row) for row in rows[:_PER_GROUP]] if place < _PICTURED else [],
        }
        for place, (rows, distance) in enumerate(sorted(groups, key=lambda group: not _crosses_splits(group[0])))
    ]


def _crosses_splits(rows: Iterable[IndexRow]) -> bool:
    return len({row.split for row in rows if row.split is not None}) > 1


def _likeness(hashes: Sequence[str | None]) -> str:
    """How alike a group is, judged by the hashes of its volumes' bytes; a hash that is not known is like no other."""
    most = max(Counter(found for found in hashes if found is not None).values(), default=0)
    if most == len(hashes):
        return "Identical"
    return "Alike, some identical" if most > 1 else "Alike"


def _flips(prepared: PreparedSet, scores: dict[str, float]) -> list[dict[str, Any]]:
    """Suspected flips, highest score first."""
    by_id = {row.id: row for row in prepared.accepted()}
    return [
        {"row": by_id[name], "score": score, "picture": _picture(prepared, by_id[name]) if place < _PICTURED else None}
        for place, (name, score) in enumerate(scores.items())
    ]


def _picture(prepared: PreparedSet, row: IndexRow) -> dict[str, Any]:
    """The mid B-scan as a JPEG data URI in true proportions; without spacing, in those of the source's voxels."""
    bscan = mid_bscan(prepared.volume(row))
    shape: tuple[int, ...] = row.source_shape or bscan.shape
    height, width = shape[-2:]
    down, across = (row.source_spacing_mm or (None, None, None))[1:]
    known = bool(down and across)
    aspect = width * (across or 1) / (height * (down or 1)) if known else width / height
    shown = min(max(aspect, _ASPECTS[0]), _ASPECTS[1])
    size = (_PICTURE_WIDTH, round(_PICTURE_WIDTH / shown))
    file = io.BytesIO()
    Image.fromarray(bscan).resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=82)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"row": row, "uri": uri, "size": size, "to_scale": known and shown == aspect}
