"""`octfm fleet status`: one row per worker, then what has died and why, the first cause first."""

from collections.abc import Mapping, Sequence
from typing import Any

from oct_foundation.runtime.exits import ExitCode
from pretraining.fleet.channel import Answer
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_table, print_troubles, short

_MEANINGS: dict[int, str] = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.CONFIG: "the configuration is wrong",
    ExitCode.NO_PROGRESS: "no progress, ended by the watchdog",
    ExitCode.TAKEN_OVER: "another writer has taken the run",
    ExitCode.STORAGE: "storage failed",
    ExitCode.STOPPED: "stopped and saved",
    ExitCode.STOPPED_UNSAVED: "stopped, not saved",
    ExitCode.NOT_LEARNING: "stopped, since the encoder has collapsed",
    ExitCode.REFUSED: "refused: permission, damaged checkpoints, or ranks that differ",
}
_FINE = (ExitCode.DONE, ExitCode.STOPPED)
_COLUMNS = ("worker", "host", "job", "commit", "process", "restarts", "step", "loss", "age", "last line")


def status(workers: Workers, num_lines: int) -> int:
    """Returns 1 where a worker is not reached or its job has failed or is lost."""
    answers = workers.ask("status", timeout_s=60, num_lines=max(1, num_lines))
    told = [answer for answer in answers if not answer.trouble]
    print_table(_COLUMNS, [_row(answer) for answer in told])
    wrong = print_troubles(workers, answers)
    for answer in told:
        wrong += _print_death(workers, answer)
    _print_causes(workers, told)
    jobs = {answer.reply["job"] for answer in told}
    if len(jobs) > 1:
        named = ", ".join(f"worker {answer.worker} {answer.reply['job']}" for answer in told)
        complain(f"the workers' last jobs differ: {named}. octfm fleet stop, then start")
        wrong += 1
    return TROUBLE if wrong else DONE


def state_of(reply: Mapping[str, Any]) -> str:
    """`running`, `ended with 75, stopped and saved`, `killed by signal 9`, ..."""
    if reply["job"] is None:
        return "no job yet"
    if reply["state"] == "running":
        return "running"
    if reply["state"] == "lost":
        return "lost: the host was rebooted" if reply["rebooted"] else "lost: it has ended without an exit code"
    code = reply["code"]
    return f"killed by signal {-code}" if code < 0 else f"ended with {code}, {meaning(code)}"


def meaning(code: int) -> str:
    """Of an exit code of ours, or of a shell's 128 + signal."""
    return _MEANINGS.get(code) or (f"signal {code - 128}" if code > 128 else "failed")


def _row(answer: Answer) -> tuple[str, ...]:
    reply = answer.reply
    if reply["job"] is None:
        return (str(answer.worker), answer.label, "-", "-", state_of(reply), *["-"] * 5)
    metrics = reply["metrics"] or {}
    age_s = metrics.get("age_s", reply["line_age_s"])
    return (
        str(answer.worker),
        answer.label,
        reply["job"],
        short(reply["sha"]),
        f"{state_of(reply)}, pid {reply['pid']}" if reply["state"] == "running" else state_of(reply),
        "-" if reply["restarts"] is None else str(reply["restarts"]),
        str(metrics.get("step", "-")),
        _loss(metrics.get("loss")),
        "-" if age_s is None else f"{age_s:.0f} s",
        (reply["lines"] or ["-"])[-1][:70],
    )


def _loss(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")


def _ended_badly(reply: Mapping[str, Any]) -> bool:
    return reply["job"] is not None and reply["state"] != "running" and reply["code"] not in _FINE


def _print_death(workers: Workers, answer: Answer) -> int:
    """Names a worker whose job has ended badly, with its last lines, and what it has left behind; returns 0 or 1."""
    reply, who = answer.reply, workers.name(answer.worker)
    leftovers = reply.get("leftovers", [])
    if leftovers:
        complain(f"{who}: processes are left: {', '.join(leftovers)}; octfm fleet stop")
    if not _ended_badly(reply):
        return 1 if leftovers else 0
    complain(f"{who}: {state_of(reply)}")
    for line in reply["lines"]:
        complain(f"    {line}")
    if reply["out_of_memory"]:
        complain(f"    kernel: {reply['out_of_memory']}")
    return 1


def _print_causes(workers: Workers, answers: Sequence[Answer]) -> None:
    """Workers without a last word, then what ranks have written down on leaving: causes first, then by time."""
    found = [(record, answer.worker) for answer in answers for record in answer.reply.get("exits", [])]
    bad = [(record, worker) for record, worker in found if record["code"] not in _FINE]
    for answer in answers:
        if bad and _ended_badly(answer.reply) and not answer.reply["exits"]:
            complain(
                f"{workers.name(answer.worker)} wrote down no reason, others did: its process was killed (kill -9, "
                "out of memory) or never began. Look there first"
            )
    for record, worker in sorted(bad, key=lambda one: (not one[0]["cause"], one[0]["time"])):
        kind = "cause" if record["cause"] else "consequence"
        step = "" if record["step"] is None else f" at step {record['step']}"
        complain(
            f"rank {record['rank']} on {workers.name(worker)} left with {record['code']}, {meaning(record['code'])}"
            f"{step} ({kind}): {record['reason']}"
        )
