"""Which kinds of sample an update holds: mixed by chance, mixed by weight, or one set of kinds for all ranks.

Pure functions of (seed, finished updates, rank). Aligned is what sharded and compiled runs need: every rank has the
same modalities at the same update, and as many rows of each whenever a set comes back, so a set is one graph.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from data_setup.epoch_order import Balanced, EpochOrder, Shuffled
from data_setup.sampler import SampleKey, ShardedBatchSampler

_BLOCK = 1024  # updates whose sets are drawn at once


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """mixed: every sample once per epoch. weighted: kinds in the shares of `weights`, {T1: 2, rsfMRI: 1}. aligned: one
    set per update, drawn by weight, {T1: 1, T1+dMRI: 1}: the second fills half of each micro-batch with either.

    Without weights kinds are drawn evenly (weighted), or each alone as often as it has samples (aligned).
    """

    mode: Literal["mixed", "weighted", "aligned"] = "mixed"
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode == "mixed" and self.weights:
            raise ValueError("sampling.weights serves the modes weighted and aligned; sampling.mode is mixed")
        for name, weight in self.weights.items():
            kinds = name.split("+")
            if len(set(kinds)) < len(kinds):
                raise ValueError(f"sampling.weights.{name} names a kind twice")
            if not (np.isfinite(weight) and weight >= 0):
                raise ValueError(f"sampling.weights.{name} must be 0 or more; found {weight}")
        if self.weights and not sum(self.weights.values()) > 0:
            raise ValueError("sampling.weights must not all be 0")


class Layout(NamedTuple):
    """Who trains on how many rows: an update takes grad_accum_steps micro-batches from each rank."""

    rank: int
    world_size: int
    micro_batch_size: int
    grad_accum_steps: int


def build_sampler(
    kinds: Sequence[str], settings: SamplingSettings, layout: Layout, *, seed: int, drop_last: bool = True
) -> "ShardedBatchSampler | AlignedSampler":
    """The sampler of one rank over samples of these kinds; raises ValueError for kinds without samples, and for too
    few samples or rows.
    """
    order: EpochOrder
    match settings.mode:
        case "aligned":
            return AlignedSampler(kinds, settings.weights, layout, seed=seed)
        case "mixed":
            order = Shuffled(len(kinds), seed)
        case "weighted":
            weights = settings.weights or dict.fromkeys(kinds, 1.0)
            _check_known(set(weights), kinds)
            order = Balanced(kinds, weights, seed)
    return ShardedBatchSampler(order=order, drop_last=drop_last, **layout._asdict())


class AlignedSampler:
    """One set of kinds per update, the same on all ranks; each kind's samples come round one after another.

    Raises ValueError where a set names a kind without samples, or more kinds than a micro-batch has rows.
    """

    def __init__(self, kinds: Sequence[str], weights: Mapping[str, float], layout: Layout, *, seed: int) -> None:
        if not kinds:
            raise ValueError("there is no training sample")
        self._members = {kind: np.flatnonzero(np.array(kinds) == kind) for kind in sorted(set(kinds))}
        shares = dict(weights) or {kind: float(len(members)) for kind, members in self._members.items()}
        shares = {name: share for name, share in shares.items() if share > 0}
        self.sets = tuple(tuple(name.split("+")) for name in shares)
        _check_known({kind for chosen in self.sets for kind in chosen}, kinds)
        largest = max(self.sets, key=len)
        if len(largest) > layout.micro_batch_size:
            raise ValueError(
                f"a set of {len(largest)} kinds ({'+'.join(largest)}) needs as many rows in a micro-batch; "
                f"batch.per_core_batch_size is {layout.micro_batch_size}"
            )
        self._shares = np.array(list(shares.values())) / sum(shares.values())
        self._layout, self._seed, self._num_samples = layout, seed, len(kinds)
        self.rank, self.world_size = layout.rank, layout.world_size
        self.micro_batch_size, self.grad_accum_steps = layout.micro_batch_size, layout.grad_accum_steps
        self.global_batch = layout.world_size * layout.micro_batch_size * layout.grad_accum_steps
        self.steps_per_epoch = max(1, len(kinds) // self.global_batch)
        self._plan = lru_cache(maxsize=4)(self._drawn)
        self._pass = lru_cache(maxsize=64)(self._shuffled)
        self._blocks_before = [np.zeros(len(self.sets), np.int64)]  # how often each set came before a block

    def set_at(self, step: int) -> tuple[str, ...]:
        """The kinds of update `step` (from 0), equal on all ranks."""
        return self.sets[self._plan(step // _BLOCK)[step % _BLOCK]]

    def rows_of(self, chosen: Sequence[str]) -> dict[str, int]:
        """Rows of each kind in a micro-batch of this set; the first kinds get what is left over."""
        whole, rest = divmod(self.micro_batch_size, len(chosen))
        return {kind: whole + (number < rest) for number, kind in enumerate(chosen)}

    def micro_batches(self, start_step: int, num_steps: int) -> Iterator[list[SampleKey]]:
        """The rank's micro-batches of the updates [start_step, start_step + num_steps)."""
        for step in range(start_step, start_step + num_steps):
            for micro_step in range(self.grad_accum_steps):
                yield self._micro_batch(step, micro_step * self.world_size + self.rank)

    def global_batch_at(self, step: int) -> list[SampleKey]:
        """The samples of an update on all ranks, in their order."""
        parts = range(self.world_size * self.grad_accum_steps)
        return [key for part in parts for key in self._micro_batch(step, part)]

    def order_hash(self) -> str:
        """Changes with the seed, the samples' number and kinds, and the weights; to be compared between ranks."""
        plan = " ".join(f"{kind}:{len(members)}" for kind, members in self._members.items())
        sets = " ".join("+".join(self.set_at(step)) for step in range(_BLOCK))
        first = " ".join(str(key.index) for key in self.global_batch_at(0))
        return hashlib.sha256(f"{plan} {sets} {first}".encode()).hexdigest()[:16]

    def _micro_batch(self, step: int, part: int) -> list[SampleKey]:
        """Part 0 to world_size * grad_accum_steps - 1 of an update. A key's epoch is the pass over its kind."""
        rows = self.rows_of(self.set_at(step))
        keys = []
        for kind, count in rows.items():
            first = self._drawn_before(kind, step) + part * count
            for position in range(first, first + count):
                number, place = divmod(position, len(self._members[kind]))
                keys.append(SampleKey(number, int(self._pass(kind, number)[place])))
        return keys

    def _drawn_before(self, kind: str, step: int) -> int:
        """Samples of a kind that all ranks have seen before an update."""
        block, place = divmod(step, _BLOCK)
        while len(self._blocks_before) <= block:
            whole = np.bincount(self._plan(len(self._blocks_before) - 1), minlength=len(self.sets))
            self._blocks_before.append(self._blocks_before[-1] + whole)
        times = self._blocks_before[block] + np.bincount(self._plan(block)[:place], minlength=len(self.sets))
        per_micro_batch = sum(
            int(count) * self.rows_of(chosen).get(kind, 0) for count, chosen in zip(times, self.sets, strict=True)
        )
        return per_micro_batch * self.world_size * self.grad_accum_steps

    def _drawn(self, block: int) -> np.ndarray:
        """int64 [1024]: numbers of the sets of a block's updates."""
        digest = hashlib.sha256(f"{self._seed}:sets:{block}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        return rng.choice(len(self.sets), size=_BLOCK, p=self._shares)

    def _shuffled(self, kind: str, number: int) -> np.ndarray:
        """The members of a kind in the order of their pass `number`."""
        members = self._members[kind]
        return members[Shuffled(len(members), self._seed).order(number).numpy()]


class EvaluationBatch(NamedTuple):
    """Indices of one kind, filled up by repetition; only the first num_real count."""

    indices: tuple[int, ...]
    num_real: int


def evaluation_batches(kinds: Sequence[str], layout: Layout) -> list[EvaluationBatch]:
    """The rank's share of all samples, each counted once; as many batches of the same kinds on every rank."""
    batches = []
    size = layout.micro_batch_size
    for kind in sorted(set(kinds)):
        members = [index for index, found in enumerate(kinds) if found == kind]
        for first in range(0, len(members), size * layout.world_size):
            start = first + layout.rank * size
            own = members[start : start + size]
            filled = [*own, *(members[number % len(members)] for number in range(size - len(own)))]
            batches.append(EvaluationBatch(tuple(filled), len(own)))
    return batches


def _check_known(named: set[str], kinds: Sequence[str]) -> None:
    unknown = sorted(named - set(kinds))
    if unknown:
        raise ValueError(
            f"sampling.weights names {', '.join(unknown)}; the training samples are of the kinds: "
            f"{', '.join(sorted(set(kinds))) or 'none'}"
        )
