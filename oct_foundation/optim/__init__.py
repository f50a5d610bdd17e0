"""Optimisation: schedules as functions of the step, parameter groups, measured clipping, AdamW that skips bad steps."""
