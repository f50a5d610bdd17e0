"""What readings say of the features: do they differ between scans, and does the predictor know more than the position?

Formulas and lines: jepa.md, section 4. Each rule is silent where a value it needs is missing.
"""

from oct_foundation.diagnostics.readings import Course, Finding, shown


def collapse(course: Course) -> Finding | None:
    """The verdict's own rule: pos_ratio at or above its line and pooled_std at or below its line, both twice."""
    limits = course.thresholds
    ratios = course.twice("pos_ratio", lambda ratio: ratio >= limits.pos_ratio)
    spreads = course.relative("pooled_std")
    if ratios is None or spreads is None or max(spreads) > limits.spread:
        return None
    return course.found(
        "collapse",
        "alarm",
        f"At steps {course.steps()} hidden patches were predicted no better than by the average of other scans at that "
        f"place (pos_ratio {shown(ratios)}, better is below {limits.pos_ratio:g}), and features of different scans lie "
        f"{shown(spreads)} times as far apart as before training (line: {limits.spread:.2g}).",
        "The encoder gives nearly one vector for every scan, whatever the loss says. Stop, and start anew with a "
        "slower teacher (optim.ema_momentum nearer to 1), a lower optim.base_lr or more optim.warmup_steps.",
    )


def position_only(course: Course) -> Finding | None:
    """pos_ratio >= its line, ev_pos <= 0 or centred_cos <= 0, twice, without collapse and where scans differ."""
    limit = course.thresholds.pos_ratio
    signs = {
        f"pos_ratio {{}}, better is below {limit:g}": course.twice("pos_ratio", lambda ratio: ratio >= limit),
        "explained variance beyond the average scan {}, better is above 0": course.twice("ev_pos", lambda ev: ev <= 0),
        "cosine with what is special of a scan {}, better is above 0": course.twice(
            "centred_cos", lambda cos: cos <= 0
        ),
    }
    held = [text.format(shown(values)) for text, values in signs.items() if values]
    if not held or course.scans_alike() or collapse(course):
        return None
    return course.found(
        "position_only",
        "warning",
        f"At steps {course.steps()} hidden patches were predicted no better than by the average of other scans at that "
        f"place ({'; '.join(held)}).",
        "The predictor may know where a patch lies and nothing of this eye. Wait for two more readings: some healthy "
        "runs pass through this early. If it stays, check the masks and the data, or lower optim.base_lr.",
    )


def shrunk_features(course: Course) -> Finding | None:
    """pooled_std <= its share of the initial value, twice, without collapse."""
    limit = course.thresholds.spread
    spreads = course.relative("pooled_std")
    if spreads is None or max(spreads) > limit or collapse(course):
        return None
    return course.found(
        "shrunk_features",
        "warning",
        f"At steps {course.steps()} features of different scans lie {shown(spreads)} times as far apart as before "
        f"training (line: {limit:.2g}).",
        "Features of all scans draw together, the first half of a collapse. Watch pos_ratio; raise optim.ema_momentum "
        "or lower optim.base_lr if it nears 1.",
    )


def same_tokens(course: Course) -> Finding | None:
    """token_cosine above its line, twice."""
    limit = course.thresholds.token_cosine
    cosines = course.twice("token_cosine", lambda cosine: cosine > limit)
    if cosines is None:
        return None
    return course.found(
        "same_tokens",
        "warning",
        f"At steps {course.steps()} the patches of one scan have nearly the same features: mean cosine "
        f"{shown(cosines)} (line: {limit:g}; 1 is identical).",
        "Retina, vitreous and choroid look alike to the encoder. If pos_ratio is at or above 1 too, stop the run; else "
        "check that the volumes are not mostly empty.",
    )


def baseline_fallen(course: Course) -> Finding | None:
    """loss_pos or loss_global below its share of the initial value, twice."""
    limit = course.thresholds.baseline_drop
    fallen = {
        text: ratios
        for name, text in (("loss_pos", "the average scan"), ("loss_global", "one vector for all"))
        if (ratios := course.relative(name)) and max(ratios) < limit
    }
    if not fallen:
        return None
    errors = "; ".join(f"{text} as the answer errs {shown(ratios)} times as much" for text, ratios in fallen.items())
    return course.found(
        "baseline_fallen",
        "warning",
        f"At steps {course.steps()} answers that know nothing of the scan have become good: {errors} as before "
        f"training (line: {limit:g}).",
        "The task has become easy because the features say less, so that a falling loss is no progress. Look at "
        "pos_ratio and the spread of features, not at the loss.",
    )


def too_good(course: Course) -> Finding | None:
    """pos_ratio below what speckle allows, twice."""
    limit = course.thresholds.leak_ratio
    ratios = course.twice("pos_ratio", lambda ratio: ratio < limit)
    if ratios is None:
        return None
    return course.found(
        "too_good",
        "warning",
        f"At steps {course.steps()} the error was {shown(ratios)} times that of the average scan (line: {limit:g}); "
        "speckle alone should leave more.",
        "Hidden patches may reach the encoder, or volumes may be copies of each other. Check the masks, and the data "
        "for duplicates and for a pattern that all scans share.",
    )


def background_only(course: Course) -> Finding | None:
    """foreground_pos_ratio >= the line while pos_ratio is below it, twice."""
    limit = course.thresholds.pos_ratio
    tissue = course.twice("foreground_pos_ratio", lambda ratio: ratio >= limit)
    everywhere = course.twice("pos_ratio", lambda ratio: ratio < limit)
    if tissue is None or everywhere is None:
        return None
    return course.found(
        "background_only",
        "info",
        f"At steps {course.steps()} the prediction beat the average scan over all patches (pos_ratio "
        f"{shown(everywhere)}) but not over tissue (foreground_pos_ratio {shown(tissue)}).",
        "What was learned may be where the background lies. Crop closer to the retina, or use masks in larger blocks "
        "(mask.strategy).",
    )


def rank_halved(course: Course) -> Finding | None:
    """A RankMe below its share of its own median since warm-up. Scale and rank see different failures."""
    limit = course.thresholds.rank_drop
    halved = {
        name: pair
        for name in ("rankme_tokens", "rankme_centred", "rankme_pooled")
        if (pair := course.over_median(name)) and pair[0] < limit * pair[1]
    }
    if not halved:
        return None
    falls = ", ".join(f"{name} {value:.3g} after {median:.3g}" for name, (value, median) in halved.items())
    return course.found(
        "rank_halved",
        "info",
        f"Features use fewer independent directions than they did: {falls} (median of the readings before).",
        "No verdict by itself: dead and live encoders may have the same rank. Look at pos_ratio and at the next "
        "reading.",
    )


def lidar_falling(course: Course) -> Finding | None:
    """Lidar and loss both lower at each of the last three readings, lidar by its share in all."""
    lidars, losses = course.latest("lidar", 3), course.latest("loss", 3)
    if lidars is None or losses is None:
        return None
    falling = all(values[0] > values[1] > values[2] for values in (lidars, losses))
    if not falling or lidars[2] > course.thresholds.lidar_drop * lidars[0]:
        return None
    return course.found(
        "lidar_falling",
        "info",
        f"Over the last three readings the loss fell ({losses[0]:.3g} to {losses[2]:.3g}) while the number of "
        f"directions that tell scans apart fell too (lidar {lidars[0]:.3g} to {lidars[2]:.3g}).",
        "The loss may fall because features say less. Compare probes with the random-init encoder before going on.",
    )
