"""Verdicts by modality <-> the flat numbers of a reading, and one judgement of the run out of them."""

import math
from collections.abc import Mapping, Sequence

from oct_foundation.diagnostics.learned import Learned, ModalityVerdict
from oct_foundation.diagnostics.verdicts import Judgement, Verdict

_NUMBER_OF: dict[Learned, float] = {"LEARNED": 1.0, "CANNOT TELL": 0.0, "NOT LEARNED": -1.0}
_VERDICT = "verdict/"


def as_values(verdicts: Sequence[ModalityVerdict]) -> dict[str, float]:
    """`<figure>/<modality>` of every number, `verdict/<modality>` as 1, 0 or -1, and `score`: the mean skill."""
    values: dict[str, float] = {}
    for found in verdicts:
        numbers = {name: value for name, value in found.figures.items() if not isinstance(value, str)}
        values |= {f"{name}/{found.name}": float(value) for name, value in numbers.items()}
        values[f"{_VERDICT}{found.name}"] = _NUMBER_OF[found.verdict]
    skills = [values[name] for name in values if name.startswith("skill/")]
    if len(skills) == len(verdicts):
        values["score"] = sum(skills) / len(skills)
    return values


def verdicts_in(values: Mapping[str, float]) -> dict[str, Learned]:
    """By modality, what `as_values` has put into a reading."""
    words = {number: word for word, number in _NUMBER_OF.items()}
    return {
        name.removeprefix(_VERDICT): words[number]
        for name, number in values.items()
        if name.startswith(_VERDICT) and number in words
    }


def judge_film(values: Mapping[str, float]) -> Judgement:
    """NOT LEARNING where one modality has not learned, LEARNING where all have, CANNOT TELL else and without any."""
    says = verdicts_in(values)
    if not says:
        return Judgement(verdict="CANNOT TELL", reasons=("No held-out TR has been predicted yet.",), findings=())
    verdict: Verdict = "CANNOT TELL"
    if "NOT LEARNED" in says.values():
        verdict = "NOT LEARNING"
    elif set(says.values()) == {"LEARNED"}:
        verdict = "LEARNING"
    return Judgement(
        verdict=verdict, reasons=tuple(_reason(name, word, values) for name, word in says.items()), findings=()
    )


def _reason(name: str, word: Learned, values: Mapping[str, float]) -> str:
    parts = [f"{what} {text}" for what in ("skill", "r_time") if (text := _estimate(values, what, name))]
    if not math.isnan(ceiling := values.get(f"ceiling_r/{name}", math.nan)):
        parts.append(f"ceiling of r {ceiling:.3f}")
    if not math.isnan(num_trs := values.get(f"num_trs/{name}", math.nan)):
        parts.append(f"{num_trs:.0f} TRs")
    return f"{name} {word}: {', '.join(parts) or 'no figures'}."


def _estimate(values: Mapping[str, float], what: str, name: str) -> str:
    """`+0.123 [+0.100, +0.146]`, "" where the reading lacks it."""
    found = [values.get(f"{what}{end}/{name}", math.nan) for end in ("", "_low", "_high")]
    if math.isnan(found[0]):
        return ""
    interval = "no interval" if math.isnan(found[1]) else f"[{found[1]:+.3f}, {found[2]:+.3f}]"
    return f"{found[0]:+.3f} {interval}"
