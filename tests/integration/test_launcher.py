"""run_tpu_xla.sh as its users meet it: exit codes, what a signal does to a run, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oct_foundation.runtime.exits import ExitCode
from tests.integration.conftest import LIGHT_IMPORTS

PROJECT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ, "OCTFM_PYTHON": sys.executable, "PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", **LIGHT_IMPORTS
}  # fmt: skip


def start(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    command = ["bash", "run_tpu_xla.sh", "configs/smoke_test.yaml", "wandb.mode=disabled", *arguments]
    environment = {**ENVIRONMENT, **variables}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def processes_of(folder: Path) -> list[int]:
    """Processes that name `folder` on their command line, or whose parent does (loader workers)."""
    named, parents = set(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
        except OSError:  # ended meanwhile
            continue
        state, parent = status.rpartition(")")[2].split()[:2]
        if state == "Z":
            continue
        parents[int(entry.name)] = int(parent)
        if os.fsencode(folder) in command:
            named.add(int(entry.name))
    return sorted(pid for pid, parent in parents.items() if pid in named or parent in named)


def test_sigterm_saves_ends_every_process_of_the_run_and_is_not_started_again(tmp_path: Path) -> None:
    endless = ("train.max_steps=100000", "train.epochs=100000", "data.loader.num_workers=1")
    quick = ("model.image_size=[16,64,64]", "train.val_every_steps=null", "diagnostics.enabled=false")  # 30 s to save
    run = start("--device", "cpu", f"output_dir={tmp_path}", "checkpoint.every_steps=100000", *endless, *quick)
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert run.poll() is None, "it ended before it trained"
        time.sleep(0.2)
    assert json.loads((tmp_path / "supervisor.json").read_text())["pid"] == run.pid
    assert len(processes_of(tmp_path)) >= 3  # the supervisor, the run, its loader
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == ExitCode.STOPPED
    last_step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    [manifest] = (tmp_path / "checkpoints").glob("step-*/manifest.json")  # no periodic save was due
    assert json.loads(manifest.read_text())["step"] == last_step
    gone = time.monotonic() + 60  # the loader's fork server leaves when its pipe closes
    while processes_of(tmp_path) and time.monotonic() < gone:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []


def test_the_exit_code_of_a_wrong_configuration_is_passed_on(tmp_path: Path) -> None:
    run = start(f"output_dir={tmp_path}", "optim.clip_nrom=1")
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 2
    assert b"clip_norm" in output


@pytest.mark.parametrize("names", [("CLOUD_TPU_TASK_ID",), ("TPU_VISIBLE_CHIPS", "TPU_PROCESS_BOUNDS")])
def test_variables_that_would_change_the_topology_are_refused_by_name(names: tuple[str, ...]) -> None:
    run = start(**dict.fromkeys(names, "0"))
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 2
    known = ("TPU_PROCESS_BOUNDS", "TPU_VISIBLE_CHIPS", "TPU_SKIP_MDS_QUERY", "CLOUD_TPU_TASK_ID")
    assert {name for name in known if name in output.decode()} == set(names)


@pytest.mark.parametrize("options", [("--max-restarts", "-1"), ("--grace=soon",), ("--backoff",)])
def test_the_supervisor_s_options_are_taken_out_of_the_line_and_checked(options: tuple[str, ...]) -> None:
    run = start(*options)
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 2
    assert options[0].split("=")[0] in output.decode()
