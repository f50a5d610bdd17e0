"""What a person sees while a run goes on: a progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# The start of a run is what people watch: its first lines all appear, later ones at most every few seconds.
FIRST_LINES = 20
LINE_EVERY_S = 5.0

_COLUMNS = {
    "train/loss": "loss {:.4f}",
    "train/learning_rate": "lr {:.2e}",
    "train/grad_norm": "grad norm {:.4g}",
    "train/samples_per_sec": "{:.1f} samples/s",
}
# Of some forty numbers of a reading those that decide; the record and the report have all.
_READING = {
    "diag/pos_ratio": "loss over that of the average scan {:.3g} (below 1: knows the eye)",
    "diag/pooled_std": "spread of features {:.3g}",
    "diag/rankme_pooled": "rank {:.1f}",
}

_log = logging.getLogger(__name__)


class ConsoleTracker:
    """Shows step of total, loss, learning rate, gradient norm, samples/s and time left.

    stream: where it goes; a terminal gets the bar, anything else lines. total_steps and start_step: optimizer
    steps. A stream that fails (terminal closed, disk of the log full) is one warning; training goes on.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)  # time and step of the last train lines
        self._num_lines = 0
        self._last_line_s = float("-inf")
        self._bar: Progress | None = None
        self._told = False
        if self._stream.isatty():
            self._bar = Progress(
                TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                console=Console(file=self._stream), auto_refresh=False,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total_steps, completed=start_step)
            with self._not_fatal():
                self._bar.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Shows train metrics on the bar or line; others (validation) always get a line of their own."""
        if train := {name: value for name, value in metrics.items() if name.startswith("train/")}:
            self._marks.append((self._clock(), step))
            text = " | ".join([*_cells(train), f"left {self._time_left(step)}"])
            if self._bar is not None:
                with self._not_fatal():
                    self._bar.update(self._task, completed=step, description=text, refresh=True)
            elif self._line_is_due(step):
                self._line(f"{self._place(step)} | {text}")
        if reading := _reading_cells(metrics):
            self._line(" | ".join([self._place(step), "reading", *reading]))
        others = {name: value for name, value in metrics.items() if not name.startswith(("train/", "diag/"))}
        if others:
            cells = [f"{name} {value:.4g}" for name, value in others.items()]
            self._line(" | ".join([self._place(step), *cells]))

    def warning(self, text: str) -> None:
        """A line that stands out."""
        self._line(f"WARNING {text}")

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Numbers only."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Takes the bar down; the summary is the run's to print."""
        if self._bar is not None:
            with self._not_fatal():
                self._bar.stop()

    def _place(self, step: int) -> str:
        width = len(str(self._total_steps))
        return f"step {step:>{width}}/{self._total_steps}"

    def _line_is_due(self, step: int) -> bool:
        now = self._clock()
        if self._num_lines >= FIRST_LINES and step < self._total_steps and now - self._last_line_s < LINE_EVERY_S:
            return False
        self._num_lines += 1
        self._last_line_s = now
        return True

    def _line(self, text: str) -> None:
        with self._not_fatal():
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    @contextmanager
    def _not_fatal(self) -> Iterator[None]:
        """Takes an OSError of the stream. Lines are tried again, a disk may get room; the bar is taken down."""
        try:
            yield
        except OSError as error:
            if self._bar is not None:  # it keeps all that it could not show, and holds sys.stdout and sys.stderr
                with suppress(OSError):
                    self._bar.stop()
                self._bar = None
            if not self._told:
                self._told = True
                _log.warning("what is shown of the run is lost (%s); training goes on", error.strerror)

    def _time_left(self, step: int) -> str:
        """h:mm:ss by the pace of the last lines; the first line has none, so compile time does not count."""
        (start_s, start_step), (now_s, _) = self._marks[0], self._marks[-1]
        if step <= start_step:
            return "?"
        seconds = (now_s - start_s) / (step - start_step) * max(0, self._total_steps - step)
        return str(timedelta(seconds=round(seconds)))


def _cells(train: Mapping[str, float]) -> list[str]:
    """The known columns in their order, as far as they were logged."""
    return [layout.format(train[name]) for name, layout in _COLUMNS.items() if name in train]


def _reading_cells(metrics: Mapping[str, float]) -> list[str]:
    """Those of _READING that were logged; where all scans have the same features their average is exact, and an error
    divided by its own says nothing.
    """
    if metrics.get("diag/pooled_std") == 0:
        return ["all held-out scans have the same features: collapsed, or copies of one scan"]
    return [layout.format(metrics[name]) for name, layout in _READING.items() if name in metrics]
