"""What ranks must have in common: the code and configuration they start with, and the step at which they stop.

Ranks that differ train something that nobody has asked for, or hang; ranks that stop at different steps hang.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.exits import ExitCode

# Out of the 30 s that a Spot machine has, this much may go by before all ranks know.
AGREE_WITHIN_S = 5.0


class RanksDifferError(RuntimeError):
    """Ranks run different code, configurations or versions; the message names them."""


def check_ranks_alike(runtime: Runtime, host: str, facts: Mapping[str, Any]) -> None:
    """Raises RanksDifferError, on every rank, unless `facts` are equal on all; names the ranks unlike most."""
    found: list[tuple[str, dict[str, Any]]] = runtime.gather((host, dict(facts)))
    complaints = []
    for name in facts:
        values = [str(theirs.get(name)) for _, theirs in found]
        usual, count = Counter(values).most_common(1)[0]
        for rank, value in enumerate(values):
            if value != usual:
                complaints.append(f"{name} on rank {rank} ({found[rank][0]}) is {value}, {usual} on {count} others")
    if complaints:
        raise RanksDifferError(
            f"the ranks of this job are not alike: {'; '.join(complaints)}. `octfm fleet deploy` brings all workers to "
            f"one commit"
        )


def digest(text: str) -> str:
    """First 12 hex digits of the sha256: enough to tell two configurations apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class StopAgreement:
    """Ranks ask one another at steps that all can name: every n, where n updates of the slowest take AGREE_WITHIN_S.

    n at most doubles, since a step may become slower than it was. A lone rank looks at each step.
    """

    def __init__(self, runtime: Runtime, step: int) -> None:
        self._runtime = runtime
        self._asked_at, self._next, self._time = step, step + 1, time.perf_counter()

    def at(self, step: int, wish: ExitCode) -> ExitCode:
        """What all do after `step`: the largest code that a rank wishes for, DONE to go on."""
        if self._runtime.world_size == 1:
            return wish
        if step < self._next:
            return ExitCode.DONE
        now = time.perf_counter()
        since = step - self._asked_at
        agreed = self._runtime.max_over_ranks({"wish": float(wish), "seconds": (now - self._time) / since})
        num_steps = max(1, min(2 * since, int(AGREE_WITHIN_S / agreed["seconds"])))
        self._asked_at, self._next, self._time = step, step + num_steps, now
        return ExitCode(int(agreed["wish"]))
