"""Which scans a run uses: by maker, model, region, eye, protocol or participant.

Applied where a fact is known first: to a manifest before a file is read, to an index when a run starts. So one
prepared set serves single-domain and multi-domain runs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from data_setup.volume import Laterality

_TEXT_FACTS = {"manufacturers": "vendor", "models": "model", "regions": "region", "protocols": "protocol"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Everything by default. Texts match anywhere in the fact, without case: `zeiss` takes `Carl Zeiss Meditec`.

    participants: numbers and ranges, "1001-1100, 4001"; known to manifests and lists only, since an index names
    nobody. A scan whose fact is unknown does not match a choice about it.
    """

    manufacturers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    laterality: Laterality | None = None
    participants: str | None = None

    def __post_init__(self) -> None:
        for name in _TEXT_FACTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.laterality not in (None, "R", "L"):
            raise ValueError(f"data.select.laterality must be R, L or null; found {self.laterality!r}")
        if self.participants is not None:
            _ranges(self.participants)

    def takes(self, facts: Any) -> bool:
        """True if `facts` (vendor, model, region, protocol, laterality as attributes) match every choice but the
        participants'.
        """
        for choice, fact in _TEXT_FACTS.items():
            wanted, found = getattr(self, choice), (getattr(facts, fact) or "").casefold()
            if wanted and not (found and any(text.casefold() in found for text in wanted)):
                return False
        return self.laterality in (None, facts.laterality)

    def takes_person(self, person: str | None) -> bool:
        """True if a participant's id lies in one of the ranges; ids that are no numbers do not."""
        if self.participants is None:
            return True
        number = int(person) if person is not None and person.isdecimal() else None
        return number is not None and any(low <= number <= high for low, high in _ranges(self.participants))

    def describe(self) -> str:
        """What is chosen, for messages: `manufacturers=('Zeiss',)`."""
        chosen = {name: value for name, value in asdict(self).items() if value not in ((), None)}
        return ", ".join(f"data.select.{name}={value}" for name, value in chosen.items()) or "everything"


EVERYTHING = Selection()


def _ranges(text: str) -> list[tuple[int, int]]:
    """(low, high) of "1001-1100, 4001"; raises ValueError for anything else."""
    ranges = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        high = high if dash else low
        if not (low.strip().isdecimal() and high.strip().isdecimal() and int(low) <= int(high)):
            raise ValueError(f"data.select.participants must be like '1001-1100, 4001'; found {text!r}")
        ranges.append((int(low), int(high)))
    return ranges
