"""`octfm fleet check`: is every worker there, and fit for a run? A table of facts, then what is wrong, by worker."""

from typing import Any

from pretraining.fleet.channel import Answer
from pretraining.fleet.inventory import Inventory
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_table, print_troubles, short

MAX_CLOCK_OFFSET_S = 5.0
_COLUMNS = ("worker", "host", "Python", "disk free", "memory free", "chips", "GPUs", "clock", "git", "commit")


def check(workers: Workers) -> int:
    """Asks all; returns 1 where a worker is not reached or not fit."""
    inventory = workers.inventory
    answers = workers.ask("check", timeout_s=60, python=inventory.python, ports=inventory.ports)
    print_table(_COLUMNS, [_row(answer) for answer in answers if not answer.trouble])
    wrong = print_troubles(workers, answers)
    for answer in answers:
        for finding in [] if answer.trouble else findings(answer, inventory):
            complain(f"{workers.name(answer.worker)}: {finding}")
            wrong += 1
    chips = {answer.reply["num_chips"] for answer in answers if not answer.trouble}
    if len(chips) > 1:
        complain(f"workers have different numbers of chips: {sorted(chips)}; they do not belong to one pod")
        wrong += 1
    print("all workers are fit" if not wrong else f"{wrong} findings")
    return TROUBLE if wrong else DONE


def findings(answer: Answer, inventory: Inventory) -> list[str]:
    """What stands in the way of a run on this worker, and what mends it."""
    facts = answer.reply
    found = [*facts["chips_held"], *facts["ports_held"]]
    found += [f"job {tag} runs: {', '.join(processes)}" for tag, processes in facts["jobs"].items()]
    if facts["python"] is None:
        wanted = inventory.python or "python3.11, python3.12 or python3 in PATH"
        found.append(f"no Python 3.11 to 3.13 ({wanted}): apt-get install python3.11 python3.11-venv, or set python:")
    if facts["git"] is None:
        found.append("git is not installed: sudo apt-get install git")
    if facts["disk_free_gb"] < inventory.min_free_disk_gb:
        found.append(
            f"{facts['disk_free_gb']:.1f} GB free for {inventory.checkouts()[answer.worker]}, min_free_disk_gb is "
            f"{inventory.min_free_disk_gb:g}: remove old folders in runs/"
        )
    if abs(offset := clock_offset_s(answer)) > MAX_CLOCK_OFFSET_S:
        found.append(f"its clock differs from this machine's by at least {offset:+.1f} s: timedatectl set-ntp true")
    if facts["stray_variables"]:
        found.append(
            f"its login sets {', '.join(facts['stray_variables'])}: take that out of /etc/environment, ~/.bashrc"
        )
    if facts["foreign_lock"]:
        found.append("/tmp/libtpu_lockfile belongs to another user: sudo rm it, when no chip is held")
    return found


def clock_offset_s(answer: Answer) -> float:
    """Seconds that the worker's clock is certainly ahead (negative: behind) of ours.

    It was read somewhere between our sending and receiving, so a slow connection alone is no offset.
    """
    ahead, behind = answer.reply["time"] - answer.received, answer.reply["time"] - answer.sent
    return ahead if ahead > 0 else min(behind, 0.0)


def _row(answer: Answer) -> tuple[str, ...]:
    facts: dict[str, Any] = dict(answer.reply)
    half_trip = (answer.received - answer.sent) / 2
    clone = facts["clone"] or {}
    return (
        str(answer.worker),
        f"{answer.label} ({facts['host']})",
        (facts["python"] or "none that fits").split()[0],
        f"{facts['disk_free_gb']:.0f} GB",
        f"{facts['memory_free_gb']:.0f} of {facts['memory_gb']:.0f} GB",
        str(facts["num_chips"]),
        str(facts["num_gpus"]),
        f"{facts['time'] - answer.sent - half_trip:+.1f} ± {half_trip:.1f} s",
        (facts["git"] or "none").rpartition(" ")[2],
        short(clone.get("sha")) + (" + changes" if clone.get("dirty") else ""),
    )
