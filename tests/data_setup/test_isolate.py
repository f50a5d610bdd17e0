"""Children that abort, hang, exhaust memory or stop iterating: each costs its own task and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_setup.isolate import IsolationLimits, Outcome, run_isolated

LIMITS = IsolationLimits(timeout_s=60, memory_bytes=1 << 30)
NO_LIMITS = IsolationLimits(timeout_s=1000)


def job(task: tuple[str, object]) -> object:
    """Does what the first word says."""
    match task:
        case "square", int(number):
            return number * number
        case "wait", float(seconds):
            time.sleep(seconds)
            return seconds
        case "abort", _:
            os.abort()
        case "exit once", str(marker):
            if not os.path.exists(marker):
                Path(marker).touch()
                os._exit(3)
            return "second time"
        case "allocate", int(num_bytes):
            return len(bytearray(num_bytes))
        case "stop", _:
            raise StopIteration("a text that may hold a path")
        case "modules", _:
            return sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "monai", "pytest", "pydicom"})
        case "shout", str(words):
            sys.stderr.write(words)
            print(words)
            return os.getpid()
    raise AssertionError(task)


def test_results_come_in_the_order_of_the_tasks() -> None:
    tasks = [("wait", 0.3), *(("square", number) for number in range(20))]
    records = [outcome.record for outcome in run_isolated(job, tasks, 3, LIMITS)]
    assert records == [0.3, *(number * number for number in range(20))]


def test_an_abort_costs_its_task_only() -> None:
    tasks = [("square", 2), ("abort", None), ("square", 3)]
    two, aborted, three = run_isolated(job, tasks, 1, LIMITS)
    assert (two.record, three.record) == (4, 9)
    assert (aborted.record, aborted.failure, aborted.detail) == (None, "died", "exit code -6")


def test_a_death_is_tried_once_more(tmp_path: Path) -> None:
    (outcome,) = run_isolated(job, [("exit once", str(tmp_path / "marker"))], 1, LIMITS)
    assert outcome == Outcome("second time")


def test_a_task_that_hangs_is_ended_and_not_repeated() -> None:
    started = time.monotonic()
    hung, after = run_isolated(job, [("wait", 300.0), ("square", 5)], 1, IsolationLimits(timeout_s=1.0))
    assert (hung.failure, after.record) == ("timeout", 25)
    assert time.monotonic() - started < 100


@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_AS is ignored outside Linux: the limit of memory was NOT tested"
)
def test_memory_beyond_the_limit_is_refused_and_the_child_lives_on() -> None:
    pid, refused, granted, same = run_isolated(
        job, [("shout", ""), ("allocate", 2 << 30), ("allocate", 1 << 28), ("shout", "")], 1, LIMITS
    )
    assert (refused.failure, refused.detail) == ("raised", "MemoryError")
    assert granted.record == 1 << 28
    assert pid.record == same.record


def test_an_exception_comes_back_as_its_type_without_its_text() -> None:
    (outcome,) = run_isolated(job, [("stop", None)], 1, LIMITS)
    assert outcome == Outcome(None, "raised", "StopIteration")


def test_what_a_child_prints_reaches_nobody(capfd: pytest.CaptureFixture) -> None:
    list(run_isolated(job, [("shout", "ZZTEST surname")], 1, LIMITS))
    assert "ZZTEST" not in "".join(capfd.readouterr())


def test_closing_early_ends_the_children_at_once() -> None:
    outcomes = run_isolated(job, [("shout", ""), ("wait", 300.0), ("wait", 300.0)], 2, NO_LIMITS)
    child = next(outcomes).record
    started = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 100
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_that_are_busy_end_when_their_parent_does(number: signal.Signals) -> None:
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from data_setup.isolate import run_isolated; import test_isolate\n"
        "for outcome in run_isolated(test_isolate.job, [('shout', ''), ('wait', 60.0)], 1):\n"
        "    print(outcome.record, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)  # the child is at its second task, and reads nothing
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        if not _runs(child):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent by 30 s")


def _runs(pid: int) -> bool:
    """True for a process that exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):  # the second: it was reaped between the two looks
        return False


@pytest.mark.parametrize("num_workers", [0, -1])
def test_no_workers_is_an_error(num_workers: int) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        run_isolated(job, [], num_workers)


def test_a_job_that_no_child_can_import_is_an_error() -> None:
    with pytest.raises(ValueError, match="top-level function"):
        run_isolated(lambda task: task, [1], 1)


def test_no_tasks_give_no_outcomes() -> None:
    assert list(run_isolated(job, [], 4)) == []
