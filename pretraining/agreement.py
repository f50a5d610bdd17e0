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
# More keys than this differ only between runs that have nothing in common.
_MOST_KEYS_NAMED = 10
# Who has lost its place must not save, and a failed store cannot: both go before a request to save and stop.
_BY_GRAVITY = (ExitCode.DONE, ExitCode.STOPPED, ExitCode.STORAGE, ExitCode.TAKEN_OVER)


class RanksDifferError(RuntimeError):
    """Ranks run different code, configurations or versions; the message names them."""


def check_ranks_alike(runtime: Runtime, host: str, facts: Mapping[str, Any]) -> None:
    """Raises RanksDifferError, on every rank, unless `facts` are equal on all; names keys, values, ranks and hosts.

    A fact is a plain value or a nested dict of them. Digests are compared first, so that little travels.
    """
    mine = {name: flatten(fact) for name, fact in facts.items()}
    digests = runtime.gather({name: digest(repr(sorted(flat.items()))) for name, flat in mine.items()})
    unlike = [name for name in facts if len({theirs.get(name) for theirs in digests}) > 1]
    if not unlike:
        return
    found = runtime.gather((host, {name: mine[name] for name in unlike}))
    hosts = [host for host, _ in found]
    complaints = [
        complaint for name in unlike for complaint in _complaints(name, hosts, [theirs[name] for _, theirs in found])
    ]
    raise RanksDifferError(f"the ranks of this job are not alike: {'; '.join(complaints)}. {_remedy(unlike)}")


def flatten(fact: Any, above: str = "") -> dict[str, str]:
    """{"train.lr": "0.1"} of {"train": {"lr": 0.1}}; a plain value has the key ""."""
    if not isinstance(fact, Mapping) or not fact:
        return {above: str(fact)}
    flat: dict[str, str] = {}
    for key, value in fact.items():
        flat |= flatten(value, f"{above}.{key}" if above else str(key))
    return flat


def digest(text: str) -> str:
    """First 12 hex digits of the sha256: enough to tell two configurations apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _complaints(name: str, hosts: list[str], found: list[dict[str, str]]) -> list[str]:
    """For each key of a fact and each value that is not the usual one: which ranks have it."""
    complaints = []
    keys = [key for key in sorted(set().union(*found)) if len({flat.get(key) for flat in found}) > 1]
    for key in keys[:_MOST_KEYS_NAMED]:
        values = [flat.get(key, "absent") for flat in found]
        usual, count = Counter(values).most_common(1)[0]
        for value in dict.fromkeys(values):
            if value != usual:
                ranks = [rank for rank, its in enumerate(values) if its == value]
                who = ", ".join(f"{rank} ({hosts[rank]})" for rank in ranks)
                what = f"{name} {key}".rstrip()
                complaints.append(f"{what} on rank {who} is {value}, {usual} on {count} of {len(found)}")
    if len(keys) > _MOST_KEYS_NAMED:
        complaints.append(f"{len(keys) - _MOST_KEYS_NAMED} more keys of the {name}")
    return complaints


def _remedy(unlike: list[str]) -> str:
    remedies = []
    if "configuration" in unlike:
        remedies.append(
            "Start all hosts with the same command. By hand it must name an output_dir: without one each host makes up "
            "a folder of its own"
        )
    if set(unlike) != {"configuration"}:
        remedies.append("`octfm fleet deploy` brings all workers to one commit")
    return ". ".join(remedies)


class StopAgreement:
    """Ranks ask one another at steps that all can name: every n, where n updates of the slowest take AGREE_WITHIN_S.

    n at most doubles, since a step may become slower than it was. A lone rank looks at each step.
    """

    def __init__(self, runtime: Runtime, step: int) -> None:
        self._runtime = runtime
        self._asked_at, self._next, self._time = step, step + 1, time.perf_counter()

    def at(self, step: int, wish: ExitCode) -> ExitCode:
        """What all do after `step`: the gravest wish of a rank, DONE to go on."""
        if self._runtime.world_size == 1:
            return wish
        if step < self._next:
            return ExitCode.DONE
        now = time.perf_counter()
        since = step - self._asked_at
        mine = {"wish": float(_BY_GRAVITY.index(wish)), "seconds": (now - self._time) / since}
        agreed = self._runtime.max_over_ranks(mine)
        num_steps = max(1, min(2 * since, int(AGREE_WITHIN_S / agreed["seconds"])))
        self._asked_at, self._next, self._time = step, step + num_steps, now
        return _BY_GRAVITY[int(agreed["wish"])]
