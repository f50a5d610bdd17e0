"""Optimisation: schedules as pure functions of the step, parameter groups, measured clipping, AdamW that skips bad steps."""
