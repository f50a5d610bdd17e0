"""What a compiled step cannot beat on a slice: the time of its arithmetic, of its memory traffic, of its reductions.

The largest of the three bounds the step: a real one is slower, since they overlap imperfectly. All of it is as good as
the bytes that it is given: with the compiler's count, a high one, a chip that keeps much on the chip may be faster.
"""

from dataclasses import dataclass
from typing import Literal

from oct_foundation.preflight.topologies import Topology

Limit = Literal["compute", "memory", "network"]
# What the allocator can really hand out: the runtime keeps some, and fragments cost some (torch_xla.md, section 4).
USABLE_HBM = 0.9


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one chip does in one optimizer update.

    flops: of the model, by arithmetic; bytes_moved: to and from HBM, kernels included; reduced_bytes: all-reduced over
    the chips; num_volumes: that this chip trains on.
    """

    flops: float
    bytes_moved: float
    reduced_bytes: float
    num_volumes: int


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one update by what limits it, and what follows for the slice."""

    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    mfu_bound: float
    volumes_per_second_bound: float

    @property
    def seconds(self) -> float:
        """The largest of the three."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def limit(self) -> Limit:
        """Which of the three it is."""
        times: dict[Limit, float] = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "network": self.network_seconds,
        }
        return max(times, key=lambda name: times[name])


def all_reduce_bytes(payload: float, num_chips: int) -> float:
    """What a chip sends in a ring all-reduce of `payload` bytes: 2 (n - 1) / n of them."""
    return 2 * (num_chips - 1) / num_chips * payload


def roofline(work: Work, topology: Topology) -> Roofline:
    """The bounds of `work` on every chip of `topology`; links count as if all were used at once."""
    chip = topology.chip
    compute = work.flops / chip.bf16_flops
    memory = work.bytes_moved / chip.hbm_bandwidth
    network = all_reduce_bytes(work.reduced_bytes, topology.num_chips) / chip.link_bandwidth
    seconds = max(compute, memory, network)
    return Roofline(
        compute_seconds=compute,
        memory_seconds=memory,
        network_seconds=network,
        mfu_bound=compute / seconds,
        volumes_per_second_bound=work.num_volumes * topology.num_chips / seconds,
    )


def usable_hbm_bytes(topology: Topology) -> int:
    """How much a program may take of a chip's memory."""
    return int(USABLE_HBM * topology.chip.hbm_bytes)
