"""One TR of each modality as a picture: what was there, what the model says, and what a constant says.

Figures are matplotlib's objects without its global state; widths are such that a phone can show them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from oct_foundation.film import AUDIO
from pretraining.reconstruct.samples import Predictions, Score, book_scores, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[[Predictions, int], "Figure"]

WIDTH_INCHES = 6.4
TRUTH, MODEL, CONSTANT = "#1d2730", "#0072b2", "#d55e00"  # the last two differ to every eye
STYLE = {"font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
         "text.parse_math": False, "legend.frameon": False, "legend.fontsize": 9}  # fmt: skip
HEADROOM = 0.25  # of an axis, for a legend above the curves
_MOST_BOOKS, _MOST_VALUES = 8, 128  # in one picture
_SPARSE = 40  # codes of a TR that have room for large rings


def video_picture(predictions: Predictions, index: int) -> "Figure":
    """Pictures side by side, and below each how far off every pixel is, on one scale."""
    figure = new_figure(4.4)
    shape = predictions.shape
    size = (shape.height, shape.width, 3)
    truth = predictions.truth["video"][index].reshape(size)
    shown = {
        "model": predictions.prediction["video"][index].reshape(size),
        "training mean": predictions.mean["video"].reshape(size),
    }
    errors = {name: np.abs(truth - picture).mean(axis=2) for name, picture in shown.items()}
    worst = max(float(error.max()) for error in errors.values()) or 1.0
    [fvu] = scores(predictions, index)["video"]
    axes = figure.subplots(2, 3)
    _image(axes[0, 0], truth, "truth")
    for column, (name, value) in enumerate(zip(shown, (fvu.model, fvu.constant), strict=True), start=1):
        _image(axes[0, column], shown[name], f"{name}\nFVU {value:.3f}")
        off = float(np.sqrt(((truth - shown[name]) ** 2).mean()))
        _image(axes[1, column], errors[name], f"off by {off:.3f} (RMS)", vmax=worst)
    axes[1, 0].axis("off")
    axes[1, 0].text(0.0, 0.5, f"how far off,\n0 to 1:\nblack 0.00\nwhite {worst:.2f}", va="center")
    return figure


def audio_picture(predictions: Predictions, index: int) -> "Figure":
    """The codes of each codebook over the TR: true ones as rings, said ones as dots, the commonest as a line."""
    from matplotlib.ticker import MaxNLocator

    books = min(predictions.shape.codebooks, _MOST_BOOKS)
    size = predictions.shape.codes_per_tr
    figure = new_figure(1.2 + 1.5 * books)
    places, ring = np.arange(size), 8 if size <= _SPARSE else 5
    for book, axes in enumerate(figure.subplots(books, 1, squeeze=False)[:, 0]):
        part = slice(book * size, (book + 1) * size)
        axes.plot(places, predictions.codes[index, part], "o", mfc="none", mec=TRUTH, ms=ring, label="true")
        axes.plot(places, predictions.said_codes[index, part], ".", color=MODEL, ms=ring - 1, label="model")
        axes.axhline(predictions.common_codes[part][0], color=CONSTANT, lw=1.2, ls="--", label="commonest in training")
        right, cost = book_scores(predictions, index, book)
        axes.set_title(f"book {book + 1}: {beside(right, percent=True)}; {beside(cost)}", loc="left")
        axes.set_ylim(-0.06 * predictions.shape.num_codes, 1.04 * predictions.shape.num_codes)
        axes.set_xlim(-0.5, size - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("place in the TR" + ("" if books == predictions.shape.codebooks else f" (first {books} books)"))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def text_picture(predictions: Predictions, index: int) -> "Figure":
    """The embedding as lines over each other, and its values against those said."""
    figure = new_figure(5.4)
    top, bottom = np.asarray(figure.subfigures(2, 1))
    truth, said, mean = (
        predictions.truth["text"][index],
        predictions.prediction["text"][index],
        predictions.mean["text"],
    )
    axes, most = top.subplots(), min(len(truth), _MOST_VALUES)
    for values, colour, name, width in (
        (truth, TRUTH, "truth", 2.2),
        (mean, CONSTANT, "mean", 1.0),
        (said, MODEL, "model", 1.2),
    ):
        axes.plot(values[:most], color=colour, lw=width, label=name, ls="--" if name == "mean" else "-")
    axes.set_xlabel(f"value, {most} of {len(truth)}")
    axes.legend(ncols=3, loc="upper right")
    axes.set_ylim(top=axes.get_ylim()[1] + HEADROOM * np.ptp(axes.get_ylim()))
    fvu, alike = scores(predictions, index)["text"]
    axes.set_title(f"embedding of the text: {beside(alike)}", loc="left")
    _scatters(bottom, truth, said, mean, (f"model: FVU {fvu.model:.3f}", f"training mean: FVU {fvu.constant:.3f}"))
    return figure


def fmri_picture(predictions: Predictions, index: int) -> "Figure":
    """Every voxel's answer against what the model and the mean brain say."""
    figure = new_figure(3.7)
    fvu, r = scores(predictions, index)["fmri"]
    titles = (
        f"model: r {r.model:+.3f},\nFVU {fvu.model:.3f}",
        f"training mean: r {r.constant:g},\nFVU {fvu.constant:.3f}",
    )
    truth, said = predictions.truth["fmri"][index], predictions.prediction["fmri"][index]
    _scatters(figure, truth, said, predictions.mean["fmri"], titles)
    return figure


PICTURES: dict[str, Draw] = {"video": video_picture, AUDIO: audio_picture, "text": text_picture, "fmri": fmri_picture}


def beside(score: Score, *, percent: bool = False) -> str:
    """`cosine .91 (constant .02)`."""
    form = ".0%" if percent else ".3f"
    return f"{score.what} {score.model:{form}} (constant {score.constant:{form}})"


def new_figure(height_inches: float) -> "Figure":
    """Empty, with room made for all words; draws on Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _image(axes: "Axes", picture: np.ndarray, title: str, vmax: float = 1.0) -> None:
    """Colours [H, W, 3] of 0 to 1, or [H, W] in grey from 0 to vmax; pixels stay pixels."""
    axes.imshow(
        picture.clip(0, 1) if picture.ndim == 3 else picture, cmap="gray", vmin=0, vmax=vmax, interpolation="nearest"
    )
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _scatters(place: Any, truth: np.ndarray, said: np.ndarray, mean: np.ndarray, titles: tuple[str, str]) -> None:
    """Two panels with the same axes: the model's values over the truth, and the constant's."""
    from matplotlib.ticker import MaxNLocator

    ends = (float(min(truth.min(), said.min(), mean.min())), float(max(truth.max(), said.max(), mean.max())))
    small = max(1.0, 14 - 3 * np.log10(len(truth)))
    panels = place.subplots(1, 2, sharex=True, sharey=True)
    for axes, values, colour, title in zip(panels, (said, mean), (MODEL, CONSTANT), titles, strict=True):
        axes.plot(ends, ends, color="#a0a8b0", lw=1)
        axes.scatter(truth, values, s=small, color=colour, alpha=0.6, linewidths=0)
        axes.set_title(title, loc="left")
        axes.set_xlabel("true")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_ylabel("said")
