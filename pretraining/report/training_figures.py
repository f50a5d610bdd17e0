"""A run's record -> the figures for whoever looks after the run: gradients, schedules, updates, speed."""

from pretraining.report.curves import Axis
from pretraining.report.figure import Figure, Section, curves_of, family, if_ever, section
from pretraining.report.gather import RunRecord


def mechanics(run: RunRecord) -> Section:
    """How each update went."""
    clip = run.setting("optim", "clip_norm")
    return section(
        "mechanics",
        "The training itself",
        "For whoever looks after the run.",
        "No training step is on record.",
        Figure(
            name="gradient",
            title="Gradient norm",
            sentence="Good: settles, with rare spikes. Bad: grows, or lies above the limit all the time.",
            curves=curves_of(run, [("before the limit", "train/grad_norm")]),
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
            curves=curves_of(run, [("clipped", "diag/clipped_share")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="learning-rate",
            title="Learning rate",
            sentence="As configured: rises during warm-up, then follows its plan. Bad: anything else.",
            curves=curves_of(run, [("learning rate", "train/learning_rate")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="momentum",
            title="EMA momentum",
            sentence="How slowly the target encoder follows. Good: above 0.99. Bad: near 0 it follows at once, which "
            "often ends in collapse.",
            curves=curves_of(run, [("momentum", "train/ema_momentum")]),
        ),
        Figure(
            name="ema-gap",
            title="Distance of the two encoders",
            sentence="Good: small, never 0. Bad: 0 (nothing trains), or growing without end (the target stands still).",
            curves=family(run, "ema_gap/"),
            axis=Axis(log=True),
        ),
        Figure(
            name="update",
            title="Size of an update",
            sentence="One update beside the weights it changes. Good: steady, below a hundredth. Bad: 0, or jumps.",
            curves=family(run, "update_ratio/"),
            axis=Axis(log=True),
        ),
        Figure(
            name="skipped",
            title="Updates left out",
            sentence="Updates whose gradient was not a number, in total. Good: 0, or a few. Bad: climbs.",
            curves=if_ever(curves_of(run, [("left out", "train/skipped_updates")])),
        ),
    )


def speed(run: RunRecord) -> Section:
    """How fast updates follow each other."""
    return section(
        "speed",
        "Speed",
        "",
        "No training step is on record.",
        Figure(
            name="throughput",
            title="Scans per second",
            sentence="Good: level, apart from the first steps. Bad: sags or saws: loading or the machine holds it up.",
            curves=curves_of(run, [("scans per second", "train/samples_per_sec")]),
            axis=Axis(from_zero=True),
        ),
        Figure(
            name="step-time",
            title="Seconds per update",
            sentence="Good: level. A tooth now and then is a reading, a validation or a checkpoint.",
            curves=curves_of(run, [("seconds per update", "train/seconds_per_step")]),
            axis=Axis(from_zero=True),
        ),
    )
