"""`octfm fleet stop`: TERM, time to save, KILL on all workers, and the proof that nothing is left."""

from collections.abc import Mapping
from typing import Any

from pretraining.fleet.status import meaning
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_troubles

# What ending.py may take beside the grace: leftovers, KILL, the exit code.
ENDING_S = 30.0


def stop(workers: Workers, grace_s: float) -> int:
    """Ends the job on all workers; returns 1, naming what is left, unless all chips and ports are free afterwards."""
    answers = workers.ask("stop", timeout_s=grace_s + ENDING_S, grace_s=grace_s)
    troubles = print_troubles(workers, answers)
    for answer in answers:
        if answer.trouble:
            continue
        for ended in answer.reply["ended"]:
            print(f"{workers.name(answer.worker)}: {_told(ended)}")
            for process in ended["killed"]:
                print(f"    killed: {process}")
        if not answer.reply["ended"]:
            print(f"{workers.name(answer.worker)}: no job ran")
        if answer.reply["removed_lock"]:
            print(f"{workers.name(answer.worker)}: removed /tmp/libtpu_lockfile, which nobody held")
    troubles += _what_is_left(workers)
    if troubles:
        complain("not everything has ended, or a worker could not be asked: see above")
        return TROUBLE
    print(
        f"nothing is left on {workers.inventory.num_workers} workers: no process of the job, chips and ports are free"
    )
    return DONE


def _told(ended: Mapping[str, Any]) -> str:
    """`job 2026../0: ended with 75, stopped and saved, after 3.2 s`."""
    code = ended["code"]
    if code is None:
        how = "no exit code was written"
    else:
        how = f"killed by signal {-code}" if code < 0 else f"ended with {code}, {meaning(code)},"
    return f"job {ended['tag']}: {how} after {ended['seconds']:.1f} s"


def _what_is_left(workers: Workers) -> int:
    """After all have stopped, so that no worker is blamed for what another one was still ending."""
    answers = workers.ask("prove", timeout_s=60, ports=workers.inventory.ports)
    troubles = print_troubles(workers, answers)
    for answer in answers:
        reply = answer.reply
        left = [] if answer.trouble else [*(f"still there: {one}" for one in reply["left"]), *reply["held"]]
        for line in left:
            complain(f"{workers.name(answer.worker)}: {line}")
        troubles += len(left)
    return troubles
