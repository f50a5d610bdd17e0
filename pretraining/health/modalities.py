"""What was held out -> LEARNED, NOT LEARNED or CANNOT TELL for each modality, of any task, with figures."""

import math
from collections.abc import Mapping, Sequence

from oct_foundation.diagnostics.answers import says_of_gain
from oct_foundation.diagnostics.film_verdict import verdicts_in
from oct_foundation.diagnostics.learned import (
    Learned,
    ModalityVerdict,
    judge_logged,
    judge_loss_only,
)
from oct_foundation.diagnostics.verdicts import Judgement, Verdict
from oct_foundation.film import FILM_MODALITIES
from pretraining.film_series import FilmSeries
from pretraining.health.sections import Section, Table, number, span
from pretraining.health.training_log import LoggedRun
from pretraining.report.gather import RunRecord

_OF_ENCODERS: dict[Verdict, Learned] = {
    "LEARNING": "LEARNED",
    "NOT LEARNING": "NOT LEARNED",
    "COLLAPSED": "NOT LEARNED",
    "CANNOT TELL": "CANNOT TELL",
}


def of_series(series: FilmSeries) -> list[ModalityVerdict]:
    """Of an autoencoder; before its first update nothing is judged. Raises ValueError for series of odd shapes."""
    if series.step == 0:
        return [_before_training(name) for name in FILM_MODALITIES]
    try:
        return series.verdicts()
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"its series do not fit together ({type(error).__name__}: {error})") from None


def of_readings(run: RunRecord) -> list[ModalityVerdict]:
    """Of an autoencoder whose series are not there: what the run itself said at its last reading."""
    if not run.readings:
        return [_nothing(name, "No held-out TR has been predicted yet.") for name in FILM_MODALITIES]
    last = run.readings[-1]
    says, found = verdicts_in(last.values), []
    for name in FILM_MODALITIES:
        said = says.get(name)
        figures = {
            key.removesuffix(f"/{name}"): value for key, value in last.values.items() if key.endswith(f"/{name}")
        }
        if said is None:
            found.append(_nothing(name, "Nothing was recorded of it."))
        elif last.step == 0:
            found.append(_before_training(name))
        else:
            reason = f"As the run judged itself after step {last.step:,}; its series are not in the folder."
            found.append(ModalityVerdict(name=name, verdict=said, reasons=(reason,), figures=figures))
    return found


def of_answers(run: RunRecord) -> list[ModalityVerdict]:
    """Of a multi-modal run: each kind of question against its majority answer."""
    kinds = sorted({n.removeprefix("gain/") for one in run.readings for n in one.values if n.startswith("gain/")})
    if not kinds:
        return [_nothing("answers", "No held-out question was answered; set data.val_fraction above 0.")]
    last = run.readings[-1]
    return [_of_kind(kind, last.values, last.step) for kind in kinds]


def of_judgement(run: RunRecord, judgement: Judgement) -> list[ModalityVerdict]:
    """Of an encoder: LEARNING is LEARNED; COLLAPSED and NOT LEARNING are NOT LEARNED."""
    wanted = ("pos_ratio", "centred_cos", "pooled_std", "scan_r2", "num_volumes")
    last = run.readings[-1].values if run.readings else {}
    figures = {name: last[name] for name in wanted if name in last}
    verdict = _OF_ENCODERS[judgement.verdict]
    reasons = judgement.reasons or ("There is no reading of it.",)
    return [ModalityVerdict(name="OCT", verdict=verdict, reasons=(f"{judgement.verdict}.", *reasons), figures=figures)]


def of_log(run: LoggedRun, val_trs: int | None, val_trs_total: int | None) -> list[ModalityVerdict]:
    """Of a foreign log: fmri by its logged mean, if somebody says over how many TRs; the rest has a loss at most."""
    last = run.epochs[-1]
    if last.correlation is None:
        fmri = _nothing("fmri", "No correlation was logged.")
    elif val_trs is None:
        reason = f"A mean r of {last.correlation:.4f} was logged, over nobody says how many TRs: give --val-trs."
        fmri = ModalityVerdict(
            name="fmri", verdict="CANNOT TELL", reasons=(reason,), figures={"r_voxels": last.correlation}
        )
    else:
        fmri = judge_logged("fmri", last.correlation, val_trs, val_trs_total or val_trs)
    loss = last.val_loss if last.val_loss is not None else last.train_loss
    others = [judge_loss_only(name, loss) for name in FILM_MODALITIES if name != "fmri"]
    return [*others, fmri]


def section_of(
    verdicts: Sequence[ModalityVerdict], best: Sequence[ModalityVerdict] = (), note: Sequence[str] = ()
) -> Section:
    """The verdicts with figures and intervals; those of the best weights, where they are others, in a second table."""
    tables = [_table(verdicts, "Last weights" if best else "")]
    if best:
        tables.append(_table(best, "Weights of the best score"))
    reasons = [f"{one.name}: {reason}" for one in verdicts for reason in one.reasons]
    needed = [
        f"{one.name}: about {one.trs_needed:,} held-out TRs would decide, if its estimates stayed what they are."
        for one in verdicts
        if one.trs_needed
    ]
    lines = (*note, *reasons, *needed)
    return Section(name="evaluation", title="Evaluation: has it learned?", lines=lines, tables=tuple(tables))


def _table(verdicts: Sequence[ModalityVerdict], caption: str) -> Table:
    """One row per modality; only columns that one of them has."""
    shown = {
        "skill (over the mean)": ("skill", "skill_low", "skill_high"),
        "gain over the commonest": ("gain", "gain_low", "gain_high"),
        "r over time": ("r_time", "r_time_low", "r_time_high"),
        "r over voxels": ("r_voxels", "r_voxels_low", "r_voxels_high"),
        "above the strongest naive": ("over_bar", "over_bar_low", "over_bar_high"),
    }
    plain = {"ceiling of r": "ceiling_r", "shift p": "shift_p", "TRs": "num_trs", "n/tau": "trs_over_tau"}
    plain |= {"right": "accuracy", "commonest": "majority", "questions": "questions", "error ratio": "pos_ratio"}
    used = {key for one in verdicts for key in one.figures}
    intervals = {name: keys for name, keys in shown.items() if keys[0] in used}
    numbers = {name: key for name, key in plain.items() if key in used}
    header = ("modality", "verdict", *intervals, *numbers, "naive predictor")
    rows = [
        (
            one.name,
            one.verdict,
            *(_estimate(one.figures, *keys) for keys in intervals.values()),
            *(_plain(one.figures, key) for key in numbers.values()),
            str(one.figures.get("bar", "–")),
        )
        for one in verdicts
    ]
    if not any("bar" in one.figures for one in verdicts):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(header=header, rows=tuple(rows), caption=caption)


def _estimate(figures: Mapping[str, float | str], value: str, low: str, high: str) -> str:
    if value not in figures:
        return "–"
    ends = [float(figures.get(end, math.nan)) for end in (low, high)]
    return f"{float(figures[value]):+.4f} ({span(*ends)})"


def _plain(figures: Mapping[str, float | str], key: str) -> str:
    return number(float(figures[key]), 3) if key in figures else "–"


def _of_kind(kind: str, values: Mapping[str, float], step: int) -> ModalityVerdict:
    if f"gain/{kind}" not in values:
        return _nothing(kind, "The last reading has no answers of this kind.")
    names = ("accuracy", "macro_f1", "majority", "gain", "gain_low", "gain_high", "questions")
    figures = {name: values.get(f"{name}/{kind}", math.nan) for name in names}
    low, high = figures["gain_low"], figures["gain_high"]
    verdict = _OF_ENCODERS[says_of_gain(low, high)]
    if step == 0:
        return _before_training(kind)
    reason = (
        f"{figures['accuracy']:.1%} of {figures['questions']:.0f} held-out answers are right, "
        f"{figures['majority']:.1%} would be by always giving the commonest; gain {figures['gain']:+.3f}, "
        f"95 % over persons {span(low, high)}."
    )
    return ModalityVerdict(name=kind, verdict=verdict, reasons=(reason,), figures=figures)


def _before_training(name: str) -> ModalityVerdict:
    return _nothing(name, "The only reading is of the network before its first update.")


def _nothing(name: str, reason: str) -> ModalityVerdict:
    return ModalityVerdict(name=name, verdict="CANNOT TELL", reasons=(reason,))
