"""A run's record -> the verdict of its task, and what that means to somebody who wants to use the model."""

from oct_foundation.diagnostics.answers import judge_answers
from oct_foundation.diagnostics.film_verdict import judge_film
from oct_foundation.diagnostics.verdicts import Judgement, Verdict, judge
from pretraining.report.ending import ending_of
from pretraining.report.gather import RunRecord

# Of each verdict its colour on the page, and what it says of an encoder.
_OF_ENCODERS: dict[Verdict, tuple[str, str]] = {
    "LEARNING": (
        "good",
        "The network describes different scans differently, and predicts hidden parts of a scan from the rest of it. "
        "How useful that is, the probes below say.",
    ),
    "NOT LEARNING": (
        "warn",
        "What the network predicts hardly depends on the scan, or nothing in it moves any more; the reasons say which. "
        "Do not use this encoder.",
    ),
    "COLLAPSED": (
        "bad",
        "The network describes all scans nearly alike. Its loss is low because that is easily predicted. "
        "Do not use this encoder, and do not go on from its checkpoints.",
    ),
    "CANNOT TELL": (
        "open",
        "The readings are too few, or contradict each other. The run may be good or bad: nothing here says which.",
    ),
}
_OF_ANSWERS: dict[Verdict, str] = {
    "LEARNING": "Held-out questions of every kind are answered better than by always giving the commonest answer.",
    "NOT LEARNING": "Held-out questions are answered no better than by always giving the commonest answer.",
    "CANNOT TELL": "Some kinds of question beat the commonest answer and others do not, or there are too few to say.",
}
_OF_FILMS: dict[Verdict, str] = {
    "LEARNING": "Every part of the film and the brain is predicted better than by its mean and by naive predictors.",
    "NOT LEARNING": "One of video, audio, text and fmri, or more, is predicted no better than by chance; the reasons "
    "say which. A falling loss comes from the others.",
    "CANNOT TELL": "The held-out TRs are too few, or too alike, to say; octfm health names how many would decide.",
}


def judgement_of(run: RunRecord) -> Judgement:
    """What the running job would have said after the newest reading, which knows the plan of the run."""
    newest = run.readings[-1].values if run.readings else {}
    match run.setting("task"):
        case "multimodal":
            return judge_answers(newest)
        case "autoencoder":
            return judge_film(newest)
    warmup = run.planned("warmup_steps")
    if warmup is None:
        setting = run.setting("optim", "warmup_steps")
        warmup = setting if isinstance(setting, int) else 0
    total = run.planned("total_steps") or ending_of(run).total or 0
    return judge(run.readings, warmup_steps=warmup, total_steps=total)


def meaning_of(run: RunRecord, verdict: Verdict) -> tuple[str, str]:
    """Colour and one or two sentences."""
    colour, meaning = _OF_ENCODERS[verdict]
    words: dict[Verdict, str] = {"multimodal": _OF_ANSWERS, "autoencoder": _OF_FILMS}.get(str(run.setting("task")), {})
    return colour, words.get(verdict, meaning)
