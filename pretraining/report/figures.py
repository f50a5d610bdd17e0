"""A run's record -> the figures of its page: which numbers, in which order, and one sentence how good and bad look.

The sentences are for people who know OCT, not self-supervised learning. A figure without any number is left out.
"""

from dataclasses import replace

from pretraining.report.curves import Axis, Curve
from pretraining.report.figure import Figure, Section, curves_of, family, members, relative, section, with_foreground
from pretraining.report.gather import RunRecord
from pretraining.report.training_figures import mechanics, speed


def sections(run: RunRecord) -> list[Section]:
    """All sections, in the order of the page; a section may be without figures."""
    return [_against_simple_answers(run), _scans_apart(run), _probes(run), _makers(run), mechanics(run), speed(run)]


def _against_simple_answers(run: RunRecord) -> Section:
    held_out = "diag/loss" if run.series("diag/loss") else "val/loss"
    simple = [
        ("average scan", "diag/loss_pos"),
        ("average of all places", "diag/loss_global"),
        ("always zero", "diag/loss_zero"),
    ]
    training = [replace(curve, faint=True) for curve in curves_of(run, [("training loss", "train/loss")])]
    return section(
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
            curves=(*curves_of(run, [("held-out scans", held_out), *simple]), *training),
            axis=Axis(log=True),
        ),
        Figure(
            name="pos-ratio",
            title="Error beside the average scan (pos_ratio)",
            sentence="Good: falls well below 1. Bad: 1 or more after warm-up: the prediction ignores the scan.",
            curves=with_foreground(run, [("error ratio", "pos_ratio")]),
            axis=Axis(level=1, level_label="no better than the average scan", log=True),
        ),
        Figure(
            name="explained",
            title="Explained beyond the place (ev_pos, centred_cos)",
            sentence="Good: rises towards 1. Bad: stays at 0 or below: no difference between scans is predicted.",
            curves=with_foreground(run, [("share explained", "ev_pos"), ("likeness of direction", "centred_cos")]),
            axis=Axis(level=0, level_label="nothing explained", least=-1),
        ),
    )


def _scans_apart(run: RunRecord) -> Section:
    spread = with_foreground(run, [("target encoder", "pooled_std"), ("trained encoder", "pooled_std_online")])
    ranks = [
        ("whole scans", "diag/rankme_pooled"),
        ("places", "diag/rankme_tokens"),
        ("places, centred", "diag/rankme_centred"),
    ]
    return section(
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
            curves=tuple(Curve(label=curve.label, points=relative(curve.points)) for curve in spread),
            axis=Axis(from_zero=True, level=1 / 3, level_label="a third of the start"),
        ),
        Figure(
            name="likeness",
            title="Likeness of places (token_cosine)",
            sentence="Good: clearly below 0.98. Bad: close to 1: vitreous, retina and choroid are described alike.",
            curves=with_foreground(run, [("cosine between places", "token_cosine")]),
            axis=Axis(level=0.98, level_label="0.98"),
        ),
        Figure(
            name="rank",
            title="Directions in use (RankMe)",
            sentence="How many independent things are described. Good: steady. Look closer: half of its own usual "
            "value. No verdict follows: dead networks may score high.",
            curves=curves_of(run, ranks),
            axis=Axis(log=True),
        ),
        Figure(
            name="lidar",
            title="Scan or mask? (LiDAR)",
            sentence="How well scans are told apart when other parts of them are hidden. Good: steady after the start. "
            "Bad: falls on while the loss falls.",
            curves=curves_of(run, [("LiDAR", "diag/lidar")]),
        ),
        Figure(
            name="scan-r2",
            title="Scans in their descriptions (scan_r2)",
            sentence="How much of what tells scans apart can be read off their descriptions, R2. Good: rises. "
            "Bad: falls.",
            curves=curves_of(run, [("R2", "diag/scan_r2")]),
            axis=Axis(level=0, level_label="nothing can be read", least=-1, min_span=0.2),
        ),
    )


def _probes(run: RunRecord) -> Section:
    """A figure per label: the encoder beside its own untrained copy."""
    labels = members(run, "probe/")
    return section(
        "probes-over-time",
        "Does it learn what is in the eye?",
        "A simple model reads a known property from the frozen features, and the same from an untrained network.",
        "",
        *(
            Figure(
                name=f"probe-{place}",
                title=label.replace("_", " "),
                sentence="Good: above the untrained network, and rising. Bad: on it or below.",
                curves=curves_of(run, [("encoder", f"diag/probe/{label}"), ("untrained", f"diag/probe_init/{label}")]),
                axis=Axis(min_span=0.2),
            )
            for place, label in enumerate(labels)
        ),
    )


def _makers(run: RunRecord) -> Section:
    return section(
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


def _of_makers(run: RunRecord, prefix: str) -> tuple[Curve, ...]:
    """Names of makers are kept in small letters (diagnostics.collapse.domain_slug)."""
    curves = family(run, prefix)
    return tuple(Curve(label=curve.label.replace("_", " ").title(), points=curve.points) for curve in curves)
