"""The JSONL record, its split at a resume, redaction, and many trackers as one."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oct_foundation.tracking import jsonl
from oct_foundation.tracking.jsonl import JsonlTracker, json_number, read_rows
from oct_foundation.tracking.redact import REDACTED, redact
from oct_foundation.tracking.tracker import FanOut

PROJECT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def written(path: Path, *steps: int, attempt: str = "a", resumed_step: int = 0) -> None:
    tracker = JsonlTracker(path, attempt=attempt, resumed_step=resumed_step)
    for step in steps:
        tracker.log({"train/loss": step / 10}, step)
    tracker.finish({})


def test_each_call_is_one_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path, attempt="a")
    tracker.log({"train/loss": 0.5, "train/grad_norm": 2}, 1)
    [row] = rows(path)  # before finish: it was flushed
    assert row.pop("time") > 1_700_000_000
    assert row == {"step": 1, "train/loss": 0.5, "train/grad_norm": 2}


def test_validation_ahead_of_training_loses_no_train_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, attempt="a")
    tracker.log({"val/loss": 0.1}, 100)
    tracker.log({"train/loss": 0.2}, 98)
    assert [row["step"] for row in rows(path)] == [100, 98]


@given(st.floats() | st.integers(-(2**53), 2**53))
def test_every_number_is_valid_json_that_float_reads_back(value):
    text = json.dumps(json_number(value), allow_nan=False)
    assert float(json.loads(text)) == value or value != value


@pytest.mark.parametrize("metrics", [{"step": 1.0}, {"time": 1.0}])
def test_names_of_own_fields_are_refused(tmp_path, metrics):
    with pytest.raises(ValueError, match="is a field of every line"):
        JsonlTracker(tmp_path / "m.jsonl", attempt="a").log(metrics, 1)


def test_what_is_no_number_is_refused(tmp_path):
    tracker = JsonlTracker(tmp_path / "m.jsonl", attempt="a")
    with pytest.raises(TypeError, match="list"):
        tracker.log({"x": [1]}, 1)  # type: ignore[dict-item]
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_lines_past_the_resumed_step_move_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2, 3, 4, 5)
    written(path, 4, 5, 6, attempt="b", resumed_step=3)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(tmp_path / "metrics.b.jsonl")] == [4, 5]
    written(path, attempt="c", resumed_step=6)
    assert not (tmp_path / "metrics.c.jsonl").exists()  # nothing to move, nothing made
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_start_in_a_used_folder_moves_everything(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2)
    written(path, 1, attempt="b")
    assert [row["step"] for row in rows(path)] == [1]
    assert [row["step"] for row in rows(tmp_path / "metrics.b.jsonl")] == [1, 2]


def test_a_line_cut_by_a_kill_moves_aside_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, 1, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "train/lo')
    written(path, 3, attempt="b", resumed_step=2)
    assert [row["step"] for row in rows(path)] == [1, 2, 3]
    assert (tmp_path / "metrics.b.jsonl").read_text() == '{"step": 3, "train/lo\n'


def test_a_last_line_that_lacks_only_its_end_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 2.0}')
    written(path, 2, attempt="b", resumed_step=1)
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_a_line_is_on_file_when_the_process_is_killed_right_after_the_call(tmp_path):
    path = tmp_path / "m.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from oct_foundation.tracking.jsonl import JsonlTracker
tracker = JsonlTracker(Path({str(path)!r}), attempt="a")
tracker.log({{"train/loss": 0.5}}, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PROJECT)}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [row["train/loss"] for row in rows(path)] == [0.5]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that takes a part of a line and refuses the rest, as a full one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_the_disk_refuses_wait_and_come_in_order_when_it_has_room(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    tracker = JsonlTracker(path, attempt="a")
    tracker.log({"train/loss": 1.0}, 1)
    whole = path.read_bytes()
    for first in (2, 5):
        with largest_file(path.stat().st_size + 20):
            for step in range(first, first + 3):
                tracker.log({"train/loss": float(step)}, step)
            refused = path.read_bytes()
        assert refused == whole  # no half line either
        tracker.log({"train/loss": 0.0}, 100 * first)
        whole = path.read_bytes()
    tracker.finish({})
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 200, 5, 6, 7, 500]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2  # one an outage
    assert all("File too large" in text for text in warnings)


def test_the_end_of_a_run_brings_the_rows_that_wait_to_the_file(tmp_path):
    tracker = JsonlTracker(tmp_path / "m.jsonl", attempt="a")
    with largest_file(20):
        tracker.log({"train/loss": 1.0}, 1)
    tracker.finish({})
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == [1]


def test_a_disk_that_stays_full_costs_rows_and_a_warning_but_not_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(jsonl, "HELD_ROWS", 4)
    tracker = JsonlTracker(tmp_path / "m.jsonl", attempt="a")
    with largest_file(20):
        for step in range(1, 8):
            tracker.log({"train/loss": 1.0}, step)
        tracker.finish({})
    assert "lacks 7 rows" in caplog.text
    assert (tmp_path / "m.jsonl").read_bytes() == b""


def test_of_more_rows_than_memory_holds_the_newest_stay_and_the_others_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(jsonl, "HELD_ROWS", 4)
    tracker = JsonlTracker(tmp_path / "m.jsonl", attempt="a")
    with largest_file(20):
        for step in range(1, 8):
            tracker.log({"train/loss": 1.0}, step)
    tracker.finish({})
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == [4, 5, 6, 7]
    assert "lacks 3 rows" in caplog.text


def test_a_record_reads_back_as_the_numbers_that_were_logged(tmp_path):
    path = tmp_path / "m.jsonl"
    tracker = JsonlTracker(path, attempt="a")
    tracker.log({"train/loss": 0.1, "train/grad_norm": float("-inf"), "count": 3}, 7)
    tracker.finish({})
    with path.open("a") as file:
        file.write('{"step": 8, "train/lo')
    assert list(read_rows(path)) == [{"step": 7, "train/loss": 0.1, "train/grad_norm": float("-inf"), "count": 3}]
    assert list(read_rows(tmp_path / "none.jsonl")) == []


class Recorder:
    """A tracker in memory that can be told to fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple] = []
        self.error = error

    def log(self, metrics, step):
        self.calls.append((dict(metrics), step))
        if self.error:
            raise self.error

    def table(self, name, rows, step):
        self.calls.append((name, list(rows), step))
        if self.error:
            raise self.error

    def finish(self, summary):
        self.calls.append(("finish", dict(summary)))
        if self.error:
            raise self.error


def test_all_trackers_get_every_call_in_their_order():
    trackers = [Recorder(), Recorder()]
    trackers[0].calls = trackers[1].calls = calls = []
    both = FanOut(trackers)
    both.log({"a": 1.0}, 3)
    both.table("answers", [{"said": "left"}], 3)
    both.finish({"ok": True})
    assert calls == [({"a": 1.0}, 3)] * 2 + [("answers", [{"said": "left"}], 3)] * 2 + [("finish", {"ok": True})] * 2


def test_the_record_comes_before_the_guests():
    order: list[str] = []

    class Named(Recorder):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def log(self, metrics, step):
            order.append(self.name)

    FanOut([Named("record"), Named("guest")]).log({"a": 1.0}, 1)
    assert order == ["record", "guest"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_fails_keeps_none_of_the_others_from_its_call_and_is_heard(place):
    trackers = [Recorder(OSError("disk") if i == place else None) for i in range(3)]
    for call in (lambda: FanOut(trackers).log({"a": 1.0}, 3), lambda: FanOut(trackers).finish({})):
        with pytest.raises(OSError, match="disk"):
            call()
    assert all(len(tracker.calls) == 2 for tracker in trackers)


def test_secrets_are_redacted_at_any_depth_and_nothing_else():
    config = {
        "api_key": "S1",
        "tracking": {"WANDB_TOKEN": "S2", "project": "oct", "user_password": 1234},
        "list": [{"clientSecret": {"inner": "S3"}}, "plain"],
        "pair": ({"token": "S4"},),
        "key": None,
        "use_token": True,
        "lr": 1e-4,
    }
    clean = redact(config)
    assert clean == {
        "api_key": REDACTED,
        "tracking": {"WANDB_TOKEN": REDACTED, "project": "oct", "user_password": REDACTED},
        "list": [{"clientSecret": REDACTED}, "plain"],
        "pair": [{"token": REDACTED}],
        "key": None,
        "use_token": True,
        "lr": 1e-4,
    }
    assert config["api_key"] == "S1"  # the run's own copy is untouched
