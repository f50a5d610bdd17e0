"""What the loop knows of every tracker, and several trackers as one.

Metrics are host floats by name (`train/loss`, `val/loss`); each call carries its own optimizer step, and
calls need not come in the order of steps: validation of step 100 may be logged before training of step 98.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol


class Tracker(Protocol):
    """Somewhere that metrics go; only rank 0 has one."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes the metrics of one optimizer step."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Takes a few rows with the same columns, for trackers that show more than numbers; others do nothing."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Takes the run's summary and closes; nothing is logged afterwards."""
        ...


class FanOut:
    """Several trackers as one: each gets every call even when another raises; errors come out afterwards."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs to all."""
        with ExitStack() as calls:  # runs its callbacks last to first, all of them, and raises at the end
            for tracker in reversed(self._trackers):
                calls.callback(tracker.log, metrics, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Hands the rows to all."""
        with ExitStack() as calls:
            for tracker in reversed(self._trackers):
                calls.callback(tracker.table, name, rows, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finishes all."""
        with ExitStack() as calls:
            for tracker in reversed(self._trackers):
                calls.callback(tracker.finish, summary)
