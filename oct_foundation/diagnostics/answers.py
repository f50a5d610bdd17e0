"""Answers to held-out questions -> accuracy and macro F1, beside always giving the commonest answer of the training.

An accuracy alone proves nothing: 90 % of one class make 90 % without a look at an image. So the gain over the majority
has an interval, over persons, and the verdict goes by it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oct_foundation.diagnostics.intervals import interval, patient_weights
from oct_foundation.diagnostics.verdicts import Judgement, Verdict

# Below this gain at the upper end of its interval nothing worth having was learned.
WORTHLESS_GAIN = 0.05
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One held-out question: its kind (T1, ...), the person, the true and the generated answer."""

    kind: str
    subject: str
    reference: str
    generated: str


def score(answers: Sequence[Answered], majority: Mapping[str, str]) -> dict[str, float]:
    """By kind: `accuracy/`, `macro_f1/`, `majority/` (accuracy of `majority[kind]`, the commonest training answer),
    `gain/` (their difference) with `gain_low/` and `gain_high/`, 95 % over persons, and `questions/`, their number.

    Two imagined persons, with as many questions as others have, one better than the majority in all and one worse,
    widen the interval (Agresti and Min 2005 add so much to paired shares): else two right answers would be proof.
    """
    values: dict[str, float] = {}
    for kind in sorted({answer.kind for answer in answers}):
        own = [answer for answer in answers if answer.kind == kind]
        right = np.array([answer.generated == answer.reference for answer in own], float)
        naive = np.array([answer.reference == majority.get(kind) for answer in own], float)
        persons, person_of = np.unique([answer.subject for answer in own], return_inverse=True)
        groups = np.append(person_of, [len(persons), len(persons) + 1])
        questions = np.append(np.ones(len(own)), np.full(2, len(own) / len(persons)))
        gains = np.append(right - naive, (1.0, -1.0))
        weights = patient_weights(groups, _RESAMPLES, seed=0) * questions
        gain = interval((weights @ gains) / weights.sum(axis=1))
        values |= {
            f"accuracy/{kind}": float(right.mean()),
            f"macro_f1/{kind}": macro_f1([a.reference for a in own], [a.generated for a in own]),
            f"majority/{kind}": float(naive.mean()),
            f"gain/{kind}": float((right - naive).mean()),
            f"gain_low/{kind}": gain.low,
            f"gain_high/{kind}": gain.high,
            f"questions/{kind}": float(len(own)),
        }
    return values


def macro_f1(references: Sequence[str], generated: Sequence[str]) -> float:
    """Mean F1 of the answers that are ever right; one that no question has counts as wrong, and as no class."""
    from sklearn.metrics import f1_score

    classes = sorted(set(references))
    return float(f1_score(references, generated, labels=classes, average="macro", zero_division=0.0))


def commonest(kinds: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """The most frequent answer of each kind; of equally frequent ones the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        counts.setdefault(kind, Counter())[answer] += 1
    return {kind: min(found, key=lambda answer: (-found[answer], answer)) for kind, found in counts.items()}


def judge_answers(values: Mapping[str, float]) -> Judgement:
    """LEARNING where every kind of question beats its majority by the lower end of its interval; NOT LEARNING where
    none does and none can by more than WORTHLESS_GAIN; CANNOT TELL between, and without questions.
    """
    kinds = sorted(name.removeprefix("gain/") for name in values if name.startswith("gain/"))
    if not kinds:
        reason = "No held-out question was answered; set data.val_fraction above 0."
        return Judgement(verdict="CANNOT TELL", reasons=(reason,), findings=())
    says = {kind: says_of_gain(values[f"gain_low/{kind}"], values[f"gain_high/{kind}"]) for kind in kinds}
    verdict: Verdict = says[kinds[0]] if len(set(says.values())) == 1 else "CANNOT TELL"
    reasons = tuple(
        f"{kind}: {values[f'accuracy/{kind}']:.1%} of {values[f'questions/{kind}']:.0f} held-out answers are right, "
        f"{values[f'majority/{kind}']:.1%} would be by always giving the commonest; gain "
        f"{values[f'gain/{kind}']:+.3f} [{values[f'gain_low/{kind}']:+.3f}, {values[f'gain_high/{kind}']:+.3f}]: "
        f"{says[kind]}."
        for kind in kinds
    )
    return Judgement(verdict=verdict, reasons=reasons, findings=())


def says_of_gain(low: float, high: float) -> Verdict:
    """Of one kind of question, by the ends of the interval of its gain over the commonest answer."""
    if low > 0:
        return "LEARNING"
    return "NOT LEARNING" if high < WORTHLESS_GAIN else "CANNOT TELL"
