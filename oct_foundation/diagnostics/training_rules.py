"""What readings say of the training: do both networks move, are the numbers sound, is the input worth learning from?

Formulas and lines: jepa.md, section 4. Each rule is silent where a value it needs is missing.
"""

import math
import statistics

from oct_foundation.diagnostics.readings import Course, Finding, shown

# Values that the teacher alone decides: on fixed volumes they stand still only if it does.
_OF_TEACHER = ("pooled_std", "token_cosine", "rankme_tokens")
# Held-out losses fall by orders of magnitude over a run, so that only recent readings are a measure of the next.
_RECENT_READINGS = 5


def not_finite(course: Course) -> Finding | None:
    """Nan or infinity anywhere in the last reading, warm-up or not."""
    values = course.last.values if course.last else {}
    bad = sorted(name for name, value in values.items() if not math.isfinite(value))
    if not bad:
        return None
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return course.found(
        "not_finite",
        "alarm",
        f"Not a number or infinite: {', '.join(bad[:5])}{more}.",
        "Stop, and go on from the last checkpoint before this with a lower optim.base_lr, a smaller optim.clip_norm or "
        "train.precision=fp32. If it comes back, look for volumes with broken voxels.",
    )


def nothing_trains(course: Course) -> Finding | None:
    """The encoder's update is 0 or nan twice, or its features of the fixed volumes are those of the first reading."""
    still = course.twice("update_ratio/encoder", _is_still)
    if still:
        evidence = (
            f"At steps {course.steps()} the last update of the encoder's weights was {shown(still)} of their size."
        )
    elif course.unchanged("pooled_std_online"):
        evidence = (
            f"At steps {course.steps()} the encoder gave the same features as before training, to the last digits."
        )
    else:
        return None
    return course.found(
        "nothing_trains",
        "alarm",
        evidence,
        "The encoder is what it was at the start. Check that its parameters are trainable and in the optimizer, that "
        "optim.base_lr is above 0, and that weights are kept in fp32: updates vanish in bf16.",
    )


def predictor_stands(course: Course) -> Finding | None:
    """The predictor's update is 0 or nan twice."""
    still = course.twice("update_ratio/predictor", _is_still)
    if still is None:
        return None
    return course.found(
        "predictor_stands",
        "warning",
        f"At steps {course.steps()} the last update of the predictor's weights was {shown(still)} of their size.",
        "The encoder learns from a predictor that does not. Check that it is trainable and in the optimizer.",
    )


def ema_frozen(course: Course) -> Finding | None:
    """The encoder trains, and the teacher's features are those of the first reading, or its distance stands still.

    The features decide: the distance of a frozen teacher usually grows, as that of a slow one does.
    """
    moves = course.twice("update_ratio/encoder", lambda ratio: ratio > 0)
    if moves is None or nothing_trains(course):
        return None
    gaps = [values for name in course.names("ema_gap/") if (values := course.latest(name, 3))]
    stuck = next((values for values in gaps if values[0] > 0 and _alike(values, course.thresholds.unchanged)), None)
    if all(course.unchanged(name) for name in _OF_TEACHER):
        evidence = "the teacher gave the same features as before training, to the last digits"
    elif stuck and _follows(course):
        evidence = f"the distance of teacher and student stood still at {stuck[-1]:.3g} of the weights' size"
    else:
        return None
    return course.found(
        "ema_frozen",
        "alarm",
        f"At steps {course.steps()} {evidence}, while updates moved the encoder by {shown(moves)} of its size.",
        "The teacher (the running average of the encoder, and the network that is delivered) does not follow. Keep its "
        "weights in fp32, and optim.ema_momentum below 1; a half-life of .5 to 30 % of the run is usual.",
    )


def ema_copies(course: Course) -> Finding | None:
    """The distance of teacher and student is 0 twice while the student trains and the momentum is below 1."""
    copies = [name for name in course.names("ema_gap/") if course.twice(name, lambda gap: gap == 0)]
    if not copies or not _follows(course) or nothing_trains(course):
        return None
    return course.found(
        "ema_copies",
        "warning",
        f"At steps {course.steps()} teacher and student were identical ({', '.join(copies)} = 0).",
        "The student is its own teacher, the short way to a collapse: 2 of 3 such toy runs died. Raise "
        "optim.ema_momentum, to .99 or more.",
    )


def update_jump(course: Course) -> Finding | None:
    """A module's update is many times its median since warm-up."""
    limit = course.thresholds.update_jump
    jumped = {
        name: pair
        for name in course.names("update_ratio/")
        if (pair := course.over_median(name)) and pair[0] > limit * pair[1]
    }
    if not jumped:
        return None
    jumps = ", ".join(f"{name} {value:.3g} after {median:.3g}" for name, (value, median) in jumped.items())
    return course.found(
        "update_jump",
        "warning",
        f"The last update was more than {limit:g} times as large as usual: {jumps} (median of the readings before).",
        "Weights move faster than the averages behind them. Look at the gradient norm and the learning rate of this "
        "step; lower optim.base_lr if it happens again.",
    )


def loss_jump(course: Course) -> Finding | None:
    """The held-out loss is many times the median of the readings before."""
    limit = course.thresholds.loss_jump
    pair = course.over_median("loss", _RECENT_READINGS)
    if pair is None or not pair[0] > limit * pair[1]:
        return None
    return course.found(
        "loss_jump",
        "warning",
        f"The held-out loss is {pair[0]:.3g}, {pair[0] / pair[1]:.1f} times the median of the readings before.",
        "A slow rise is normal, because the teacher's features become richer; a jump is not. Look at the gradient "
        "norm, and at the next reading: runs may recover.",
    )


def loss_drop(course: Course) -> Finding | None:
    """The held-out loss is a small share of the median of the readings before."""
    limit = course.thresholds.loss_drop
    pair = course.over_median("loss", _RECENT_READINGS)
    if pair is None or not pair[0] < limit * pair[1]:
        return None
    return course.found(
        "loss_drop",
        "info",
        f"The held-out loss is {pair[0]:.3g}, {pair[0] / pair[1]:.2f} times the median of the readings before.",
        "A sudden drop may be a partial collapse. Keep this checkpoint, and compare pos_ratio and probes before and "
        "after.",
    )


def constant_input(course: Course) -> Finding | None:
    """Voxels vary too little, or less than at first, or untrained features of the held-out volumes are the same."""
    limits = course.thresholds
    deviations = course.latest("input_std")
    known = (reading.values for reading in (course.initial, *course.later) if reading is not None)
    first = next((values["input_std"] for values in known if "input_std" in values), 0.0)
    relative = tuple(value / first for value in deviations) if deviations and first > 0 else ()
    apart = course.initial_value("pooled_std_relative")
    if deviations and all(value < limits.input_std_least for value in deviations):
        evidence = f"At steps {course.steps()} the voxels' standard deviation was {shown(deviations)}."
    elif relative and max(relative) < limits.input_std:
        evidence = (
            f"At steps {course.steps()} the voxels varied {shown(relative)} times as much as at the first reading."
        )
    elif apart is not None and apart <= limits.unchanged:
        evidence = f"Before training, the features of different held-out volumes differ by {apart:.1g} of their size."
    else:
        return None
    return course.found(
        "constant_input",
        "warning",
        evidence,
        "The volumes may be empty, or one volume many times. Look at some of them, and at the report of `octfm "
        "prepare`.",
    )


def repeated_input(course: Course) -> Finding | None:
    """Most volumes of a training batch are there twice, at two readings."""
    limit = course.thresholds.input_distinct
    shares = course.twice("input_distinct", lambda share: share < limit)
    if shares is None:
        return None
    return course.found(
        "repeated_input",
        "warning",
        f"At steps {course.steps()} only {shown(shares)} of a training batch were volumes that no other one equals.",
        "Look for copies of files in the source (`octfm data report` shows look-alikes), and at data.domain_weights: a "
        "small maker drawn often repeats.",
    )


def maker_behind(course: Course) -> Finding | None:
    """A maker's loss is well above the median of the other makers', twice."""
    limit = course.thresholds.maker_loss
    losses = {name: values for name in course.names("domain_loss/") if (values := course.latest(name))}
    behind = {}
    for name, values in losses.items():
        others = [other for other_name, other in losses.items() if other_name != name]
        medians = [statistics.median(other[index] for other in others) for index in (0, 1)] if others else []
        if medians and all(value > limit * median for value, median in zip(values, medians, strict=True)):
            behind[name.removeprefix("domain_loss/")] = values[-1] / medians[-1] if medians[-1] else math.inf
    if not behind:
        return None
    factors = ", ".join(f"{maker} {factor:.1f} times" for maker, factor in behind.items())
    return course.found(
        "maker_behind",
        "info",
        f"At steps {course.steps()} the loss of a maker's scans was well above the median of the others': {factors}.",
        "Its scans may be rare or harder. Try data.domain_balance=vendor, and look whether their spacing and grey "
        "levels were read right.",
    )


def mostly_clipped(course: Course) -> Finding | None:
    """More than the threshold's share of updates was clipped, twice."""
    limit = course.thresholds.clipped_share
    shares = course.twice("clipped_share", lambda share: share > limit)
    if shares is None:
        return None
    return course.found(
        "mostly_clipped",
        "info",
        f"At steps {course.steps()} the gradient was cut in {shown(shares)} of the updates (line: {limit:g}).",
        "The clip, not the learning rate, decides the step. Raise optim.clip_norm above the usual gradient norm.",
    )


def _is_still(ratio: float) -> bool:
    """Whether an update of this relative size, 0 or nan, changes nothing that could be learned."""
    return ratio == 0 or math.isnan(ratio)


def _alike(values: tuple[float, ...], tolerance: float) -> bool:
    """Whether positive values differ by no more than this share of the largest."""
    return max(values) - min(values) <= tolerance * max(values)


def _follows(course: Course) -> bool:
    """Whether the teacher should follow a student that learns: momentum below 1, learning rate above 0, both twice."""
    learns = course.twice("learning_rate", lambda rate: rate > 0)
    return learns is not None and course.twice("ema_momentum", lambda momentum: momentum < 1) is not None
