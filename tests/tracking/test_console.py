"""What the person sees: lines in a log, a bar on a terminal."""

import io
import os
import sys

import pytest

from oct_foundation.tracking.console import FIRST_LINES, LINE_EVERY_S, ConsoleTracker

ROW = {
    "train/loss": 0.43218,
    "train/learning_rate": 1e-4,
    "train/grad_norm": 0.012345,
    "train/ema_momentum": 0.998,
    "train/samples_per_sec": 12.34,
}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_names_step_loss_rate_norm_speed_and_time_left():
    clock, stream = Clock(), io.StringIO()
    console = ConsoleTracker(1000, stream=stream, clock=clock)
    console.log(ROW, 1)
    clock.now = 20.0
    console.log(ROW, 11)
    first, second = stream.getvalue().splitlines()
    assert first == "step    1/1000 | loss 0.4322 | lr 1.00e-04 | grad norm 0.01235 | 12.3 samples/s | left ?"
    assert second.startswith("step   11/1000 | ")
    assert second.endswith("left 0:32:58")  # 989 steps at 2 s


def test_missing_metrics_are_left_out_and_nan_is_shown():
    stream = io.StringIO()
    ConsoleTracker(10, stream=stream).log({"train/loss": float("nan")}, 3)
    assert stream.getvalue() == "step  3/10 | loss nan | left ?\n"


def test_a_reading_of_scans_that_do_not_differ_shows_no_ratio_of_nothing():
    stream = io.StringIO()
    console = ConsoleTracker(10, stream=stream)
    console.log({"diag/pos_ratio": 0.5, "diag/pooled_std": 0.1}, 3)
    console.log({"diag/pos_ratio": 1e6, "diag/pooled_std": 0.0, "diag/rankme_pooled": 1.0}, 4)
    different, alike = stream.getvalue().splitlines()
    assert "average scan 0.5 (below 1: knows the eye) | spread of features 0.1" in different
    assert alike == "step  4/10 | reading | all held-out scans have the same features: collapsed, or copies of one scan"


def test_a_log_gets_the_first_lines_all_then_one_in_a_while_and_the_last():
    clock, stream = Clock(), io.StringIO()
    console = ConsoleTracker(1000, stream=stream, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.1
        console.log(ROW, step)
    steps = [int(line.split("/")[0].removeprefix("step")) for line in stream.getvalue().splitlines()]
    assert steps[:FIRST_LINES] == list(range(1, FIRST_LINES + 1))
    assert steps[-1] == 1000
    gaps = [after - before for before, after in zip(steps[FIRST_LINES:-1], steps[FIRST_LINES + 1 : -1], strict=False)]
    assert min(gaps) >= LINE_EVERY_S / 0.1 - 1


def test_validation_and_warnings_always_get_a_line():
    clock, stream = Clock(), io.StringIO()
    console = ConsoleTracker(10, stream=stream, clock=clock)
    for _ in range(FIRST_LINES + 5):
        console.log({"val/loss": 0.25, "val/samples": 8}, 10)
    console.warning("train metrics [have] stopped")
    lines = stream.getvalue().splitlines()
    assert lines[:-1] == ["step 10/10 | val/loss 0.25 | val/samples 8"] * (FIRST_LINES + 5)
    assert lines[-1] == "WARNING train metrics [have] stopped"


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    console = ConsoleTracker(10, stream=stream, start_step=2)
    console.log(ROW, 5)
    console.warning("[slow] disk")
    console.finish({})
    shown = stream.getvalue()
    for text in ("5/10", "loss 0.4322", "grad norm 0.01235", "WARNING [slow] disk"):
        assert text in shown
    assert "\x1b[" in shown  # drawn, not printed line by line


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_goes_away_costs_one_warning_and_no_step(terminal, monkeypatch, caplog):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    reader, writer = os.openpty() if terminal else os.pipe()
    stream = os.fdopen(writer, "w", closefd=False)
    stdout = sys.stdout
    console = ConsoleTracker(10, stream=stream)
    console.log(ROW, 1)
    shown = b""
    while b"1/10" not in shown:  # a terminal gives what it has, which may be the first half
        shown += os.read(reader, 65536)
    os.close(reader)
    for step in range(2, 6):
        console.log(ROW | {"val/loss": 0.5}, step)
    console.warning("disk")
    console.finish({})
    assert sys.stdout is stdout  # the bar had taken it
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # for what the stream still holds
    stream.close()
    [warning] = [record.getMessage() for record in caplog.records]
    assert ("Input/output error" if terminal else "Broken pipe") in warning


def test_lines_come_again_when_the_disk_of_the_log_has_room(tmp_path):
    with open("/dev/full", "w") as full:
        console = ConsoleTracker(10, stream=full)
        console.log(ROW, 1)
        with (tmp_path / "train.log").open("w") as log:
            os.dup2(log.fileno(), full.fileno())
        console.log(ROW, 2)
    assert "step  2/10" in (tmp_path / "train.log").read_text()
