"""Trace + compiled programs + slice -> one estimate: does it fit, and what can it not beat."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from oct_foundation.preflight.compile_program import Compiled
from oct_foundation.preflight.roofline import Limit, Roofline, Work, roofline, usable_hbm_bytes
from oct_foundation.preflight.topologies import Topology
from pretraining.config import RunConfig
from pretraining.preflight.trace import Trace, TracedProgram
from pretraining.vjepa_config import VJEPARunConfig

Verdict = Literal["FITS", "DOES NOT FIT", "DOES NOT COMPILE", "RECOMPILES"]


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the configuration trains, where the number of training volumes is known; hours by the roofline."""

    volumes: int
    volumes_from: str
    steps_per_epoch: int
    steps: int
    hours: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one chip and one update: memory of the largest program, work and bounds of all; volumes/s of the slice.

    flops, bytes_accessed: as the compiler counts them, and what kernels move that state no cost; hbm_traffic_bytes: by
    the optimized programs' own placement, where XLA keeps much on the chip.
    """

    hbm_args_bytes: int
    hbm_out_bytes: int
    hbm_donated_bytes: int
    hbm_temp_bytes: int
    hbm_code_bytes: int
    hbm_idle_state_bytes: int
    hbm_total_bytes: int
    flops: float
    bytes_accessed: float
    hbm_traffic_bytes: int
    num_kernels: int
    collective_bytes: float
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    roofline_seconds: float
    limit: Limit
    mfu_bound: float
    volumes_per_second_bound: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What preflight found; every figure of one chip and one optimizer update, but where the name says otherwise."""

    config: RunConfig
    topology: Topology
    trace: Trace
    compiled: Mapping[str, Compiled]
    """By the program's name; the programs of the update, and the largest of validation."""
    num_volumes: int | None = None
    num_volumes_from: str = ""
    kind: str = ""

    @property
    def verdict(self) -> Verdict:
        """The first thing that is wrong, the worst first."""
        if not self.compiles:
            return "DOES NOT COMPILE"
        if not self.fits:
            return "DOES NOT FIT"
        if self.trace.train_graphs > self.trace.expected_train_graphs or self.trace.differing:
            return "RECOMPILES"
        return "FITS"

    @property
    def compiles(self) -> bool:
        """All programs do."""
        return all(found.compiles for found in self.compiled.values())

    @property
    def reason(self) -> str:
        """What the compiler said of the first program that it refused."""
        return next((found.reason for found in self.compiled.values() if not found.compiles), "")

    @property
    def largest(self) -> tuple[TracedProgram, Compiled]:
        """The program that takes most memory, with the state that it does not read but that stays on the chip."""
        return max(self._programs(), key=lambda pair: pair[1].total_bytes + self._idle_bytes(pair[1]))

    @property
    def hbm_total_bytes(self) -> int:
        """Arguments + outputs - donated + temporaries + code of the largest, and the state beside it."""
        found = self.largest[1]
        return found.total_bytes + self._idle_bytes(found)

    @property
    def fits(self) -> bool:
        """Whether the largest program takes no more than the usable share of a chip's memory."""
        return self.compiles and self.hbm_total_bytes <= usable_hbm_bytes(self.topology)

    @property
    def work(self) -> Work:
        """Of one update, its programs as often as they run."""
        runs = self._update()
        return Work(
            flops=self.trace.model_flops,
            bytes_moved=sum(times * _bytes_moved(found) for times, found in runs),
            reduced_bytes=sum(times * _as_all_reduced(found, self.topology.num_chips) for times, found in runs),
            num_volumes=self.trace.per_core_batch_size * self.trace.accumulation,
        )

    @property
    def roofline(self) -> Roofline:
        """The bounds of the update; asked for only where everything compiles."""
        return roofline(self.work, self.topology)

    @property
    def hbm_traffic_bytes(self) -> int:
        """What the update moves to and from HBM by the optimized program's own placement, kernels' operands once."""
        return sum(times * found.hlo.hbm_bytes for times, found in self._update() if found.hlo is not None)

    @property
    def length(self) -> Length | None:
        """None where nobody has said how many volumes there are."""
        if self.num_volumes is None or not self.compiles:
            return None
        global_batch, train = self.config.batch.global_batch_size, self.config.train
        whole, rest = divmod(self.num_volumes, global_batch)
        per_epoch = whole if train.drop_last or not rest else whole + 1
        steps = min(per_epoch * train.epochs, train.max_steps or per_epoch * train.epochs)
        return Length(
            volumes=self.num_volumes,
            volumes_from=self.num_volumes_from,
            steps_per_epoch=per_epoch,
            steps=steps,
            hours=steps * self.roofline.seconds / 3600,
        )

    @property
    def figures(self) -> "Figures":
        """What only compiled programs have."""
        largest, bound, work = self.largest[1], self.roofline, self.work
        return Figures(
            hbm_args_bytes=largest.args_bytes,
            hbm_out_bytes=largest.out_bytes,
            hbm_donated_bytes=largest.donated_bytes,
            hbm_temp_bytes=largest.temp_bytes,
            hbm_code_bytes=largest.code_bytes,
            hbm_idle_state_bytes=self._idle_bytes(largest),
            hbm_total_bytes=self.hbm_total_bytes,
            flops=sum(times * found.flops for times, found in self._update()),
            bytes_accessed=work.bytes_moved,
            hbm_traffic_bytes=self.hbm_traffic_bytes,
            num_kernels=sum(times * found.hlo.num_kernels for times, found in self._update() if found.hlo),
            collective_bytes=sum(times * _collective_bytes(found) for times, found in self._update()),
            compute_seconds=bound.compute_seconds,
            memory_seconds=bound.memory_seconds,
            network_seconds=bound.network_seconds,
            roofline_seconds=bound.seconds,
            limit=bound.limit,
            mfu_bound=bound.mfu_bound,
            volumes_per_second_bound=bound.volumes_per_second_bound,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the JSON that `octfm preflight --json` writes; figures are null where a program is refused."""
        trace, config = self.trace, self.config
        figures = asdict(self.figures) if self.compiles else {one.name: None for one in fields(Figures)}
        return {
            "verdict": self.verdict,
            "config": config.name,
            "topology": self.topology.name,
            "chips": self.topology.num_chips,
            "chips_per_host": self.topology.chips_per_host,
            "shape": config.shape,
            "kind": self.kind,
            **_vjepa_shape(config),
            "precision": config.train.precision,
            "sharding": config.train.sharding,
            "per_core_batch_size": trace.per_core_batch_size,
            "accumulation": trace.accumulation,
            "global_batch_size": config.batch.global_batch_size,
            "parameters": trace.parameters,
            "trainable_parameters": trace.trainable_parameters,
            "compiles": self.compiles,
            "reason": self.reason,
            "fits": self.fits,
            "train_graphs": trace.train_graphs,
            "expected_train_graphs": trace.expected_train_graphs,
            "differing_moments": trace.differing,
            "validate_graphs": trace.validate_graphs,
            "hbm_limit_bytes": self.topology.chip.hbm_bytes,
            "hbm_usable_bytes": usable_hbm_bytes(self.topology),
            "model_flops": trace.model_flops,
            **figures,
            "length": asdict(self.length) if self.length else None,
            "trace_seconds": trace.seconds,
            "compile_seconds": sum(one.seconds for one in self.compiled.values()),
            "compiler_peak_host_bytes": max((one.peak_host_bytes for one in self.compiled.values()), default=0),
            "versions": trace.versions | next((one.versions for one in self.compiled.values()), {}),
            "programs": {name: one.to_dict() for name, one in self.compiled.items()},
        }

    def _programs(self) -> list[tuple[TracedProgram, Compiled]]:
        return [(one, self.compiled[one.name]) for one in self.trace.programs if one.name in self.compiled]

    def _update(self) -> list[tuple[int, Compiled]]:
        """How often each compiled program runs in one update."""
        return [(traced.runs_per_update, found) for traced, found in self._programs() if traced.runs_per_update]

    def _idle_bytes(self, found: Compiled) -> int:
        """State that the last program of an update reads and this one does not: it stays in memory all the same."""
        return max(max(one.args_bytes for _, one in self._update()) - found.args_bytes, 0)


def _bytes_moved(found: Compiled) -> float:
    """What the compiler counts, and the kernels that it cannot look into and that state no cost."""
    return found.bytes_accessed + (found.hlo.silent_kernel_bytes if found.hlo is not None else 0)


def _collective_bytes(found: Compiled) -> int:
    """What the program's collectives produce on a chip."""
    return sum(found.hlo.collective_bytes.values()) if found.hlo is not None else 0


def _as_all_reduced(found: Compiled, num_chips: int) -> float:
    """Bytes whose all-reduce makes a chip send as much as the program's collectives.

    In a ring of n an all-reduce of b bytes sends 2 (n - 1) / n b; gathering b bytes, or exchanging them, half of it;
    reducing to a part of b bytes, (n - 1) b, since n b are reduced. A permutation sends what it produces.
    """
    n = num_chips
    if found.hlo is None or n == 1:
        return 0.0
    shares = {"all-reduce": 1, "all-gather": 1 / 2, "all-to-all": 1 / 2, "reduce-scatter": n / 2}
    permute = n / (2 * (n - 1))
    return sum(size * shares.get(kind, permute) for kind, size in found.hlo.collective_bytes.items())


def _vjepa_shape(config: RunConfig) -> dict[str, Any]:
    """Preset and image size, of a configuration that has them."""
    if not isinstance(config, VJEPARunConfig):
        return {}
    return {"preset": config.model.preset, "image_size": list(config.model.image_size)}


def training_volumes(config: RunConfig, given: int | None) -> tuple[int | None, str]:
    """How many volumes train, and who says so, as far as it is known without reading data."""
    if given is not None:
        return given, "--volumes"
    if not isinstance(config, VJEPARunConfig):
        return None, ""
    if config.data.max_samples is not None:
        return config.data.max_samples, "data.max_samples, if there are as many"
    if config.data.source == "phantom":
        return round(config.data.phantom.num_volumes * (1 - config.data.val_fraction)), "data.phantom.num_volumes"
    return None, ""
