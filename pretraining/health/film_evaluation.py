"""The held-out series of an autoencoder run, last and best -> verdicts, and what is wrong with the files themselves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from oct_foundation.diagnostics.learned import ModalityVerdict
from oct_foundation.diagnostics.loss_course import partial_validation
from oct_foundation.diagnostics.readings import Finding
from pretraining.film_series import BEST, FOLDER, LAST, FilmSeries
from pretraining.health import facts, modalities
from pretraining.health.compose import Draft
from pretraining.health.sections import unreadable
from pretraining.report.gather import RunRecord


def judge_series(draft: Draft, run: RunRecord, folder: Path, note: Sequence[str]) -> bool | None:
    """Verdicts, findings and the section of the evaluation; whether the statistics are free of validation TRs, None if
    unknown. Where series are not there, or torn, the run's own last reading speaks.
    """
    series = {name: found for name in (LAST, BEST) if (found := _series(draft, folder / FOLDER / name))}
    verdicts: dict[str, list[ModalityVerdict]] = {}
    for name, one in series.items():
        try:
            verdicts[name] = modalities.of_series(one)
        except ValueError as error:
            draft.findings.append(unreadable(f"{FOLDER}/{name}", str(error), one.step))
    draft.verdicts += verdicts.get(LAST) or modalities.of_readings(run)
    last, best = series.get(LAST), series.get(BEST)
    draft.findings += _series_findings(run, series, verdicts)
    others = verdicts.get(BEST, []) if best and last and best.step != last.step else []
    told = [f"{name}: after step {one.step:,}, {len(one.trs):,} held-out TRs." for name, one in series.items()]
    draft.sections.append(modalities.section_of(draft.verdicts, others, [*told, *note]))
    return last.leak_free if last else None


def _series(draft: Draft, path: Path) -> FilmSeries | None:
    """None, and a finding unless it is just absent, where there is none."""
    if not path.is_file():
        return None
    try:
        return FilmSeries.load(path)
    except ValueError as error:
        draft.findings.append(unreadable(f"{FOLDER}/{path.name}", str(error)))
        return None


def _series_findings(
    run: RunRecord, series: Mapping[str, FilmSeries], verdicts: Mapping[str, Sequence[ModalityVerdict]]
) -> list[Finding]:
    """Partial validation; series that are older than the record; a best that is worse than the last."""
    found: list[Finding] = []
    last, best = series.get(LAST), series.get(BEST)
    if last is None:
        return found
    total = facts.film_facts(run)[1].get("val")
    subjects = len(set(last.runs.tolist()))
    if not last.complete and isinstance(total, int):
        found += filter(None, [partial_validation(len(last.trs), total * subjects, last.step)])
    newest = run.readings[-1].step if run.readings else last.step
    if last.step < newest:
        found.append(
            _of_series("series_out_of_step", last.step, f"{LAST} is of step {last.step}, the record goes to {newest}")
        )
    scores = {name: _score(found) for name, found in verdicts.items()}
    if best is not None and (best.step > last.step or scores.get(BEST, math.inf) < scores.get(LAST, -math.inf) - 1e-9):
        told = f"{BEST} (step {best.step}, mean skill {scores.get(BEST, math.nan):.4f})"
        found.append(
            _of_series(
                "best_is_not_best",
                best.step,
                f"{told} is worse or later than {LAST} (step {last.step}, {scores.get(LAST, math.nan):.4f})",
            )
        )
    return found


def _of_series(name: str, step: int, evidence: str) -> Finding:
    remedy = "The files were swapped, or come from another copy of the run: take the right ones, or evaluate anew."
    return Finding(name=name, severity="alarm", step=step, evidence=f"{evidence}.", remedy=remedy)


def _score(verdicts: Sequence[ModalityVerdict]) -> float:
    skills = [float(one.figures["skill"]) for one in verdicts if "skill" in one.figures]
    return sum(skills) / len(skills) if len(skills) == len(verdicts) and skills else math.nan
