"""Points -> an inline SVG, small enough for a phone: thinned, in the colours of the page, equal for equal points.

Every figure has the size at which a phone shows it, so that its text keeps the size of the page's text. Colours
become the page's variables and follow its light or dark. Words of a run (makers) stay out: matplotlib reads `$` there.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 400  # of a curve; a figure is 360 wide
_MARKED = 30  # up to so many points each is marked, else one alone would be invisible
_SIZE_INCH = (5.0, 3.0)  # 360 x 216 points
_INK, _SOFT, _LINE = "#1d2730", "#5f6c78", "#dfe4e8"
# Okabe and Ito's colours, which colour-blind people can tell apart; dashes tell them apart once more.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (8, 2, 2, 2), (4, 1.5), (10, 3), (1, 1))
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line"} | {
    colour: f"--curve-{place}" for place, colour in enumerate(_COLOURS)
}
_LONG = re.compile(r"\d+\.\d{3,}")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line with its name in the legend; `points`: (step, value), steps ascending, values may be NaN.

    faint: thin and behind the others, for what is noisy.
    """

    label: str
    points: Points
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How values are shown. level: a dashed line to compare with; log: logarithmic, where all values are positive.

    from_zero: the axis starts at 0. least: it ends here, whatever lies below. min_span: it is at least so long, since a
    short one makes mountains of chance.
    """

    level: float | None = None
    level_label: str = ""
    log: bool = False
    from_zero: bool = False
    least: float = -math.inf
    min_span: float = 0.0


def draw(name: str, curves: Sequence[Curve], axis: Axis) -> str:
    """The SVG element of a figure over the finished updates.

    name: unique on the page, since ids inside follow from it. Curve i has colour and dashes i (`style_of`).
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 12, "axes.formatter.useoffset": False}):
        figure = Figure(figsize=_SIZE_INCH, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, curve in enumerate(curves):
            steps, values = thin(curve.points)
            colour, dashes = style_of(place)
            marker = "o" if len(steps) <= _MARKED else None
            width, layer = (0.8, 1.5) if curve.faint else (1.6, 2)
            (line,) = axes.plot(steps, values, color=_COLOURS[colour], lw=width, zorder=layer, marker=marker, ms=3)
            line.set_dashes(dashes or (None, None))
        if axis.level is not None:
            axes.axhline(axis.level, color=_INK, lw=1, dashes=(3, 3))
        if axis.log:
            _make_logarithmic(axes, [value for curve in curves for _, value in curve.points if math.isfinite(value)])
        low, high = axes.get_ylim()
        missing = max(axis.min_span - (high - low), 0) / 2
        axes.set_ylim(0 if axis.from_zero else max(low - missing, axis.least), high + missing)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("updates", color=_SOFT)
        axes.grid(color=_LINE, lw=0.7)
        axes.tick_params(which="both", colors=_SOFT, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_LINE)
        file = io.StringIO()
        # Without a date, equal points give equal bytes; a title would be a text that each browser shows its own way.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue())


def _make_logarithmic(axes: "Axes", values: Sequence[float]) -> None:
    """Where all values are positive and span more than 5 x: below that a linear axis has the better labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) < 5 * min(values):
        return
    axes.set_yscale("log")
    decades = math.log10(max(values) / min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def style_of(place: int) -> tuple[int, tuple[float, ...]]:
    """Number of the page's colour variable and dashes of curve `place`; they repeat after 7 and 49 curves."""
    return place % len(_COLOURS), DASHES[(place + place // len(_COLOURS)) % len(DASHES)]


def thin(points: Points, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, float64 [n] each, n <= most: of each stretch its least and its greatest value, in order.

    So no spike is lost. Infinite values become NaN, which is drawn as a gap.
    """
    steps = np.array([step for step, _ in points], dtype=np.float64)
    values = np.array([value for _, value in points], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    if len(values) <= most:
        return steps, values
    keep = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), (most - 2) // 2):
        found = values[stretch]
        if np.isnan(found).all():
            keep.add(int(stretch[0]))  # the gap stays a gap
        else:
            keep |= {int(stretch[np.nanargmin(found)]), int(stretch[np.nanargmax(found)])}
    kept = sorted(keep)
    return steps[kept], values[kept]


def _inline(svg: str) -> str:
    """Of a file its <svg> element, in the page's colours, with two decimals and without ids that nobody refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)  # the page's
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = re.sub(r"<[^>]*>", lambda tag: _LONG.sub(lambda number: f"{float(number[0]):.2f}", tag[0]), svg)  # no labels
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
