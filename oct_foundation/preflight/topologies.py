"""TPU slices by the names they are ordered with: what the compiler calls them, and what their chips can do.

Figures of chips are those of the Cloud TPU documentation (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; read in
2026-11), bar v4's interconnect, which the page does not give; it is half of what Google announced for v5p.
"""

from dataclasses import dataclass, field
from math import prod

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device of a run; rates per second, bytes in one direction over all links of the interconnect together."""

    generation: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    cores_in_names: int = 1  # how many TensorCores of a chip the names of slices count


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A slice: `shape` of chips, as the compiler is told."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    compiler_name: str
    compiler_arguments: dict[str, object] = field(default_factory=dict)

    @property
    def num_chips(self) -> int:
        """Ranks of a run: one a chip (v4 and v5p join their two cores)."""
        return prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        """4, but that a 2-D slice of up to 8 chips is one machine."""
        return self.num_chips if len(self.shape) == 2 and self.num_chips <= 8 else 4


V4 = Chip(
    generation="v4",
    bf16_flops=275e12,
    hbm_bytes=32 * GIB,
    hbm_bandwidth=1.2e12,
    link_bandwidth=300e9,  # 2,400 Gbit/s; not on the documentation's page, 600 GB/s of v5p halved
    cores_in_names=2,
)
V5E = Chip(generation="v5e", bf16_flops=197e12, hbm_bytes=16 * GIB, hbm_bandwidth=819e9, link_bandwidth=200e9)
V5P = Chip(
    generation="v5p",
    bf16_flops=459e12,
    hbm_bytes=95 * GIB,
    hbm_bandwidth=2.765e12,
    link_bandwidth=600e9,
    cores_in_names=2,
)
V6E = Chip(generation="v6e", bf16_flops=918e12, hbm_bytes=32 * GIB, hbm_bandwidth=1.6e12, link_bandwidth=400e9)

_SHAPES: tuple[tuple[Chip, tuple[tuple[int, ...], ...]], ...] = (
    (V4, ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))),
    (V5E, ((1, 1), (2, 2), (2, 4), (4, 4))),
    (V5P, ((2, 2, 1), (2, 2, 2), (2, 2, 4))),
    (V6E, ((1, 1), (2, 2), (2, 4), (4, 4))),
)


def _topology(chip: Chip, shape: tuple[int, ...]) -> Topology:
    """The compiler wants to hear that a 3-D chip runs its two cores as one; a single 2-D chip is a host of its own."""
    arguments: dict[str, object] = {}
    if len(shape) == 3:
        arguments = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "num_slices": 1}
    elif shape == (1, 1):
        arguments = {"chips_per_host_bounds": (1, 1, 1)}
    return Topology(
        name=f"{chip.generation}-{prod(shape) * chip.cores_in_names}",
        chip=chip,
        shape=shape,
        compiler_name=f"{chip.generation}:{'x'.join(map(str, shape))}",
        compiler_arguments=arguments,
    )


TOPOLOGIES = {found.name: found for chip, shapes in _SHAPES for found in (_topology(chip, shape) for shape in shapes)}


def topology(name: str) -> Topology:
    """The slice of that name; `v5litepod-N` is v5e-N. Raises ValueError naming what there is."""
    short = name.lower().replace("v5litepod-", "v5e-")
    if short not in TOPOLOGIES:
        raise ValueError(
            f"topology {name!r} is not known; there are {', '.join(TOPOLOGIES)} (v5litepod-N is v5e-N). Names count "
            f"TensorCores on v4 and v5p, two to a chip, and chips on v5e and v6e"
        )
    return TOPOLOGIES[short]
