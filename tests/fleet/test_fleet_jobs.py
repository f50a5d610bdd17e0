"""`octfm fleet start`, `status`, `logs` and `stop` on real sshd workers, with shell scripts as jobs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sshd_fleet import PROJECT, Fleet, git

# Says what it got; TERM ends it with 75, as a run that has saved.
POLITE = """
trap 'echo "saves"; exit 75' TERM
echo "begins, WORLD_SIZE=$WORLD_SIZE RANK=$RANK"
while true; do sleep 0.1; done
"""
# Neither the job nor its child hears TERM.
DEAF = """
trap '' TERM
bash -c 'trap "" TERM; echo "begins"; while true; do sleep 0.1; done' &
while true; do sleep 0.1; done
"""


def deployed(fleet: Fleet, script: str) -> str:
    """Commits the script as configs/job.sh, deploys, returns its path in the clone."""
    fleet.commit("configs/job.sh", script)
    assert fleet.run("deploy") == 0
    return "configs/job.sh"


def started(fleet: Fleet, *arguments: str, inventory: Path | None = None) -> int:
    """The exit code of `start`; where it is 0, all jobs have said that they begin, so that TERM finds their trap."""
    code = fleet.run("start", *arguments, inventory=inventory)
    if code == 0:
        fleet.wait_for_jobs_to_say("begins")
    return code


def first_pid(fleet: Fleet, worker: int) -> int:
    (record,) = fleet.checkout(worker).glob("runs/.fleet/*/job.json")
    return json.loads(record.read_text())["pid"]


def hear_ctrl_c() -> None:
    """A shell starts what runs in the background deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(true: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_start_refuses_workers_at_different_commits(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    job = deployed(fleet, POLITE)
    git(fleet.checkout(1), "checkout", "--quiet", "--detach", "HEAD~1")
    assert fleet.run("start", job, "--device", "cpu") == 1
    shown = capsys.readouterr().err
    assert "the workers are at different commits: worker 0 " in shown
    assert "not started, on no worker" in shown
    assert fleet.processes() == {}


def test_start_refuses_what_would_train_each_alone(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    job = deployed(fleet, POLITE)
    assert fleet.run("start", job) == 2
    assert "each worker would train alone. Give --device cpu or cuda" in capsys.readouterr().err


def test_a_job_runs_on_all_workers_is_told_followed_and_stopped(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    job = deployed(fleet, POLITE)
    assert started(fleet, job, "--device", "cpu") == 0, capsys.readouterr().err
    assert fleet.run("status") == 0
    assert capsys.readouterr().out.count("running, pid") == 2
    assert fleet.run("logs") == 0
    shown = capsys.readouterr().out
    assert all(f"[worker {worker}] begins, WORLD_SIZE=2 RANK={worker}" in shown for worker in range(2))

    assert fleet.run("start", job, "--device", "cpu") == 1
    assert "worker 1" in (refusal := capsys.readouterr().err)
    assert "runs; octfm fleet stop" in refusal
    fleet.commit("note.txt", "while it runs")
    assert fleet.run("deploy") == 1
    assert capsys.readouterr().err.count("a job runs here") == 2

    assert fleet.run("stop") == 0
    shown = capsys.readouterr().out
    assert shown.count("ended with 75, stopped and saved") == 2
    assert "nothing is left on 2 workers" in shown
    assert fleet.processes() == {}
    assert fleet.run("logs") == 0
    assert capsys.readouterr().out.count("saves") == 2
    assert fleet.run("status") == 0  # stopped and saved is no failure
    assert capsys.readouterr().out.count("ended with 75") == 2


@pytest.mark.slow
def test_logs_follow_until_interrupted(fleet: Fleet) -> None:
    job = deployed(fleet, 'n=0\nwhile true; do echo "line $((n++))"; sleep 0.2; done\n')
    assert fleet.run("start", job, "--device", "cpu") == 0
    command = [sys.executable, "-m", "pretraining.cli", "fleet", "logs", "-f", "-n", "1"]
    command += ["--inventory", str(fleet.folder / "fleet.yaml")]
    seen: dict[int, list[int]] = {worker: [] for worker in range(2)}
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as reader:
        assert reader.stdout is not None
        try:
            for line in reader.stdout:
                assert "] line " in line
                worker, number = line.removeprefix("[worker ").split("] line ")
                seen[int(worker)].append(int(number))
                if min(len(numbers) for numbers in seen.values()) >= 5:
                    break
            reader.send_signal(signal.SIGINT)
            rest = reader.communicate(timeout=20)[0]
            assert reader.returncode == 0, rest
        finally:
            reader.kill()
    for numbers in seen.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a line is missing or came twice"


def test_a_dead_worker_is_named_with_its_last_lines(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    job = deployed(fleet, POLITE)
    assert started(fleet, job, "--device", "cpu") == 0
    os.kill(first_pid(fleet, 1), signal.SIGKILL)
    wait_until(lambda: list(fleet.checkout(1).glob("runs/.fleet/*/exit.json")))
    capsys.readouterr()
    assert fleet.run("status") == 1
    shown = capsys.readouterr()
    assert shown.out.count("running, pid") == 1
    assert "worker 1 (" in shown.err
    assert "killed by signal 9" in shown.err
    assert "begins, WORLD_SIZE=2 RANK=1" in shown.err
    assert "worker 0" not in shown.err


@pytest.mark.slow
def test_start_names_a_worker_whose_job_ends_at_once(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretraining.fleet.start.SETTLE_S", 5.0)
    job = deployed(fleet, 'if [[ $RANK == 1 ]]; then echo "octfm: unknown key"; exit 2; fi\n' + POLITE)
    assert fleet.run("start", job, "--device", "cpu") == 1
    shown = capsys.readouterr().err
    assert "worker 1 (" in shown
    assert "ended with 2, the configuration is wrong" in shown
    assert "octfm: unknown key" in shown
    assert "worker 0" not in shown


@pytest.mark.slow
def test_again_repeats_the_command_in_the_same_run_folder(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    job = deployed(fleet, 'echo "told $1 $2 $3, started $OCTFM_STARTED"\n' + POLITE)
    assert started(fleet, job, "output_dir=runs/mine", "--device", "cpu") == 0
    assert fleet.run("stop") == 0
    assert started(fleet, "--again") == 0
    capsys.readouterr()
    logs = [path.read_text().splitlines()[0] for path in fleet.checkout(0).glob("runs/.fleet/*/output.log")]
    assert len(logs) == 2
    assert len(set(logs)) == 1
    assert logs[0].startswith("told output_dir=runs/mine --device cpu, started 20")


def test_stop_kills_what_ignores_term_and_touches_no_bystander(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    job = deployed(fleet, DEAF)
    assert started(fleet, job, "--device", "cpu") == 0
    # The same command as the job's, without the job's tag; and one with the tag of another job.
    same = ["bash", "-c", 'trap "" TERM; while true; do sleep 0.1; done']
    bystanders = [subprocess.Popen(same), subprocess.Popen(same, env={**os.environ, "OCTFM_JOB": "another/0"})]
    try:
        assert [len(pids) >= 2 for pids in fleet.processes().values()] == [True, True]
        assert fleet.run("stop", "--grace", "1") == 0, capsys.readouterr().err
        shown = capsys.readouterr().out
        assert shown.count("killed by signal 9") == 2
        assert shown.count("    killed: pid") >= 2 * 2
        assert fleet.processes() == {}
        assert [bystander.poll() for bystander in bystanders] == [None, None]
    finally:
        for bystander in bystanders:
            bystander.kill()
            bystander.wait()


def test_stop_names_what_still_holds_a_port(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        path = fleet.folder / "fleet.yaml"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("rendezvous_port")]
        path.write_text("\n".join([*lines, f"rendezvous_port: {port}"]))
        assert fleet.run("stop") == 1
    assert f"port {port} is held by pid {os.getpid()} (" in capsys.readouterr().err


def test_a_passed_variable_reaches_the_job_and_no_command_line_or_file(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "opensesame-4711")
    job = deployed(fleet, 'echo "length ${#WANDB_API_KEY}, plain $PLAIN"\nps -eo args >all_commands.log\n' + POLITE)
    (fleet.clone / ".gitignore").write_text("runs/\n*.log\n")
    inventory = fleet.inventory("env: {PLAIN: visible}", "pass_env: [WANDB_API_KEY]")
    assert started(fleet, job, "--device", "cpu", inventory=inventory) == 0
    assert fleet.run("logs") == 0
    assert capsys.readouterr().out.count("length 15, plain visible") == 2
    for path in [*fleet.checkout(0).rglob("runs/.fleet/**/*"), fleet.checkout(0) / "all_commands.log"]:
        if path.is_file():
            assert b"opensesame" not in path.read_bytes(), path


def test_pass_env_that_is_not_set_here_is_an_error_of_the_call(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert fleet.run("start", "configs/job.sh", inventory=fleet.inventory("pass_env: [WANDB_API_KEY]")) == 2
    assert "WANDB_API_KEY, which is not set here" in capsys.readouterr().err


def test_a_metric_is_found_on_whichever_worker_has_rank_0(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 0 of a TPU pod may live on any worker; here worker 1 plays it."""
    row = '{"step": 41, "time": \'$(date +%s)\', "train/loss": 0.4321}'
    script = f"mkdir -p runs/mine\nif [[ $RANK == 1 ]]; then echo '{row}' >runs/mine/metrics.jsonl; fi\n"
    record = {
        "rank": 1,
        "code": 71,
        "reason": "no progress for 300 s",
        "step": 41,
        "cause": True,
        "time": time.time() + 2000,
    }
    other = {**record, "rank": 0, "code": 1, "reason": "rank 1 left", "cause": False, "time": time.time() + 1000}
    script += "mkdir -p runs/mine/exits\n"
    for left in (record, other):
        path = f"runs/mine/exits/rank-{left['rank']:04d}.json"
        script += f"if [[ $RANK == {left['rank']} ]]; then echo '{json.dumps(left)}' >{path}; fi\n"
    job = deployed(fleet, script + POLITE)
    assert started(fleet, job, "output_dir=runs/mine", "--device", "cpu") == 0
    capsys.readouterr()
    assert fleet.run("status") == 0
    shown = capsys.readouterr()
    assert next(line for line in shown.out.splitlines() if "0.4321" in line and " 41 " in line).startswith("1 ")
    first, second = [line for line in shown.err.splitlines() if line.startswith("rank ")]
    assert "rank 1 on worker 1 (" in first
    assert "no progress for 300 s" in first
    assert "rank 0 on worker 0 (" in second
