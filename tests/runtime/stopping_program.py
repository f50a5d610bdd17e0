"""Processes for test_stopping: `stopping_program.py KIND FOLDER`. Each says READY, then what it has heard.

rank: the main thread is the rank. early: signals before the ranks exist. spawned: the rank runs in a thread of a pool's
process, as under xmp.spawn. patient, very patient, saved, spawned-patient: the rank never looks at the flag.
"""

import multiprocessing
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.rank_exit import RankExit
from oct_foundation.runtime.stopping import SignalListener, StopRequest, forward_to_ranks, signals_blocked


def rank(folder: Path, grace_s: float = 20.0, *, looks: bool = True, saved: bool = False, saves_s: float = 0) -> int:
    """Waits for the request like a loop does; 75 when it has seen it."""
    stop = StopRequest(RankExit(rank=0, folder=folder), grace_s)
    if saved:
        stop.late_code = ExitCode.STOPPED
    stop.listen()
    np.ones((200, 200)) @ np.ones((200, 200))  # threads of a numeric library may be given the signal
    print("READY", flush=True)
    for _ in range(3000):
        if stop.asked and looks:
            time.sleep(saves_s)
            print(f"heard {stop.reason}", flush=True)
            return 75
        time.sleep(0.01)
    return 0


def in_a_thread(folder: Path, looks: bool) -> int:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(rank(folder, looks=looks)))
    thread.start()
    thread.join()
    return codes[0]


def main(kind: str, folder: Path) -> int:
    listener = SignalListener()
    match kind:
        case "early":
            try:
                print("READY", flush=True)
                time.sleep(30)
            except KeyboardInterrupt as heard:
                print(f"interrupted by {heard}", flush=True)
                return 75
        case "spawned" | "spawned-patient":
            listener.divert(forward_to_ranks())
            with signals_blocked(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                return pool.submit(in_a_thread, folder, kind == "spawned").result()
        case "rank":
            return rank(folder)
        case "slow":
            return rank(folder, saves_s=5.0)
        case "very patient":
            return rank(folder, looks=False)
        case "patient":
            return rank(folder, grace_s=1.0, looks=False)
        case "saved":
            return rank(folder, grace_s=1.0, looks=False, saved=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
