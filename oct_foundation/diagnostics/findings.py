"""Readings -> findings: what is wrong or worth a look, with evidence and a remedy.

One tuple of rules, each a function of the course of the run; the same for the running job, and for the report.
"""

from collections.abc import Callable, Sequence

from oct_foundation.diagnostics import feature_rules, training_rules
from oct_foundation.diagnostics.readings import Course, Finding, Reading, Severity, Thresholds

__all__ = ["Finding", "Reading", "Severity", "Thresholds", "find"]

_RULES: tuple[Callable[[Course], Finding | None], ...] = (
    training_rules.not_finite,
    feature_rules.collapse,
    training_rules.nothing_trains,
    training_rules.ema_frozen,
    feature_rules.position_only,
    feature_rules.shrunk_features,
    feature_rules.same_tokens,
    feature_rules.baseline_fallen,
    feature_rules.too_good,
    feature_rules.background_only,
    feature_rules.lidar_falling,
    training_rules.ema_copies,
    training_rules.predictor_stands,
    training_rules.update_jump,
    training_rules.loss_jump,
    training_rules.constant_input,
    training_rules.repeated_input,
    feature_rules.rank_halved,
    training_rules.loss_drop,
    training_rules.maker_behind,
    training_rules.mostly_clipped,
)

_DEFAULT = Thresholds()


def find(readings: Sequence[Reading], thresholds: Thresholds = _DEFAULT, warmup_steps: int = 0) -> list[Finding]:
    """What holds at the last reading, the gravest first; for what held earlier, call it with the readings up to then.

    "Twice" is at the last two readings at or after `warmup_steps`, step 0 never among them; "initial" is step 0. The
    order of `readings` matters only where two are of one step: the later one counts.
    """
    course = Course.of(readings, thresholds, warmup_steps)
    return [finding for rule in _RULES if (finding := rule(course))]
