"""Weights & Biases, really written (offline) and really failing: the run notices nothing but a warning."""

import json
import logging
import math
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from oct_foundation.tracking import wandb as tracking_wandb
from oct_foundation.tracking.jsonl import JsonlTracker
from oct_foundation.tracking.wandb import WandbRun, WandbTracker, start_wandb
from oct_foundation.tracking.wandb_files import newest_row, records, rows_of, run_files
from oct_foundation.tracking.wandb_settings import WandbSettings, resolve_mode

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def _no_key_of_this_machine(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def run_file(folder: Path) -> Path:
    [path] = run_files(folder)
    return path


def history(folder: Path) -> list[dict]:
    return rows_of(run_file(folder))


def tracker(folder: Path, goes_on: bool = False, resumed_step: int = 0, **changes) -> WandbTracker:
    settings = WandbSettings(**{"mode": "offline", **changes})
    config = {"lr": 0.1, "api_key": "VERY-HIDDEN"}
    run = WandbRun(
        folder=folder, run_id="run-1", config=config, goes_on=goes_on,
        record=folder / "metrics.jsonl", resumed_step=resumed_step,
    )  # fmt: skip
    made = start_wandb(settings, run)
    assert made is not None
    return made


def test_offline_rows_config_and_summary_are_on_disk_without_the_secrets(tmp_path):
    made = tracker(tmp_path, tags=("a",), run_name="named")
    made.log({"val/loss": 0.25}, 100)
    made.log({"train/loss": 0.5, "train/grad_norm": float("nan")}, 98)
    for step in range(200):
        made.log({"train/loss": float(step)}, step)
    made.finish({"steps": 200, "token": "VERY-HIDDEN"})
    rows = history(tmp_path)
    assert rows[0] == {"val/loss": 0.25, "step": 100}
    assert (rows[1]["step"], rows[1]["train/loss"]) == (98, 0.5)  # behind the largest step, and still there
    assert [row["train/loss"] for row in rows[2:]] == [float(step) for step in range(200)]
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"VERY-HIDDEN" not in content
    assert b"[redacted]" in content
    runs = [record.run for record in records(run_file(tmp_path)) if record.WhichOneof("record_type") == "run"]
    assert (runs[0].run_id, runs[0].display_name, runs[0].project, list(runs[0].tags)) == (
        "run-1",
        "named",
        "octfm",
        ["a"],
    )


def test_every_curve_is_drawn_over_our_own_step(tmp_path):
    made = tracker(tmp_path)
    made.log({"train/loss": 1.0}, 7)
    made.finish({})
    metrics = [record.metric for record in records(run_file(tmp_path)) if record.WhichOneof("record_type") == "metric"]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in metrics)


def test_a_table_reaches_the_run_between_its_numbers(tmp_path):
    made = tracker(tmp_path)
    made.log({"train/loss": 1.0}, 7)
    made.table("generations", [{"modality": "T1", "generated_text": "left"}], 7)
    made.table("nothing", [], 7)
    made.log({"train/loss": 0.5}, 8)
    made.finish({})
    rows = history(tmp_path)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1.0, 0.5]
    [shown] = [row for row in rows if "generations._type" in row]
    assert (shown["generations.ncols"], shown["generations.nrows"], shown["step"]) == (2, 1, 7)
    [file] = tmp_path.rglob("generations*.table.json")
    assert json.loads(file.read_text())["data"] == [["T1", "left"]]
    assert not any(name.startswith("nothing") for row in rows for name in row)


def test_steps_that_are_trained_again_are_not_sent_again(tmp_path):
    first = tracker(tmp_path, goes_on=True)
    for step in range(1, 6):
        first.log({"train/loss": float(step)}, step)
    first.log({"val/loss": 5.5}, 5)
    first.finish({})
    again = tracker(tmp_path, goes_on=True)  # from the checkpoint of step 2
    for step in range(3, 8):
        again.log({"train/loss": float(step)}, step)
        if step == 5:
            again.log({"val/loss": 5.5}, 5)
    again.finish({})
    rows = [rows_of(path) for path in run_files(tmp_path)]
    assert [[row["step"] for row in one] for one in rows] == [[1, 2, 3, 4, 5, 5], [6, 7]]


def test_what_a_kill_has_cut_off_is_not_counted_as_sent(tmp_path):
    whole = tracker(tmp_path)
    for step in range(1, 400):  # beyond one block of 32 KiB
        whole.log({"train/loss": step / 7, "train/grad_norm": step / 3}, step)
    whole.finish({})
    path = run_file(tmp_path)
    content = path.read_bytes()
    assert newest_row(tmp_path, "run-1") == (399, {"step", "train/loss", "train/grad_norm"})
    steps = []
    for size in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:size])
        steps.append(newest_row(tmp_path, "run-1")[0])
    assert steps == sorted(steps)
    assert 0 < steps[25] < 399
    assert newest_row(tmp_path, "another-run") == (0, frozenset())


def test_rows_that_a_kill_has_kept_from_wandb_come_from_the_record(tmp_path):
    first, record = tracker(tmp_path, goes_on=True), JsonlTracker(tmp_path / "metrics.jsonl", attempt="a")
    logged = []
    for step in range(1, 401):
        logged.append({"train/loss": step / 7 if step % 50 else math.nan, "step": step})
        if step % 10 == 0:
            logged.append({"val/loss": step / 3, "step": step})
    for row in logged:
        metrics = {name: value for name, value in row.items() if name != "step"}
        first.log(metrics, int(row["step"]))
        record.log(metrics, int(row["step"]))
    first.finish({})
    record.finish({})
    cut_after(tmp_path, step=200, but_not="val/loss")
    again = tracker(tmp_path, goes_on=True, resumed_step=380)
    again.log({"train/loss": 381 / 7}, 381)
    again.finish({})
    attempts = [rows_of(path) for path in run_files(tmp_path)]
    assert attempts[0][-1].keys() == {"train/loss", "step"}
    assert attempts[1][0] == {"val/loss": 200 / 3, "step": 200}
    expected = [row for row in logged if row["step"] <= 380 or row == {"train/loss": 381 / 7, "step": 381}]
    assert as_text(attempts[0] + attempts[1]) == as_text(expected)


def as_text(rows: list[dict]) -> list[str]:
    """In which 1 is 1.0, and nan is nan."""
    return [str({name: float(row[name]) for name in sorted(row)}) for row in rows]


def cut_after(folder: Path, *, step: int, but_not: str) -> None:
    """Cuts the file as a kill does: the row of `step` is whole, the one at it that holds `but_not` is torn."""
    path = run_file(folder)
    content = path.read_bytes()
    low, high = 0, len(content)  # the shortest file that holds the row that must not be there
    while high - low > 1:
        middle = (low + high) // 2
        path.write_bytes(content[:middle])
        newest, names = newest_row(folder, "run-1")
        low, high = (low, middle) if newest > step or (newest == step and but_not in names) else (middle, high)
    path.write_bytes(content[:low])
    assert newest_row(folder, "run-1")[0] == step


def test_what_an_online_attempt_left_here_is_not_sent_again(tmp_path):
    first, record = tracker(tmp_path), JsonlTracker(tmp_path / "metrics.jsonl", attempt="a")
    for step in range(1, 4):
        first.log({"train/loss": 1.0}, step)
        record.log({"train/loss": 1.0}, step)
    first.finish({})
    record.finish({})
    run_file(tmp_path).parent.rename(tmp_path / "wandb" / "run-20260101_000000-run-1")  # where wandb keeps those
    again = tracker(tmp_path, goes_on=True, resumed_step=2)
    for step in range(3, 6):
        again.log({"train/loss": 1.0}, step)
    again.finish({})
    assert [row["step"] for row in history(tmp_path)] == [3, 4, 5]  # step 3 is the newest one: once more than needed


def test_a_run_started_anew_in_the_same_folder_sends_all_of_it(tmp_path):
    for goes_on in (True, False):
        run = tracker(tmp_path, goes_on=goes_on)
        run.log({"train/loss": 1.0}, 1)
        run.finish({})
    assert [len(rows_of(path)) for path in run_files(tmp_path)] == [1, 1]


def test_online_without_network_goes_offline_with_one_warning_and_all_rows(tmp_path, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]  # free, and nobody listens on it any more
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with caplog.at_level(logging.WARNING, logger=tracking_wandb.__name__):
        made = tracker(tmp_path, mode="auto", init_timeout_s=2.0)
        begin = time.monotonic()
        made.log({"train/loss": 0.5}, 1)
        assert time.monotonic() - begin < 1.9  # training does not wait for the start of W&B
        made.finish({})
    warnings = [record for record in caplog.records if record.name == tracking_wandb.__name__]
    assert len(warnings) == 1, caplog.text
    assert "not online" in warnings[0].getMessage()
    assert history(tmp_path) == [{"train/loss": 0.5, "step": 1}]


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    with caplog.at_level(logging.WARNING, logger=tracking_wandb.__name__):
        made = tracker(tmp_path / "taken")
        for step in range(5):
            made.log({"train/loss": 0.5}, step)
        made.finish({})
        made.log({"train/loss": 0.5}, 6)
    assert caplog.text.count("W&B failed, the run goes on") == 1


def test_a_wandb_that_hangs_stops_neither_the_rows_nor_the_end_of_the_run(tmp_path, monkeypatch, caplog):
    release = threading.Event()
    monkeypatch.setattr(tracking_wandb, "QUEUE_ROWS", 10)
    monkeypatch.setattr(tracking_wandb, "JOIN_SLACK_S", 0.1)
    monkeypatch.setattr("wandb.init", lambda **_: release.wait())
    with caplog.at_level(logging.WARNING, logger=tracking_wandb.__name__):
        made = tracker(tmp_path, init_timeout_s=0.1, finish_timeout_s=0.1)
        begin = time.monotonic()
        for step in range(1000):
            made.log({"train/loss": 0.5}, step)
        made.finish({})
        assert time.monotonic() - begin < 60
    release.set()
    assert "10 rows behind" in caplog.text
    assert "did not finish in time" in caplog.text
    assert "missed 990 rows" in caplog.text


def test_disabled_is_nothing_at_all(tmp_path):
    assert start_wandb(WandbSettings(mode="disabled"), WandbRun(folder=tmp_path / "w", run_id="r", config={})) is None
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "/x"}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("auto", {"WANDB_MODE": "nonsense"}, "offline"),
        ("online", {}, "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("disabled", {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_the_mode_follows_settings_then_environment_then_key(mode, environ, expected, tmp_path):
    environ = {"NETRC": str(tmp_path / "netrc"), **environ}
    assert resolve_mode(WandbSettings(mode=mode), environ) == expected


@pytest.mark.parametrize(
    ("host", "base_url", "expected"),
    [
        ("api.wandb.ai", None, "online"),
        ("example.org", None, "offline"),
        ("wandb.example.org", "https://wandb.example.org", "online"),
        ("api.wandb.ai", "https://wandb.example.org", "offline"),
    ],
)
def test_a_key_in_netrc_counts_for_its_host(host, base_url, expected, tmp_path):
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    environ = {"NETRC": str(tmp_path / "netrc")} | ({"WANDB_BASE_URL": base_url} if base_url else {})
    assert resolve_mode(WandbSettings(), environ) == expected


def test_an_unreadable_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine ( nonsense")
    assert resolve_mode(WandbSettings(), {"NETRC": str(tmp_path / "netrc")}) == "offline"


def test_importing_the_package_does_not_import_wandb():
    import subprocess

    code = "import sys, oct_foundation.tracking; sys.exit('wandb' in sys.modules)"
    project = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(project)}, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "on"}, "wandb.mode is 'on'"),
        ({"project": "a/b"}, "wandb.project is 'a/b'"),
        ({"project": ""}, "wandb.project is ''"),
        ({"init_timeout_s": 0}, "wandb.init_timeout_s is 0"),
        ({"finish_timeout_s": float("nan")}, "wandb.finish_timeout_s is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        WandbSettings(**changes)


def test_a_run_id_that_wandb_would_refuse_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="run id 'a/b'"):
        WandbRun(folder=tmp_path, run_id="a/b", config={})
