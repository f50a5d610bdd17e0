"""All TRs of a split in one picture: modalities beside their constants, voxels' correlations over time, the course."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oct_foundation.film import AUDIO, CONTINUOUS, FILM_MODALITIES
from pretraining.reconstruct.pictures import CONSTANT, HEADROOM, MODEL, TRUTH, new_figure
from pretraining.reconstruct.samples import Predictions, r_over_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 40
_MOST_SHOWN = 2.0  # a bar that is higher ends there, and its number says how high it is


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A modality over all TRs, in units of the training variance (codes: of what their frequencies cost on these TRs).

    skill: how much less than the constant's, as verdicts have it.
    """

    name: str
    model: float
    constant: float

    @property
    def skill(self) -> float:
        """Above 0 the model knows more than the constant does; 0 for the constant itself."""
        return self.constant - self.model


def wholes(predictions: Predictions) -> list[Whole]:
    """Of every modality, in the order of FILM_MODALITIES."""
    found = {
        name: Whole(
            name=name, model=float(predictions.fvu(name).mean()), constant=float(predictions.mean_fvu(name).mean())
        )
        for name in CONTINUOUS
    }
    cost, constant = float(predictions.code_costs.mean()), float(predictions.constant_costs.mean())
    found[AUDIO] = Whole(name=AUDIO, model=cost / constant, constant=1.0)
    return [found[name] for name in FILM_MODALITIES]


def overview_picture(predictions: Predictions, ceiling_r: float | None, ceiling_fvu: float | None) -> "Figure":
    """Three panels under each other; ceilings, of the brain, where they are known."""
    figure = new_figure(8.2)
    bars, histogram, course = figure.subplots(3, 1)
    _draw_bars(bars, wholes(predictions), ceiling_fvu)
    _draw_histogram(histogram, predictions, ceiling_r)
    _draw_course(course, predictions)
    return figure


def _draw_bars(axes: "Axes", found: Sequence[Whole], ceiling_fvu: float | None) -> None:
    for place, whole in enumerate(found):
        for offset, value, colour in ((-0.2, whole.model, MODEL), (0.2, whole.constant, CONSTANT)):
            shown = min(value, _MOST_SHOWN) if np.isfinite(value) else _MOST_SHOWN
            axes.bar(place + offset, shown, 0.38, color=colour)
            axes.text(place + offset, shown, f"{value:.3g}", ha="center", va="bottom")
    if ceiling_fvu is not None:
        place = [whole.name for whole in found].index("fmri")
        axes.plot((place - 0.39, place + 0.01), (ceiling_fvu, ceiling_fvu), color=TRUTH, lw=2, label="noise ceiling")
        axes.legend(loc="upper right")
    axes.set_xticks(range(len(found)), [whole.name for whole in found])
    highest = max(max(whole.model, whole.constant) for whole in found)
    axes.set_ylim(0, (min(highest, _MOST_SHOWN) if np.isfinite(highest) else _MOST_SHOWN) * (1 + HEADROOM))
    axes.set_title("unexplained: model (blue) beside a constant (orange); 0 is perfect", loc="left")


def _draw_histogram(axes: "Axes", predictions: Predictions, ceiling_r: float | None) -> None:
    """r(time) of the voxels, and that of the same predictions moved by a quarter of the film: what chance gives."""
    truth, said = predictions.truth["fmri"], predictions.prediction["fmri"]
    moved = np.roll(said, max(len(said) // 4, 1), axis=0)
    groups = (r_over_time(truth, moved), CONSTANT, "moved in time"), (r_over_time(truth, said), MODEL, "model")
    edges = np.linspace(-1, 1, 2 * _BINS + 1)
    for values, colour, name in groups:
        known = values[np.isfinite(values)]
        mean = f"{known.mean():+.3f}" if len(known) else "unknown"
        axes.hist(known, list(edges), color=colour, alpha=0.7, label=f"{name}: mean {mean}")
    if ceiling_r is not None:
        axes.axvline(ceiling_r, color=TRUTH, ls="--", lw=1.4, label=f"noise ceiling {ceiling_r:.3f}")
    axes.set_xlabel("r over time")
    axes.set_ylabel("voxels")
    axes.legend(loc="upper left")
    axes.set_title(f"each of {truth.shape[1]:,} voxels over {len(truth):,} TRs", loc="left")


def _draw_course(axes: "Axes", predictions: Predictions) -> None:
    """What is unexplained of the brain, TR by TR."""
    axes.plot(predictions.mean_fvu("fmri"), color=CONSTANT, lw=0.8, label="training mean")
    axes.plot(predictions.fvu("fmri"), color=MODEL, lw=0.8, label="model")
    axes.set_ylim(0, axes.get_ylim()[1] * (1 + HEADROOM))
    axes.set_xlabel(f"TR of the split, from {predictions.names[0]} on")
    axes.set_title("FVU of the brain, TR by TR", loc="left")
    axes.legend(loc="upper right", ncols=2)
