"""What a row of the fault matrix is, and what it has seen: rounds, faults that did fire, losses, complaints.

A row passes if it lost nothing, if nothing behaved otherwise than expected, and if its faults really happened.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.matrix.places import Place, StoreKind

Loss = Literal["unloadable", "went back", "undetected"]


@dataclass(kw_only=True)
class Record:
    """Filled by one row on one store. fired: how often each kind of fault has happened; facts: worth a line below."""

    rounds: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    losses: Counter[Loss] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def lose(self, loss: Loss, what: str) -> None:
        """Counts what must never happen."""
        self.losses[loss] += 1
        self.complaints.append(f"{loss}: {what}")

    def require(self, holds: bool, complaint: str) -> bool:
        """`holds`; a complaint where it is False."""
        if not holds:
            self.complaints.append(complaint)
        return holds

    def require_fired(self, kind: str, times: int) -> None:
        """A complaint unless that kind of fault has happened `times` times: one that did not proves nothing."""
        self.require(self.fired[kind] >= times, f"{kind!r} fired {self.fired[kind]} times, {times} are wanted")

    @property
    def passed(self) -> bool:
        """True if the faults happened and nothing was lost or strange."""
        return bool(self.rounds and self.fired.total()) and not self.losses and not self.complaints


RunRow = Callable[[Place, int, random.Random, Record], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault: `number` and `title` of section 8 of the design, what is expected, how to make it happen.

    run(place, rounds, generator, record) fills the record; it runs in a process of its own. rounds: of the full
    command, for each store that the fault concerns; quick: of the short one. breaks_network: it needs the fault proxy.
    """

    number: int
    title: str
    expected: str
    run: RunRow
    rounds: dict[StoreKind, int]
    quick: int
    breaks_network: bool = False
