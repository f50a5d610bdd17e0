"""The fault matrix: `python -m tests.faults` makes every fault happen to a run's checkpoints, in a folder and in an
emulated bucket, and prints what was lost. Exit code 1 where anything was, or where a fault did not fire.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tests.faults.matrix.places import StoreKind
from tests.faults.matrix.rows import ROWS
from tests.faults.matrix.run import one_line, run_tasks, table, tasks


def _numbers(text: str) -> list[int]:
    known = {row.number for row in ROWS}
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas between them are allowed") from None
    if unknown := sorted(set(numbers) - known):
        raise argparse.ArgumentTypeError(f"there is no row {unknown[0]}; there are {sorted(known)}")
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", type=_numbers, default=[], help="e.g. 1,5,12; all of them without it")
    parser.add_argument("--store", choices=get_args(StoreKind), action="append", default=[], help="both without it")
    parser.add_argument("--seed", type=int, help="of everything drawn at random; printed where it is not given")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each row: under a minute")
    parser.add_argument(
        "--jobs", type=int, default=4, choices=range(1, 17), metavar="N", help="rows at a time; most wait"
    )
    parser.add_argument("--json", type=Path, help="where the outcomes are written")
    given = parser.parse_args(arguments)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    wanted = tasks(seed, given.quick, given.rows, given.store)
    print(f"{len(wanted)} rows with seed {seed}, {given.jobs} at a time on {os.cpu_count()} cores", flush=True)
    begun = time.monotonic()
    outcomes = run_tasks(wanted, given.jobs, lambda outcome: print(one_line(outcome), flush=True))
    seconds = time.monotonic() - begun
    print("", *table(outcomes), sep="\n")
    failed = sum(not outcome.record.passed for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} rows ok in {seconds:.0f} s, seed {seed}")
    if given.json:
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        rows = [outcome.facts() for outcome in outcomes]
        facts = {"seed": seed, "quick": given.quick, "seconds": round(seconds, 1), "machine": machine, "rows": rows}
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
