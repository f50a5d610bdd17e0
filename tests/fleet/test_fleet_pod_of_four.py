"""A pod of four played by sshd: this repository deployed, a gloo job across the workers, a death, a restart, an end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sshd_fleet import PROJECT, Fleet, Hosts, git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVERY_STEPS = 3
VICTIM = 2


@pytest.fixture
def pod(tmp_path: Path, hosts: Hosts) -> Fleet:
    """The commit of this working tree in a bare repository, an operator's clone, workers without clones."""
    pod = Fleet(tmp_path, hosts)
    subprocess.run(["git", "clone", "--quiet", "--bare", str(PROJECT), str(pod.origin)], check=True)
    git(tmp_path, "clone", "--quiet", str(pod.origin), str(pod.clone))
    pod.inventory(f"python: {sys.executable}", "env: {OMP_NUM_THREADS: '1', PJRT_DEVICE: CPU}")
    return pod


def wait_until(true: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


def steps(pod: Fleet) -> list[int]:
    """Logged by global rank 0, which is worker 0 where there is no TPU."""
    path = pod.checkout(0) / "runs" / "pod" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def training_process(pod: Fleet, worker: int) -> int:
    """The rank itself, not its supervisor."""
    (own,) = [pids for tag, pids in pod.processes().items() if tag.endswith(f"/{worker}")]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in own}
    return next(pid for pid, command in commands.items() if command[1:3] == [b"-m", b"pretraining.train"])


def test_a_pod_from_deploy_to_stop(pod: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    sha = git(pod.clone, "rev-parse", "HEAD")
    assert pod.run("deploy") == 0, capsys.readouterr().err
    assert f"all 4 workers are at {sha}, clean" in capsys.readouterr().out

    command = ["configs/smoke_test.yaml", "wandb.mode=disabled", "output_dir=runs/pod", "batch.global_batch_size=4"]
    command += ["train.max_steps=100000", "train.epochs=100000", "train.val_every_steps=100000"]
    command += [f"checkpoint.every_steps={EVERY_STEPS}", f"checkpoint.ckpt_dir={pod.folder}/checkpoints"]
    command += [f"data.cache_dir={pod.folder}/prepared", "data.loader.num_workers=0", "train.precision=fp32"]
    try:
        assert pod.run("start", *command, "--device", "cpu", "--max-restarts", "0") == 0, capsys.readouterr().err
        wait_until(lambda: max(steps(pod), default=0) > 2 * EVERY_STEPS, "two checkpoints")
        _status_and_logs_show_all_four(pod, capsys)
        _a_killed_worker_is_named_and_ends_the_job(pod, capsys)
        _a_restart_resumes(pod, capsys)
    finally:
        stopped = pod.run("stop", "--grace", "90")
    shown = capsys.readouterr()
    assert stopped == 0, shown.err
    assert shown.out.count("ended with 75, stopped and saved") == 4, shown.out
    assert "nothing is left on 4 workers" in shown.out
    assert pod.processes() == {}
    summary = json.loads((pod.checkout(0) / "runs" / "pod" / "summary.json").read_text())
    assert summary["git_sha"] == sha, "the code that ran is not the clone's"
    assert summary["world_size"] == 4


def _status_and_logs_show_all_four(pod: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert pod.run("status") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert shown.count("running, pid") == 4
    row = next(line for line in shown.splitlines() if line.startswith("0 "))
    assert int(row.split()[8]) >= 1, "worker 0 shows no step"
    assert pod.run("logs", "-n", "50") == 0
    shown = capsys.readouterr().out
    assert all(f"[worker {worker}]" in shown for worker in range(4))
    assert "4 ranks" in shown


def _a_killed_worker_is_named_and_ends_the_job(pod: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    os.kill(training_process(pod, VICTIM), signal.SIGKILL)
    wait_until(lambda: pod.processes() == {}, "the end of the job on all workers", 120)
    assert pod.run("status") == 1
    shown = capsys.readouterr()
    assert "running" not in shown.out
    assert f"worker {VICTIM} (127.0.0.1:{pod.hosts.ports[VICTIM]})" in shown.err
    blamed = shown.err.partition(f"worker {VICTIM} (")[2].partition("\nworker ")[0]
    assert re.search(r"killed by (SIGKILL|signal 9)", blamed), shown.err
    assert f"worker {VICTIM} (127.0.0.1:{pod.hosts.ports[VICTIM]}) wrote down no reason, others did" in shown.err


def _a_restart_resumes(pod: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    reached = max(steps(pod))
    assert pod.run("start", "--again") == 0, capsys.readouterr().err
    wait_until(lambda: max(steps(pod)) > reached, f"a step behind {reached}")
    capsys.readouterr()
    assert pod.run("logs", "-n", "50") == 0
    assert "resumed from step" in capsys.readouterr().out
    found = steps(pod)
    assert found == sorted(set(found)), "a step is there twice"
