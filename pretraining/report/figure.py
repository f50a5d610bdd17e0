"""What a figure and a section of the page are, and how numbers of a run become the curves in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oct_foundation.diagnostics.readings import PREFIX
from pretraining.report.curves import Axis, Curve, Points
from pretraining.report.gather import RunRecord

# Of readings of one kind (makers, modules, labels) so many have a curve or a figure of their own.
MAX_OF_A_KIND = 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot. `name`: its id on the page; sentence: what good and bad look like; level: a line to compare with."""

    name: str
    title: str
    sentence: str
    curves: tuple[Curve, ...]
    axis: Axis = field(default_factory=Axis)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Figures that answer one question; absent: what to say where there are none."""

    name: str
    title: str
    lead: str
    figures: tuple[Figure, ...]
    absent: str


def section(name: str, title: str, lead: str, absent: str, *figures: Figure) -> Section:
    """The section with those of the figures that have any curve."""
    drawn = tuple(figure for figure in figures if figure.curves)
    return Section(name=name, title=title, lead=lead, absent=absent, figures=drawn)


def curves_of(run: RunRecord, wanted: Iterable[tuple[str, str]]) -> tuple[Curve, ...]:
    """A curve per (label, metric) that is on record."""
    found = (Curve(label=label, points=run.series(metric)) for label, metric in wanted)
    return tuple(curve for curve in found if curve.points)


def with_foreground(run: RunRecord, wanted: Sequence[tuple[str, str]]) -> tuple[Curve, ...]:
    """Readings, and after them the same of the retina alone: most of a scan is background, which is easy."""
    retina = [(f"{label}, retina only", f"{PREFIX}foreground_{name}") for label, name in wanted]
    return curves_of(run, [*((label, PREFIX + name) for label, name in wanted), *retina])


def family(run: RunRecord, prefix: str) -> tuple[Curve, ...]:
    """A curve for each reading whose name begins with `prefix`."""
    return curves_of(run, [(name, PREFIX + prefix + name) for name in members(run, prefix)])


def members(run: RunRecord, prefix: str) -> list[str]:
    """What follows `prefix` in the names of readings, sorted, the first few."""
    names = {
        name.removeprefix(prefix) for reading in run.readings for name in reading.values if name.startswith(prefix)
    }
    return sorted(names)[:MAX_OF_A_KIND]


def relative(points: Points) -> Points:
    """Values over the first one; as they are where that is 0."""
    start = points[0][1] or 1.0
    return [(step, value / start) for step, value in points]


def if_ever(curves: tuple[Curve, ...]) -> tuple[Curve, ...]:
    """Those that leave 0: a line of zeros is no picture."""
    return tuple(curve for curve in curves if any(value != 0 for _, value in curve.points))
