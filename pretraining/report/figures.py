"""A run's record -> the figures of its page: which numbers, in which order, and one sentence how good and bad look.

The sentences are for people who know OCT, not self-supervised learning. A figure without any number is left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from oct_foundation.diagnostics.readings import PREFIX
from pretraining.report.curves import Axis, Curve, Points
from pretraining.report.gather import RunRecord

# Of readings of one kind (makers, modules, labels) so many have a curve or a figure of their own.
MAX_OF_A_KIND = 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot. `name`: its id on the page; sentence: what good and bad look like; level: a line to compare with."""

    name: str
    title: str
    sentence: str
    curves: tuple[Curve, ...]
    axis: Axis = field(default_factory=Axis)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Figures that answer one question; absent: what to say where there are none."""

    name: str
    title: str
    lead: str
    figures: tuple[Figure, ...]
    absent: str


def sections(run: RunRecord) -> list[Section]:
    """All sections, in the order of the page; a section may be without figures."""
    return [_against_simple_answers(run), _scans_apart(run), _probes(run), _makers(run), _mechanics(run), _speed(run)]


def _against_simple_answers(run: RunRecord) -> Section:
    held_out = "diag/loss" if run.series("diag/loss") else "val/loss"
    simple = [
        ("average scan", "diag/loss_pos"),
        ("average of all places", "diag/loss_global"),
        ("always zero", "diag/loss_zero"),
    ]
    training = [replace(curve, faint=True) for curve in _curves(run, [("training loss", "train/loss")])]
    return _section(
        "baselines",
        "Does it predict better than a simple answer?",
        "The network is shown a part of a scan and predicts how the hidden part would be described. Three simple "
        "answers need no look at the scan: always zero, the average of all places of all scans, and the average scan, "
        "place by place.",
        "No loss is on record.",
        Figure(
            name="loss",
            title="Loss and simple answers",
            sentence="Good: held-out scans stay far below the average scan. Bad: they meet. "
            "How low the loss is says nothing by itself: a dead network reaches the lowest.",
            curves=(*_curves(run, [("held-out scans", held_out), *simple]), *training),
            axis=Axis(log=True),
        ),
        Figure(
            name="pos-ratio",
            title="Error beside the average scan (pos_ratio)",
            sentence="Good: falls well below 1. Bad: 1 or more after warm-up: the prediction ignores the scan.",
            curves=_with_foreground(run, [("error ratio", "pos_ratio")]),
            axis=Axis(level=1, level_label="no better than the average scan", log=True),
        ),
        Figure(
            name="explained",
            title="Explained beyond the place (ev_pos, centred_cos)",
            sentence="Good: rises towards 1. Bad: stays at 0 or below: no difference between scans is predicted.",
            curves=_with_foreground(run, [("share explained", "ev_pos"), ("likeness of direction", "centred_cos")]),
            axis=Axis(level=0, level_label="nothing explained", least=-1),
        ),
    )


def _scans_apart(run: RunRecord) -> Section:
    spread = _with_foreground(run, [("target encoder", "pooled_std"), ("trained encoder", "pooled_std_online")])
    ranks = [
        ("whole scans", "diag/rankme_pooled"),
        ("places", "diag/rankme_tokens"),
        ("places, centred", "diag/rankme_centred"),
    ]
    return _section(
        "collapse",
        "Does it tell scans apart?",
        "A network that describes every scan alike is useless, however well it predicts its own descriptions. "
        "This is called collapse, and the loss cannot see it.",
        "No readings of the network are on record. They are taken every diagnostics.every_steps updates.",
        Figure(
            name="spread",
            title="Spread between scans (pooled_std)",
            sentence="How much descriptions of whole scans differ, beside the first reading. Good: near 1 or above. "
            "Bad: a third or less.",
            curves=tuple(Curve(label=curve.label, points=_relative(curve.points)) for curve in spread),
            axis=Axis(from_zero=True, level=1 / 3, level_label="a third of the start"),
        ),
        Figure(
            name="likeness",
            title="Likeness of places (token_cosine)",
            sentence="Good: clearly below 0.98. Bad: close to 1: vitreous, retina and choroid are described alike.",
            curves=_with_foreground(run, [("cosine between places", "token_cosine")]),
            axis=Axis(level=0.98, level_label="0.98"),
        ),
        Figure(
            name="rank",
            title="Directions in use (RankMe)",
            sentence="How many independent things are described. Good: steady. Look closer: half of its own usual "
            "value. No verdict follows: dead networks may score high.",
            curves=_curves(run, ranks),
            axis=Axis(log=True),
        ),
        Figure(
            name="lidar",
            title="Scan or mask? (LiDAR)",
            sentence="How well scans are told apart when other parts of them are hidden. Good: steady after the start. "
            "Bad: falls on while the loss falls.",
            curves=_curves(run, [("LiDAR", "diag/lidar")]),
        ),
    )


def _probes(run: RunRecord) -> Section:
    """A figure per label: the encoder beside its own untrained copy."""
    labels = _members(run, "probe/")
    return _section(
        "probes-over-time",
        "Does it learn what is in the eye?",
        "A simple model reads a known property from the frozen features, and the same from an untrained network.",
        "",
        *(
            Figure(
                name=f"probe-{place}",
                title=label.replace("_", " "),
                sentence="Good: above the untrained network, and rising. Bad: on it or below.",
                curves=_curves(run, [("encoder", f"diag/probe/{label}"), ("untrained", f"diag/probe_init/{label}")]),
                axis=Axis(min_span=0.2),
            )
            for place, label in enumerate(labels)
        ),
    )


def _makers(run: RunRecord) -> Section:
    return _section(
        "makers",
        "Makers of devices",
        "The same network on held-out scans of each maker.",
        "No readings per maker are on record: the data have one maker, or name none.",
        Figure(
            name="maker-loss",
            title="Loss",
            sentence="Good: the makers fall together. Bad: one stays behind: its scans are too few, or look unlike.",
            curves=_of_makers(run, "domain_loss/"),
            axis=Axis(log=True),
        ),
        Figure(
            name="maker-gradient",
            title="Gradient norm",
            sentence="Good: all of one order. Bad: one is many times the others: it decides alone what is learned.",
            curves=_of_makers(run, "grad_norm/"),
            axis=Axis(log=True),
        ),
    )


def _mechanics(run: RunRecord) -> Section:
    clip = run.setting("optim", "clip_norm")
    return _section(
        "mechanics",
        "The training itself",
        "For whoever looks after the run.",
        "No training step is on record.",
        Figure(
            name="gradient",
            title="Gradient norm",
            sentence="Good: settles, with rare spikes. Bad: grows, or lies above the limit all the time.",
            curves=_curves(run, [("before the limit", "train/grad_norm")]),
            axis=Axis(
                level=float(clip) if isinstance(clip, int | float) else None,
                level_label="limit (optim.clip_norm)",
                log=True,
            ),
        ),
        Figure(
            name="clipped",
            title="Steps over the limit",
            sentence="Share of updates whose gradient was cut. Good: below a half. Bad: near 1.",
            curves=_curves(run, [("clipped", "diag/clipped_share")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="learning-rate",
            title="Learning rate",
            sentence="As configured: rises during warm-up, then follows its plan. Bad: anything else.",
            curves=_curves(run, [("learning rate", "train/learning_rate")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="momentum",
            title="EMA momentum",
            sentence="How slowly the target encoder follows. Good: above 0.99. Bad: near 0 it follows at once, which "
            "often ends in collapse.",
            curves=_curves(run, [("momentum", "train/ema_momentum")]),
        ),
        Figure(
            name="ema-gap",
            title="Distance of the two encoders",
            sentence="Good: small, never 0. Bad: 0 (nothing trains), or growing without end (the target stands still).",
            curves=_family(run, "ema_gap/"),
            axis=Axis(log=True),
        ),
        Figure(
            name="update",
            title="Size of an update",
            sentence="One update beside the weights it changes. Good: steady, below a hundredth. Bad: 0, or jumps.",
            curves=_family(run, "update_ratio/"),
            axis=Axis(log=True),
        ),
        Figure(
            name="skipped",
            title="Updates left out",
            sentence="Updates whose gradient was not a number, in total. Good: 0, or a few. Bad: climbs.",
            curves=_if_ever(_curves(run, [("left out", "train/skipped_updates")])),
        ),
    )


def _speed(run: RunRecord) -> Section:
    return _section(
        "speed",
        "Speed",
        "",
        "No training step is on record.",
        Figure(
            name="throughput",
            title="Scans per second",
            sentence="Good: level, apart from the first steps. Bad: sags or saws: loading or the machine holds it up.",
            curves=_curves(run, [("scans per second", "train/samples_per_sec")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="step-time",
            title="Seconds per update",
            sentence="Good: level. A tooth now and then is a reading, a validation or a checkpoint.",
            curves=_curves(run, [("seconds per update", "train/seconds_per_step")]),
            axis=Axis(from_zero=True),
        ),
    )


def _section(name: str, title: str, lead: str, absent: str, *figures: Figure) -> Section:
    drawn = tuple(figure for figure in figures if figure.curves)
    return Section(name=name, title=title, lead=lead, absent=absent, figures=drawn)


def _curves(run: RunRecord, wanted: Iterable[tuple[str, str]]) -> tuple[Curve, ...]:
    """A curve per (label, metric) that is on record."""
    found = (Curve(label=label, points=run.series(metric)) for label, metric in wanted)
    return tuple(curve for curve in found if curve.points)


def _with_foreground(run: RunRecord, wanted: Sequence[tuple[str, str]]) -> tuple[Curve, ...]:
    """Readings, and after them the same of the retina alone: most of a scan is background, which is easy."""
    retina = [(f"{label}, retina only", f"{PREFIX}foreground_{name}") for label, name in wanted]
    return _curves(run, [*((label, PREFIX + name) for label, name in wanted), *retina])


def _family(run: RunRecord, prefix: str) -> tuple[Curve, ...]:
    return _curves(run, [(name, PREFIX + prefix + name) for name in _members(run, prefix)])


def _of_makers(run: RunRecord, prefix: str) -> tuple[Curve, ...]:
    """Names of makers are kept in small letters (diagnostics.collapse.domain_slug)."""
    curves = _family(run, prefix)
    return tuple(Curve(label=curve.label.replace("_", " ").title(), points=curve.points) for curve in curves)


def _members(run: RunRecord, prefix: str) -> list[str]:
    """What follows `prefix` in the names of readings, sorted, the first few."""
    names = {
        name.removeprefix(prefix) for reading in run.readings for name in reading.values if name.startswith(prefix)
    }
    return sorted(names)[:MAX_OF_A_KIND]


def _relative(points: Points) -> Points:
    """Values over the first one; as they are where that is 0."""
    start = points[0][1] or 1.0
    return [(step, value / start) for step, value in points]


def _if_ever(curves: tuple[Curve, ...]) -> tuple[Curve, ...]:
    """Those that leave 0: a line of zeros is no picture."""
    return tuple(curve for curve in curves if any(value != 0 for _, value in curve.points))
