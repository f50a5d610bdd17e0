"""Predictions, verdicts and pictures -> one HTML page that needs nothing but itself; equal contents, equal bytes."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from oct_foundation.diagnostics.learned import ModalityVerdict
from oct_foundation.film import AUDIO, FILM_MODALITIES
from pretraining.reconstruct.album import Album, ShownSample
from pretraining.reconstruct.judging import Judged
from pretraining.reconstruct.opening import OpenedRun
from pretraining.reconstruct.overview import Whole, wholes
from pretraining.reconstruct.samples import Predictions

_TEMPLATE = "page.html.jinja"
_COLOURS = {"LEARNED": "good", "NOT LEARNED": "bad", "CANNOT TELL": "warn"}
_ORDER = ("NOT LEARNED", "CANNOT TELL", "LEARNED")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """judged: None for TRs that were trained on, of which no verdict is possible."""

    run: OpenedRun
    split: str
    predictions: Predictions
    judged: Judged | None


def render(contents: Contents, album: Album) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("pretraining.reconstruct").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    run, predictions, judged = contents.run, contents.predictions, contents.judged
    film = run.task.film
    verdicts = {found.name: found for found in judged.verdicts} if judged else {}
    return template.render(
        name=run.name,
        step=run.step,
        which=run.which,
        held_out=contents.split == "val",
        num_trs=len(predictions),
        num_train=len(film.train),
        subjects=len(film.subject_ids),
        mode=film.mode.replace("_", " "),
        alignment=film.alignment,
        headline=headline(list(verdicts.values())),
        basis=judged.basis if judged else "",
        rows=[
            _row(whole, verdicts.get(whole.name), predictions.audio_output == "codes") for whole in wholes(predictions)
        ],
        overview=_uri(album.overview),
        samples=[_sample(sample) for sample in album.samples],
    )


def headline(verdicts: Sequence[ModalityVerdict]) -> list[tuple[str, str, str]]:
    """Each word that was said, worst first: colour, word, of which modalities."""
    said = {word: [found.name for found in verdicts if found.verdict == word] for word in _ORDER}
    return [(_COLOURS[word], word, ", ".join(names)) for word, names in said.items() if names]


def _row(whole: Whole, verdict: ModalityVerdict | None, codes: bool) -> dict[str, Any]:
    """A modality: its word, what is unexplained, skill with its interval, why."""
    figures = verdict.figures if verdict else {}
    low, high, r = (float(figures.get(name, math.nan)) for name in ("skill_low", "skill_high", "r_time"))
    skill = float(figures.get("skill", whole.skill))
    return {
        "name": whole.name,
        "word": verdict.verdict if verdict else "",
        "colour": _COLOURS[verdict.verdict] if verdict else "open",
        "measure": "cross-entropy / that of frequencies" if whole.name == AUDIO and codes else "FVU",
        "model": f"{whole.model:.3f}",
        "constant": f"{whole.constant:.3f}",
        "skill": f"{skill:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"),
        "r_time": "" if math.isnan(r) else f"{r:+.3f}",
        "reasons": verdict.reasons if verdict else (),
        "needed": verdict.trs_needed if verdict else None,
    }


def _sample(sample: ShownSample) -> dict[str, Any]:
    """Name, and by modality its scores in words and its picture."""
    shown = [
        {
            "name": name,
            "uri": _uri(sample.pictures[name]),
            "scores": [(score.what, f"{score.model:.3f}", f"{score.constant:.3f}") for score in sample.scores[name]],
            "alt": ", ".join(
                f"{score.what} {score.model:.3f}, constant {score.constant:.3f}" for score in sample.scores[name]
            ),
        }
        for name in FILM_MODALITIES
    ]
    return {"name": sample.name, "shown": shown}


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
