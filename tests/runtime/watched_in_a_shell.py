"""A run under a watchdog that was started by a shell, not by our launcher: python watched_in_a_shell.py FOLDER."""

import os
import sys
import time
from pathlib import Path

from oct_foundation.runtime.rank_exit import RankExit
from oct_foundation.runtime.watchdog import Watchdog, WatchdogSettings

folder = Path(sys.argv[1])
watchdog = Watchdog(WatchdogSettings(), RankExit(rank=0, folder=folder / "exits"), look_s=0.1)
shell = os.getppid()
watchdog.start()
(folder / "started").touch()
while not (folder / "shell-ended").exists():
    time.sleep(0.05)
time.sleep(0.5)  # five looks
watchdog.stop()
(folder / "finished.part").write_text(f"{shell} {os.getppid()}")
(folder / "finished.part").rename(folder / "finished")
