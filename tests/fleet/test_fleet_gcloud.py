"""The gcloud transport against an executable that records and runs its command lines. Real gcloud was not run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sshd_fleet import Fleet, Hosts, free_port, git

NUM_WORKERS = 3
JOB = "trap 'exit 75' TERM\necho \"in $PWD, key of ${#WANDB_API_KEY}\"\nwhile true; do sleep 0.1; done\n"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A TPU VM of three workers, each a home folder, behind a `gcloud` that comes first in PATH."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    source = (Path(__file__).parent / "fake_gcloud.py").read_text()
    program.write_text(f"#!{sys.executable}\n{source}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(tmp_path))
    monkeypatch.setattr("pretraining.fleet.start.SETTLE_S", 0.5)
    assert shutil.which("gcloud") == str(program), "the real gcloud would be called"
    pod = Fleet(tmp_path, Hosts(tmp_path, []), NUM_WORKERS)
    for worker in range(NUM_WORKERS):
        (tmp_path / f"worker-{worker}").mkdir()
    git(tmp_path, "init", "--quiet", "--bare", str(pod.origin))
    git(tmp_path, "clone", "--quiet", str(pod.origin), str(pod.clone))
    git(pod.clone, "checkout", "--quiet", "-B", "main")
    (pod.clone / ".gitignore").write_text("runs/\n")
    pod.commit("run_tpu_xla.sh", 'exec bash "$@"\n', push=False)
    pod.commit("configs/job.sh", JOB)
    (tmp_path / "fleet.yaml").write_text(
        f"transport: gcloud\ngcloud: {{name: my-pod, zone: us-central2-b, project: lab, num_workers: {NUM_WORKERS}}}\n"
        f"repository: {pod.origin}\nrendezvous_port: {free_port()}\nmaster_address: 127.0.0.1\n"
        f"python: {sys.executable}\nmin_free_disk_gb: 0.001\npass_env: [WANDB_API_KEY]\n"
    )
    return pod


def calls(pod: Fleet) -> list[list[str]]:
    return [json.loads(line) for line in (pod.folder / "calls.jsonl").read_text().splitlines()]


def test_a_job_goes_through_gcloud_from_check_to_stop(
    pod: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "opensesame-4711")
    assert pod.run("check") == 0, capsys.readouterr().err
    assert pod.run("deploy") == 0, capsys.readouterr().err
    assert git(pod.checkout(1), "rev-parse", "HEAD") == git(pod.clone, "rev-parse", "HEAD")
    try:
        assert pod.run("start", "configs/job.sh", "--device", "cpu") == 0, capsys.readouterr().err
        pod.wait_for_jobs_to_say("key of")
        assert pod.run("status") == 0, capsys.readouterr().err
        assert capsys.readouterr().out.count("running, pid") == NUM_WORKERS
        assert len(pod.processes()) == NUM_WORKERS
        assert pod.run("logs") == 0
        shown = capsys.readouterr().out
        for worker in range(NUM_WORKERS):
            assert f"[worker {worker}] in {pod.checkout(worker)}, key of 15" in shown
    finally:
        stopped = pod.run("stop")
    shown = capsys.readouterr()
    assert stopped == 0, shown.err
    assert shown.out.count("ended with 75, stopped and saved") == NUM_WORKERS
    assert pod.processes() == {}

    assert {tuple(call[:6]) for call in calls(pod)} == {
        ("compute", "tpus", "tpu-vm", "ssh", "my-pod", "--zone=us-central2-b")
    }
    assert {call[-2] for call in calls(pod)} == {f"--worker={worker}" for worker in range(NUM_WORKERS)}
    assert all("--project=lab" in call for call in calls(pod))
    assert "opensesame" not in (pod.folder / "calls.jsonl").read_text()


def test_a_worker_that_gcloud_cannot_reach_is_named(pod: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    (pod.folder / "unreachable").write_text("worker-1\n")
    assert pod.run("check") == 1
    shown = capsys.readouterr().err
    assert "worker 1 (my-pod worker 1): not reached, or no answer (exit code 255)" in shown
    assert "Connection timed out" in shown
    assert "worker 2 (" not in shown


def test_a_command_that_gcloud_repeats_does_nothing_the_second_time(pod: Fleet) -> None:
    """After a broken connection gcloud runs the command again; its stdin has been read by then."""
    assert pod.run("check") == 0
    (call,) = [call for call in calls(pod) if "--worker=0" in call]
    again = subprocess.run(["gcloud", *call], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert again.stdout == ""


def test_the_executable_knows_all_workers_at_once(pod: Fleet) -> None:
    command = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-pod", "--zone=z", "--worker=all", "--command=pwd"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == [str(pod.folder / f"worker-{worker}") for worker in range(NUM_WORKERS)]
