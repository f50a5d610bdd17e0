"""The supervisor over small real jobs: when it starts again, when it gives up, and whom its signals reach."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretraining.process_group import LEFTOVER_WAIT_S
from pretraining.supervise import MAX_BACKOFF_S, JobEnd, Patience, logged_steps

PROJECT = Path(__file__).resolve().parents[2]

# What a job has at hand: a run folder that it announces, a count of its starts, metrics and the records of its ranks.
PRELUDE = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
starts = folder / "starts"

def announce():
    status = pathlib.Path(os.environ["OCTFM_STATUS"])
    status.with_suffix(".tmp").write_text(json.dumps({"folder": str(folder)}))
    status.with_suffix(".tmp").rename(status)

def note_step(step, rank):
    (folder / "exits").mkdir(exist_ok=True)
    (folder / f"exits/step-{rank:04d}").write_text(str(step))

def log_step(step):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": 0.0}) + "\\n")

def record(code, step=None, rank=0, cause=True, reason="out of luck"):
    (folder / "exits").mkdir(exist_ok=True)
    (folder / f"exits/rank-{rank:04d}.json").write_text(json.dumps(dict(
        rank=rank, code=code, reason=reason, step=step, cause=cause, host="host-a", pid=1, time=time.time())))

def ready():
    (folder / "ready").touch()
    time.sleep(60)

with starts.open("a") as file:
    file.write(f"{time.monotonic()} {os.getpid()} {os.getpgid(0)} {os.environ['OCTFM_STARTED']}\\n")
start = len(starts.read_text().splitlines())
"""

Start = Callable[..., subprocess.Popen[str]]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("OCTFM_STARTED", "OCTFM_STATUS")}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(body, *options)` supervises a job; what a failed test leaves behind is ended by pid."""
    running: list[subprocess.Popen[str]] = []

    def begin(body: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pretraining.supervise", *options, "--"]
        command += [sys.executable, "-c", PRELUDE + body, str(tmp_path)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
    for _, job, group, _ in (line.split() for line in starts(tmp_path)):
        if job == group and living_in(int(group)):
            os.killpg(int(group), signal.SIGKILL)


def supervise(start: Start, body: str, *options: str) -> tuple[int, str]:
    """Exit code and output of a supervision with short pauses."""
    process = start(body, "--backoff", "0.01", *options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def starts(folder: Path) -> list[str]:
    path = folder / "starts"
    return path.read_text().splitlines() if path.exists() else []


def living_in(group: int) -> list[str]:
    """Command lines of a group's living processes, by ps: an oracle that is not ours."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row[-1] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# Exit codes


@pytest.mark.parametrize("code", [0, 2, 73, 74, 78])
def test_what_no_restart_can_help_is_not_started_again(start, tmp_path, code):
    assert supervise(start, f"announce(); sys.exit({code})")[0] == code
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("code", [1, 71, 75, 76, 134])
def test_what_a_restart_can_help_is_started_again(start, tmp_path, code):
    returned, output = supervise(start, f"announce(); sys.exit({code} if start < 3 else 0)")
    assert returned == 0
    assert len(starts(tmp_path)) == 3
    assert output.count(f"exit code {code} ") == 2


def test_a_death_by_a_signal_is_a_failure_and_is_named(start, tmp_path):
    returned, output = supervise(start, "os.kill(os.getpid(), signal.SIGKILL)", "--max-restarts", "1")
    assert returned == 1
    assert len(starts(tmp_path)) == 2
    assert "killed by signal 9, perhaps out of memory" in output


@pytest.mark.parametrize("death", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_record_of_the_first_cause_beats_a_bare_1_and_a_signal(start, tmp_path, death):
    body = f"announce(); record(1, rank=0, cause=False); record(74, 7, rank=3, reason='the bucket is gone'); {death}"
    returned, output = supervise(start, body)
    assert returned == 74
    assert len(starts(tmp_path)) == 1
    assert "exit code 74 (STORAGE) at step 7: the bucket is gone (rank 3 on host-a)" in output


def test_a_code_of_the_job_s_own_stands_beside_the_records(start):
    assert supervise(start, "announce(); record(1); sys.exit(78)")[0] == 78


def test_records_that_call_a_failed_job_done_are_not_believed(start):
    assert supervise(start, "announce(); record(0); sys.exit(1)", "--max-restarts", "0")[0] == 1


def test_records_are_gone_before_the_next_start(start, tmp_path):
    body = """
announce()
if start == 1:
    record(71)
    sys.exit(1)
sys.exit(7 if list(folder.glob("exits/*.json")) else 0)
"""
    assert supervise(start, body)[0] == 0
    assert len(starts(tmp_path)) == 2


def test_a_record_that_cannot_be_read_is_told_and_ends_nothing(start, tmp_path):
    body = "announce(); record(74); (folder / 'exits/rank-0000.json').write_text('{'); sys.exit(start == 1)"
    returned, output = supervise(start, body)
    assert returned == 0
    assert "records cannot be read" in output


# Restarts, progress, giving up


def test_a_crash_loop_at_one_step_ends_with_one_message_that_says_all(start, tmp_path):
    body = "announce(); log_step(57); record(1, 57, rank=2, reason='ValueError: bad volume'); sys.exit(1)"
    returned, output = supervise(start, body, "--max-restarts", "2")
    assert returned == 1
    assert len(starts(tmp_path)) == 3
    [message] = [line for line in output.splitlines() if "given up" in line]
    for part in (
        "3 times in a row the job ended without getting past step 57",
        "ValueError: bad volume (rank 2 on host-a)",
        "the data that follows step 57",
        str(tmp_path / "train.log"),
        f"output_dir={tmp_path}",
    ):
        assert part in message
    assert message in (tmp_path / "train.log").read_text()
    assert message.startswith("supervisor: ")


def test_progress_makes_the_count_and_the_pause_begin_anew(start, tmp_path):
    # Ends 1 to 4 come further each time; from 5 on it replays what it had: two restarts, and no more.
    body = "announce(); log_step(min(start, 4) * 10); sys.exit(1)"
    returned, output = supervise(start, body, "--max-restarts", "2")
    assert returned == 1
    assert len(starts(tmp_path)) == 6
    pauses = [line.rpartition("restart in ")[2].split(" s")[0] for line in output.splitlines() if "restart in" in line]
    assert pauses == ["0.01", "0.01", "0.01", "0.01", "0.02"]
    assert "3 times in a row the job ended without getting past step 40" in output


def test_the_steps_that_ranks_have_noted_are_progress_where_there_are_no_metrics(start, tmp_path):
    # Ends 1 to 4 come further; the last noted step of a start is gone before the next one.
    body = """
announce()
assert not list(folder.glob("exits/step-*"))
note_step(1, rank=4)
note_step(min(start, 4) * 10, rank=5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    returned, output = supervise(start, body, "--max-restarts", "2")
    assert returned == 1
    assert len(starts(tmp_path)) == 6
    assert "3 times in a row the job ended without getting past step 40" in output


def test_clean_stops_double_the_pause_and_use_up_no_restart(start, tmp_path):
    # A notice of maintenance that stands: each start stops at once. Failures between them count as ever.
    body = "announce(); sys.exit([75, 75, 75, 1, 75, 1, 1][start - 1])"
    returned, output = supervise(start, body, "--max-restarts", "2")
    assert returned == 1
    assert len(starts(tmp_path)) == 7
    told = [line.rpartition("restart in ")[2] for line in output.splitlines() if "restart in" in line]
    clean = "(a clean stop, which does not count)"
    assert told == [
        f"0.01 s {clean}",
        f"0.02 s {clean}",
        f"0.04 s {clean}",
        "0.01 s (1 of 2 without progress)",
        f"0.01 s {clean}",
        "0.02 s (2 of 2 without progress)",
    ]


def test_falling_back_behind_the_newest_step_is_no_progress(start, tmp_path):
    body = """
announce()
(folder / "metrics.jsonl").unlink(missing_ok=True)
log_step([50, 10, 20, 30][start - 1])
sys.exit(1)
"""
    assert supervise(start, body, "--max-restarts", "2")[0] == 1
    assert len(starts(tmp_path)) == 3


def test_never_to_start_again_is_a_choice(start, tmp_path):
    assert supervise(start, "sys.exit(71)", "--max-restarts", "0")[0] == 71
    assert len(starts(tmp_path)) == 1


def test_pauses_double_up_to_five_minutes():
    patience = Patience(backoff_s=10)
    assert [patience.pause_s(n) for n in range(1, 8)] == [10, 20, 40, 80, 160, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert patience.pause_s(10_000) == MAX_BACKOFF_S


def test_every_start_gets_the_same_name_of_the_run(start, tmp_path):
    process = start("sys.exit(1)", "--max-restarts", "1", "--backoff", "1.1")  # names count seconds
    assert process.wait(120) == 1
    first, second = (line.split()[3] for line in starts(tmp_path))
    assert first == second


# Stopping


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_signal_goes_once_and_to_the_first_process_only(start, tmp_path, name):
    body = """
child = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: (folder / "child was hit").touch())
(folder / "child").touch()
time.sleep(60)
''', str(folder)])
heard = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: heard.append(signal.Signals(number).name))
announce()
while not (folder / "child").exists():
    time.sleep(0.01)
(folder / "ready").touch()
while not heard:
    time.sleep(0.01)
time.sleep(0.3)
(folder / "heard").write_text(" ".join(heard))
child.kill()
child.wait()
sys.exit(75)
"""
    process = start(body)
    wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.Signals[name])
    assert process.wait(120) == 75
    assert (tmp_path / "heard").read_text() == name
    assert not (tmp_path / "child was hit").exists()
    assert len(starts(tmp_path)) == 1  # 75 that was asked for


def test_75_that_nobody_asked_the_supervisor_for_is_started_again(start, tmp_path):
    assert supervise(start, "announce(); sys.exit(75 if start == 1 else 0)")[0] == 0
    assert len(starts(tmp_path)) == 2


STUBBORN = """
signal.signal(signal.SIGTERM, lambda *_: (folder / "asked").touch())
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, lambda *_: 0); time.sleep(60)"])
announce()
(folder / "ready").touch()
while True:
    time.sleep(1)
"""


def test_a_second_signal_kills_the_whole_group(start, tmp_path):
    process = start(STUBBORN)
    wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    wait_for((tmp_path / "asked").exists)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 76
    assert "SIGTERM again: its processes are killed" in output
    assert "had stayed" not in output  # all at once, not the first one and then the rest
    assert living_in(int(starts(tmp_path)[0].split()[2])) == []


def test_the_end_of_the_grace_kills_the_whole_group_and_no_bystander(start, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(60)  # {tmp_path}"])
    process = start(STUBBORN, "--grace", "0.5")
    try:
        wait_for((tmp_path / "ready").exists)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 76
        assert "has not ended within 0.5 s" in output
        assert living_in(int(starts(tmp_path)[0].split()[2])) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stop_between_two_starts_ends_it_with_the_last_code(start, tmp_path):
    process = start("announce(); sys.exit(71)", "--backoff", "60")
    wait_for(lambda: (tmp_path / "train.log").exists() and "restart in" in (tmp_path / "train.log").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == 71  # the pause is 60 s
    assert len(starts(tmp_path)) == 1


def test_a_terminal_that_hangs_up_stops_nothing(start, tmp_path):
    process = start("(folder / 'ready').touch(); time.sleep(0.5)")
    wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0


# Nothing is left


def test_what_the_first_process_leaves_of_its_group_is_killed_and_counted(start, tmp_path):
    sleeper = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    body = f"announce()\nfor _ in range(2): subprocess.Popen([sys.executable, '-c', {sleeper!r}])\nsys.exit(0)"
    returned, output = supervise(start, body)
    assert returned == 0
    assert "2 processes of the job had stayed and are killed" in output
    assert living_in(int(starts(tmp_path)[0].split()[2])) == []


def test_what_leaves_by_itself_is_waited_for(start, tmp_path):
    body = f"""
late = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); "
late += "time.sleep({LEFTOVER_WAIT_S / 10}); pathlib.Path(sys.argv[2]).touch()"
subprocess.Popen([sys.executable, "-c", late, str(folder / "late"), str(folder / "written")])
while not (folder / "late").exists():
    time.sleep(0.01)
"""
    returned, output = supervise(start, body)
    assert returned == 0
    assert (tmp_path / "written").exists()
    assert "had stayed" not in output


def test_a_supervisor_that_is_killed_lets_the_job_save_and_end(start, tmp_path):
    body = """
def save(*_):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
ready()
"""
    process = start(body)
    wait_for((tmp_path / "ready").exists)
    process.kill()
    process.wait()
    wait_for((tmp_path / "saved").exists)
    wait_for(lambda: not is_alive(int(starts(tmp_path)[0].split()[1])))


# What others read


def test_its_record_names_the_processes_and_loses_the_secrets(start, tmp_path):
    asked = 'announce(); (folder / "grace").write_text(os.environ["OCTFM_GRACE_S"]); ready()'
    process = start(asked, "--grace", "5")
    record = tmp_path / "supervisor.json"
    wait_for(record.exists)
    told = json.loads(record.read_text())
    [(_, job, group, _)] = [line.split() for line in starts(tmp_path)]
    assert (told["pid"], told["job_pid"], told["restarts"], told["code"]) == (process.pid, int(job), 0, None)
    assert job == group  # the number of the job's group is its first process
    wait_for((tmp_path / "ready").exists)
    assert (tmp_path / "grace").read_text() == "2.5"  # the job gives itself half, and can still say that it is late
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    told = json.loads(record.read_text())
    assert (told["job_pid"], told["code"]) == (None, 76)


def test_its_record_redacts_the_command(tmp_path):
    job = (
        "import json, os, pathlib, sys; "
        "pathlib.Path(os.environ['OCTFM_STATUS']).write_text(json.dumps({'folder': sys.argv[1]}))"
    )
    command = [sys.executable, "-c", job, str(tmp_path), "wandb.api_key=canary-1", "--token", "canary-2"]
    subprocess.run(
        [sys.executable, "-m", "pretraining.supervise", "--", *command],
        cwd=PROJECT, env=environment(), check=True, timeout=120,
    )  # fmt: skip
    text = (tmp_path / "supervisor.json").read_text()
    assert "canary" not in text
    assert text.count("[redacted]") == 2


@pytest.mark.parametrize("options", [["--max-restarts", "-1"], ["--grace", "nan"], ["--backoff", "inf"]])
def test_impossible_options_are_refused_by_name(start, tmp_path, options):
    process = start("", *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert options[0] in output
    assert starts(tmp_path) == []


def test_a_command_that_does_not_exist_is_a_wrong_call():
    done = subprocess.run(
        [sys.executable, "-m", "pretraining.supervise", "--", "no-such-command"],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no-such-command" in done.stderr


def test_it_needs_neither_torch_nor_yaml():
    check = (
        "import sys, pretraining.supervise; "
        "print(*({'torch', 'yaml', 'omegaconf', 'numpy', 'wandb', 'torch_xla'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_steps_are_read_from_the_end_of_a_file_with_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged_steps(path) == []
    path.write_text("".join(json.dumps({"step": n, "filler": "x" * 50}) + "\n" for n in range(5000)) + '{"step": 99')
    assert max(logged_steps(path)) == 4999


def test_codes_of_others_count_as_failures():
    assert JobEnd(code=134, reason="", step=None).worth_a_restart
    assert not JobEnd(code=2, reason="", step=None).worth_a_restart
