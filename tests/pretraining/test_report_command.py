"""`octfm report` as its users meet it: any run folder, in whatever state, becomes a page; anything else a remedy."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretraining.report.command import main
from tests.pretraining.report_runs import (
    HOSTILE,
    SECRET,
    SUMMARY,
    TOTAL,
    crashed_run,
    probe_row,
    rows,
    write_pictures,
    write_run,
)


def page_of(run: Path, *options: str, code: int = 0) -> str:
    assert main([str(run), *options]) == code
    return (run / "report.html").read_text()


@pytest.fixture
def alive(tmp_path: Path) -> Path:
    return write_run(tmp_path / "alive", rows())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run of few numbers, whose page is quickly made."""
    return write_run(tmp_path / "small", [{"step": step, "time": 1.0, "train/loss": 1.0} for step in (1, 2)])


def test_a_live_run_is_called_learning(alive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(alive, "--strict")
    line, path = capsys.readouterr().out.splitlines()
    assert line.startswith("LEARNING: At steps 500 and 600 ")
    assert path == str(alive / "report.html")
    assert "✓ LEARNING" in page
    assert "Finished: all 600 updates are done." in page


def test_a_dead_run_is_called_collapsed_and_fails_only_a_strict_call(tmp_path: Path) -> None:
    run = write_run(tmp_path / "dead", rows(dead=True))
    page = page_of(run)
    assert "✗ COLLAPSED" in page
    assert page.index("badge alarm") < page.index("What helps")
    assert "Stop, and start anew" in page
    page_of(run, "--strict", code=1)


def test_a_crashed_run_says_where_and_of_what_it_died(tmp_path: Path) -> None:
    page = page_of(crashed_run(tmp_path / "crashed"))
    assert "Failed after 237 updates: exit code 1, an error." in page
    assert "RuntimeError: no memory (rank 0)." in page
    assert "It was restarted 5 times." in page
    assert "Updates behind 3 rows of the record were lost" in page
    assert "Last row of the record: 2026-11-20 18:43:50 UTC." in page
    assert "The record holds 3.1 min of updates." in page  # 230 of 0.8 s


def planned(lines: list[dict[str, Any]], **plan: float) -> list[dict[str, Any]]:
    """The rows, with the plan of the run in every reading."""
    named = {f"diag/{name}": value for name, value in plan.items()}
    return [{**line, **named} if "diag/loss" in line else line for line in lines]


def test_the_plan_in_the_readings_comes_before_all_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page_of(write_run(tmp_path / "a", planned(rows(), total_steps=TOTAL, warmup_steps=550.0)))
    said = capsys.readouterr().out
    assert said.startswith("CANNOT TELL")  # config.yaml says 50
    assert "after the warm-up of 550 steps" in said
    behind = [{**line, "diag/probe/drusen_count": 0.3} if "diag/loss" in line else line for line in rows()]
    page_of(write_run(tmp_path / "b", planned(behind, total_steps=10_000.0, warmup_steps=0.0)))
    assert "It is too early for this to count." in capsys.readouterr().out  # 600 of 10,000
    page_of(write_run(tmp_path / "c", behind))
    assert "too early" not in capsys.readouterr().out  # 600 of 600


def test_what_can_be_read_of_the_scans_has_a_figure(alive: Path) -> None:
    assert 'id="scan-r2"' in page_of(alive)


def test_tables_of_all_data_are_shown_each_at_its_newest_step(small: Path) -> None:
    (small / "probes").mkdir()
    for name, label, data in [
        ("1.json", "oldest", "somewhere"),
        ("1-phantoms.json", "older", "phantoms"),
        ("2-phantoms.json", "newer", "phantoms"),
        ("1-a-123456.json", "other", "/data/a"),
    ]:
        rows = [probe_row("encoder", 0.7, label=label, data=data)]
        (small / "probes" / name).write_text(json.dumps(rows))
    page = page_of(small)
    assert re.findall(r"<h3>(\w+) <span class=\"soft\">· ridge", page) == ["oldest", "other", "newer"]
    assert re.findall(r"<h3 class=\"probed\">On ([^ ]*) <span class=\"soft\">· after update (\d)", page) == [
        ("somewhere", "1"),
        ("/data/a", "1"),
        ("phantoms", "2"),
    ]


def test_an_unfinished_run_is_not_called_dead(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", rows(last_step=300), summary=None))
    assert f"Not finished: the record ends after 300 of {TOTAL} updates." in page


def test_a_summary_of_an_earlier_start_does_not_count(tmp_path: Path) -> None:
    earlier = {**SUMMARY, "outcome": "stopped, saved", "steps": 2}
    lines = [{"step": step, "train/loss": 1.0} for step in (1, 2, 3)]
    assert "Not finished: the record ends after 3 of" in page_of(write_run(tmp_path / "a", lines, earlier))
    assert "Stopped, saved after 2 updates; the same" in page_of(write_run(tmp_path / "b", lines[:2], earlier))


def test_a_run_that_has_just_begun_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("name: young\n")
    page = page_of(tmp_path, "--strict", code=1)
    assert capsys.readouterr().out.startswith("CANNOT TELL: ")
    assert "There are no readings to find anything in." in page
    assert "No pictures are in the run folder" in page


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "a bucket"])
def test_what_is_no_run_is_refused_with_a_remedy(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = {"nothing": str(tmp_path / "no"), "a bucket": "gs://bucket/run", "an empty folder": str(tmp_path)}.get(what)
    if place is None:
        place = str(tmp_path / "file")
        Path(place).touch()
    assert main([place]) == 2
    said = capsys.readouterr().err
    assert "copy the run folder" in said if what == "a bucket" else "octfm train prints" in said
    assert not list(tmp_path.glob("*.html"))


def test_a_place_that_cannot_be_written_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small), "--out", str(small / "run_id" / "page.html")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written ([Errno 17] File exists: " in said
    assert "name another place with --out" in said


def test_a_disk_that_fails_while_reading_is_not_blamed_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / ("x" * 300))]) == 74
    assert "octfm: stopped: [Errno 36] File name too long" in capsys.readouterr().err


def test_equal_folders_give_equal_bytes(alive: Path, tmp_path: Path) -> None:
    write_pictures(alive / "diagnostics", 0)
    first = page_of(alive)
    copy = shutil.copytree(alive, tmp_path / "elsewhere" / "copy")  # with an earlier page in it
    assert first == page_of(copy)


DAMAGE = {
    "metrics.jsonl": b'{"step": 1, "train/loss": "tea"}\n',
    "summary.json": b'{"outcome": ',
    "supervisor.json": b"[]",
    "config.yaml": b"name: [",
    "exits/rank-0000.json": b'{"rank": 0}',
    "probes/600.json": b'[{"label":',
    "probes/last.json": b"[]",
    "diagnostics/pictures-600.npz": b"PK no zip",
    "prepared/index.jsonl": b"",
    "checkpoints/step-00000600-a/manifest.json": b"\xff",
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_a_damaged_file_is_a_line_of_the_page(small: Path, name: str) -> None:
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_bytes(DAMAGE[name])
    assert page_of(small).count("What could not be read") == 1


def test_binary_noise_in_the_record_costs_its_lines_only(alive: Path) -> None:
    whole = (alive / "metrics.jsonl").read_bytes()
    (alive / "metrics.jsonl").write_bytes(b"\0" * 512 + b"\n5\n" + whole + b'{"step": 6')
    page = page_of(alive)
    assert "✓ LEARNING" in page
    assert "What could not be read" not in page  # torn lines are the rule after a kill


def test_no_secret_reaches_the_page(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    key = "hf_" + "a" * 30
    (run / "train.log").open("a").write(f"using {key} to log in, https://me:{SECRET}@host/x\n")
    page = page_of(run)
    assert "api_key: &#39;[redacted]&#39;" in page
    assert "WANDB_API_KEY=[redacted]" in page
    assert SECRET not in page
    assert key not in page


def test_words_of_the_run_stay_words(alive: Path) -> None:
    (alive / "config.yaml").write_text(f"name: {json.dumps(HOSTILE)}\n")
    write_pictures(alive / "diagnostics", 0, vendor=HOSTILE)
    (alive / "probes").mkdir()
    (alive / "probes" / "600.json").write_text(json.dumps([probe_row(HOSTILE, 0.5, label=HOSTILE)]))
    with (alive / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 600, f"diag/domain_loss/{HOSTILE}": 1.0, f"diag/probe/{HOSTILE}": 0.1}) + "\n")
    page = page_of(alive)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_numbers_that_are_none_are_counted(tmp_path: Path) -> None:
    lines = rows(last_step=200)
    lines[-2]["train/loss"] = "nan"  # the row of training at step 200
    page = page_of(write_run(tmp_path / "run", lines, summary=None))
    assert "1 of 20 points not a number" in page


def test_bad_files_come_with_meaning_and_remedy(small: Path) -> None:
    page = page_of(small)
    assert "The file ends in the middle of the image." in page
    assert "of a later version" in page


def test_time_is_split_by_phase(small: Path) -> None:
    page = page_of(small)
    assert "20.0 s · 20.0 %" in page
    assert "reading tea leaves" in page


def test_the_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    lines = [{"step": step, "train/loss": 1.0 + step * 7919 % 101, "diag/lidar": step % 17} for step in range(30_000)]
    run = write_run(tmp_path / "run", lines, summary=None)
    for step in range(0, 30_001, 10_000):
        write_pictures(run / "diagnostics", step, num_volumes=6)
    page = page_of(run)
    assert len(page.encode()) < 2e6
    assert page.count("<img") == 4 * 6  # four volumes: scan, mask, and two readings of features and of prediction


def test_a_multi_modal_run_is_judged_by_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record has none of the readings of an encoder, which would say CANNOT TELL in words of another task."""
    answered = {"accuracy": 0.9, "majority": 0.5, "gain": 0.4, "gain_low": 0.3, "gain_high": 0.5, "questions": 80.0}
    lines = [
        {"step": 0, "time": 1.0, "diag/accuracy/T1": 0.0},
        {"step": 50, "time": 2.0, **{f"diag/{name}/T1": value for name, value in answered.items()}},
    ]
    run = write_run(tmp_path / "run", lines)
    (run / "config.yaml").write_text("task: multimodal\nname: brains\n")
    page = page_of(run, "--strict")
    assert capsys.readouterr().out.startswith("LEARNING: T1: 90.0% of 80 held-out answers are right, 50.0% would be")
    assert "Held-out questions of every kind are answered better" in page
    assert "hidden parts of a scan" not in page
