import pytest

from oct_foundation.diagnostics.answers import Answered, commonest, judge_answers, macro_f1, score


def answered(kind: str, right: int, wrong: int, *, reference: str = "left", said: str = "right") -> list[Answered]:
    texts = [said] * wrong + [reference] * right
    return [
        Answered(kind=kind, subject=f"{kind}-{reference}-{number}", reference=reference, generated=text)
        for number, text in enumerate(texts)
    ]


def test_accuracy_majority_and_gain_by_hand():
    answers = answered("T1", 6, 0) + answered("T1", 1, 3, reference="right", said="left")
    values = score(answers, {"T1": "left"})
    assert values["accuracy/T1"] == pytest.approx(0.7)
    assert values["majority/T1"] == pytest.approx(0.6)
    assert values["gain/T1"] == pytest.approx(0.1)
    assert values["gain_low/T1"] <= 0 < 0.1 < values["gain_high/T1"]
    # left: precision 6/9, recall 1; right: precision 1, recall 1/4
    assert values["macro_f1/T1"] == pytest.approx((2 * 6 / 9 / (6 / 9 + 1) + 2 * 0.25 / 1.25) / 2)
    assert values["questions/T1"] == 10


def test_always_the_commonest_answer_gains_nothing_however_accurate():
    answers = answered("T1", 90, 0) + answered("T1", 0, 10, reference="right", said="left")
    values = score(answers, {"T1": "left"})
    assert values["accuracy/T1"] == pytest.approx(0.9)
    assert values["gain/T1"] == 0
    assert values["gain_low/T1"] == pytest.approx(-0.03, abs=0.01)  # 3 / 100: the rule of three
    assert values["gain_high/T1"] == pytest.approx(0.03, abs=0.01)
    assert judge_answers(values).verdict == "NOT LEARNING"


def test_persons_are_drawn_not_questions():
    one_person = [Answered(kind="T1", subject="a", reference="left", generated="left") for _ in range(50)]
    other = [Answered(kind="T1", subject="b", reference="right", generated="left") for _ in range(50)]
    values = score([*one_person, *other], {"T1": "right"})
    assert (values["gain_low/T1"], values["gain_high/T1"]) == (-1.0, 1.0)


@pytest.mark.parametrize(("persons", "verdict"), [(1, "CANNOT TELL"), (4, "CANNOT TELL"), (6, "LEARNING")])
def test_a_few_right_answers_prove_nothing(persons, verdict):
    """Four coins fall alike one time in eight."""
    values = score(answered("T1", persons, 0), {"T1": "right"})
    assert values["gain/T1"] == 1.0
    assert judge_answers(values).verdict == verdict


def test_a_few_commonest_answers_do_not_prove_that_nothing_is_learned():
    assert judge_answers(score(answered("T1", 20, 0), {"T1": "left"})).verdict == "CANNOT TELL"


def test_an_answer_that_is_none_counts_as_wrong_and_as_no_class():
    assert macro_f1(["a", "b"], ["a", "gibberish"]) == pytest.approx(0.5)


def test_the_commonest_answer_is_by_kind_and_ties_go_to_the_alphabet():
    kinds, answers = ["T1", "T1", "T1", "dMRI", "dMRI"], ["x", "y", "y", "b", "a"]
    assert commonest(kinds, answers) == {"T1": "y", "dMRI": "a"}


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ({"T1": (0.1, 0.3), "dMRI": (0.01, 0.2)}, "LEARNING"),
        ({"T1": (-0.1, 0.04), "dMRI": (-0.2, 0.0)}, "NOT LEARNING"),
        ({"T1": (0.1, 0.3), "dMRI": (-0.2, 0.0)}, "CANNOT TELL"),
        ({"T1": (-0.1, 0.3)}, "CANNOT TELL"),
        ({}, "CANNOT TELL"),
    ],
)
def test_every_kind_has_to_beat_its_majority(intervals, verdict):
    values = {}
    for kind, (low, high) in intervals.items():
        values |= {f"gain/{kind}": (low + high) / 2, f"gain_low/{kind}": low, f"gain_high/{kind}": high}
        values |= {f"accuracy/{kind}": 0.5, f"majority/{kind}": 0.5, f"questions/{kind}": 40.0}
    judgement = judge_answers(values)
    assert judgement.verdict == verdict
    assert len(judgement.reasons) == max(len(intervals), 1)
