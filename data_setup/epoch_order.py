"""In which order an epoch visits the samples: a pure function of (seed, epoch), the same on every machine.

Either every sample once, or each domain (maker of the device) in a chosen share: a multi-vendor set is rarely even,
and the largest maker would otherwise decide what is learnt.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class EpochOrder(Protocol):
    """The order of `num_samples` draws per epoch."""

    @property
    def num_samples(self) -> int:
        """Draws per epoch."""
        ...

    def order(self, epoch: int) -> torch.Tensor:
        """Indices of samples, int64 [num_samples]."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Every sample once per epoch; raises ValueError where there is none."""

    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("there is no training sample")

    def order(self, epoch: int) -> torch.Tensor:
        """A permutation."""
        return _permutation(self.num_samples, f"{self.seed}:{epoch}")


class Balanced:
    """As many draws per epoch as there are samples, each domain with its weight's share of them.

    A domain's samples come round one after another, across epochs: none is drawn twice before all have been drawn.
    weights: domain -> share of any scale; a domain without one has 0. Raises ValueError where nothing is left.
    """

    def __init__(self, domains: Sequence[str], weights: Mapping[str, float], seed: int) -> None:
        self.num_samples, self._seed = len(domains), seed
        unknown = sorted(set(weights) - set(domains))
        if unknown:
            raise ValueError(
                f"data.domain_weights names {', '.join(unknown)}; the training volumes come from: "
                f"{', '.join(sorted(set(domains))) or 'nowhere'}"
            )
        self._members = {
            domain: torch.tensor([index for index, found in enumerate(domains) if found == domain])
            for domain in sorted(set(domains))
            if weights.get(domain, 0) > 0
        }
        if not self._members:
            raise ValueError("data.domain_weights leaves no training sample")
        self._quotas = _largest_remainder(self.num_samples, {domain: weights[domain] for domain in self._members})

    def order(self, epoch: int) -> torch.Tensor:
        """The domains' shares, shuffled together."""
        shares = [self._share(domain, epoch) for domain in self._members]
        drawn = torch.cat(shares)
        return drawn[_permutation(len(drawn), f"{self._seed}:{epoch}")]

    def _share(self, domain: str, epoch: int) -> torch.Tensor:
        """The draws of a domain in an epoch: a window of its endless stream of permutations."""
        members, quota = self._members[domain], self._quotas[domain]
        start, stop = epoch * quota, (epoch + 1) * quota
        passes = range(start // len(members), -(-stop // len(members)))
        stream = [_permutation(len(members), f"{self._seed}:{domain}:{number}") for number in passes]
        first = passes.start * len(members)
        return members[torch.cat(stream)[start - first : stop - first]] if stream else members[:0]


def _largest_remainder(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole shares of `total` in proportion to the weights; what rounding leaves goes to the largest remainders."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _permutation(size: int, purpose: str) -> torch.Tensor:
    """int64 [size], decided by the text."""
    digest = hashlib.sha256(purpose.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(size, generator=generator)
