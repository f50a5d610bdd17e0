"""The sections of a run's configuration that have no better home: data, batch, optimizer, training, runtime.

Each checks its own values when it is built and says, naming the key, what was found and what is allowed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_setup.loaders import LoaderSettings
from data_setup.views import ViewSettings
from oct_foundation.checkpoints.location import CheckpointLocation, LocalPath, parse_ckpt_dir
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.models.remat import REMATS, Remat
from oct_foundation.optim.schedules import Schedule, Schedules, ScheduleShape
from oct_foundation.runtime.base import Precision, Sharding
from oct_foundation.runtime.select import DeviceChoice
from oct_foundation.runtime.watchdog import WatchdogSettings
from pretraining.config_file import ConfigError
from pretraining.source_section import SourceSection

_SHORTEST_RUN = 500  # updates; below that it is a trial


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raises ValueError, naming the key, unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{key} must be between {low:g} and {high:g}; found {value}")


def check_least(key: str, value: int, least: int) -> None:
    """Raises ValueError, naming the key, unless value >= least."""
    if value < least:
        raise ValueError(f"{key} must be at least {least}; found {value}")


@dataclass(frozen=True, kw_only=True)
class DataSection(SourceSection):
    """Which volumes, and how they are made ready.

    cache_dir: where prepared volumes are kept, null: <output_dir>/prepared. domain_balance: `vendor` draws each
    maker equally often, whatever its share of the volumes; domain_weights draws them in these proportions instead.
    """

    cache_dir: str | None = None
    max_samples: int | None = None
    max_bad_fraction: float = 0.25
    domain_balance: Literal["none", "vendor"] = "none"
    domain_weights: dict[str, float] = field(default_factory=dict)
    views: ViewSettings = field(default_factory=ViewSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if self.max_samples is not None:
            check_least("data.max_samples", self.max_samples, 1)
        for domain, weight in self.domain_weights.items():
            check_range(f"data.domain_weights.{domain}", weight, 0.0, 1e6)
        if self.domain_weights and not sum(self.domain_weights.values()) > 0:
            raise ValueError("data.domain_weights must not all be 0")


@dataclass(frozen=True, kw_only=True)
class BatchSection:
    """global_batch_size = per_core_batch_size x devices x grad_accum_steps; `auto` derives the last."""

    global_batch_size: int = 32
    per_core_batch_size: int = 1
    grad_accum_steps: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_least("batch.global_batch_size", self.global_batch_size, 1)
        check_least("batch.per_core_batch_size", self.per_core_batch_size, 1)
        if self.grad_accum_steps != "auto":
            check_least("batch.grad_accum_steps", self.grad_accum_steps, 1)

    def accumulation(self, world_size: int) -> int:
        """Micro-steps per update on `world_size` devices; raises ConfigError naming the values that work."""
        per_micro_step = self.per_core_batch_size * world_size
        found = (
            f"batch.global_batch_size={self.global_batch_size}, batch.per_core_batch_size={self.per_core_batch_size}, "
            f"devices={world_size}, batch.grad_accum_steps={self.grad_accum_steps}"
        )
        if self.grad_accum_steps == "auto":
            if self.global_batch_size % per_micro_step:
                lower = self.global_batch_size // per_micro_step * per_micro_step
                near = [size for size in (lower, lower + per_micro_step) if size]
                cores = [
                    n for n in range(1, self.global_batch_size + 1) if self.global_batch_size % (n * world_size) == 0
                ]
                raise ConfigError(
                    f"the global batch does not divide over the devices: {found}. Set batch.global_batch_size to "
                    f"one of {near}" + (f", or batch.per_core_batch_size to one of {cores}" if cores else "")
                )
            return self.global_batch_size // per_micro_step
        product = per_micro_step * self.grad_accum_steps
        if product != self.global_batch_size:
            steps, rest = divmod(self.global_batch_size, per_micro_step)
            remedy = f"batch.global_batch_size={product}"
            if steps and not rest:
                remedy = f"batch.grad_accum_steps={steps} (or auto), or {remedy}"
            raise ConfigError(
                f"global_batch_size must be per_core_batch_size x devices x grad_accum_steps = {product}: {found}. "
                f"Set {remedy}"
            )
        return self.grad_accum_steps


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """AdamW, its schedules, clipping and the EMA teacher's momentum."""

    base_lr: float = 1e-4
    schedule: ScheduleShape = "constant"
    warmup_steps: int = 0
    start_lr: float = 0.0
    final_lr: float = 0.0
    decay_steps: int = 0
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    ema_momentum: float = 0.998
    final_ema_momentum: float = 1.0
    max_skipped_in_a_row: int = 10

    def __post_init__(self) -> None:
        for name in ("base_lr", "start_lr", "final_lr", "weight_decay"):
            check_range(f"optim.{name}", getattr(self, name), 0.0, 10.0)
        for name in ("ema_momentum", "final_ema_momentum"):
            check_range(f"optim.{name}", getattr(self, name), 0.0, 1.0)
        for beta in self.betas:
            check_range("optim.betas", beta, 0.0, 0.999999)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm must be above 0, or null to measure only; found {self.clip_norm}")
        check_least("optim.max_skipped_in_a_row", self.max_skipped_in_a_row, 1)

    def schedules(self, total_steps: int) -> Schedules:
        """The three scalars as pure functions of the step, over a run of `total_steps` updates."""
        wd_final = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        return Schedules(
            learning_rate=Schedule(
                shape=self.schedule,
                start=self.start_lr,
                peak=self.base_lr,
                final=self.final_lr,
                warmup_steps=self.warmup_steps,
                decay_steps=self.decay_steps,
                total_steps=total_steps,
            ),
            weight_decay=Schedule(shape="cosine", peak=self.weight_decay, final=wd_final, total_steps=total_steps),
            ema_momentum=Schedule(  # linear over the whole run, as I-JEPA and V-JEPA do
                shape="wsd",
                peak=self.ema_momentum,
                final=self.final_ema_momentum,
                decay_steps=total_steps,
                total_steps=total_steps,
            ),
        )

    def lagging_teacher(self, total_steps: int) -> str:
        """What to say where the teacher averages over more than a quarter of the run; "" elsewhere and for trials.

        Over 31 % of 800 updates the features became worse than over 12 % (docs/defaults.md).
        """
        updates = min(1 / (1 - self.ema_momentum), total_steps) if self.ema_momentum < 1 else total_steps
        if total_steps < _SHORTEST_RUN or updates <= total_steps / 4:
            return ""
        return (
            f"optim.ema_momentum={self.ema_momentum:g} averages over {updates:.0f} of this run's {total_steps:,} "
            f"updates: the teacher lags behind. In so short a run about {1 - 8 / total_steps:.2g} gives better "
            "features (docs/defaults.md)"
        )


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How long, in which precision, and what is said on the way.

    precision: of matrix work; bf16 is fp32 where a processor would emulate it. sharding: `full` splits weights,
    gradients and moments over the devices, for models that do not fit one. remat: which transformer blocks throw their
    activations away and compute them again in the backward, for memory. compile: torch.compile of the blocks, on CPU
    and CUDA (XLA compiles the whole step anyway).
    """

    epochs: int = 1
    max_steps: int | None = None
    precision: Precision = "bf16"
    sharding: Sharding = "none"
    remat: Remat = "none"
    compile: bool = False
    drop_last: bool = True
    log_every_steps: int = 10
    val_every_steps: int | None = None  # null: at the end only

    def __post_init__(self) -> None:
        if self.remat not in REMATS:
            raise ValueError(f"train.remat is {self.remat!r}; allowed: {', '.join(REMATS)}")
        for name in ("epochs", "max_steps", "log_every_steps", "val_every_steps"):
            if getattr(self, name) is not None:
                check_least(f"train.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class DiagnosticsSection:
    """How a run is watched through held-out volumes (docs/diagnostics.md).

    every_steps: updates between readings, null: so many that readings take 2 % of the time. num_volumes: of the
    validation volumes, the first so many. labels: a table of what to probe for at each reading (docs/diagnostics.md
    says how it names volumes), `phantoms` for what is known of generated ones, null: no probes. stop_on_alarm: end the
    run, saved, when features have collapsed.
    """

    enabled: bool = True
    every_steps: int | None = None
    num_volumes: int = 128
    labels: str | None = None
    stop_on_alarm: bool = False

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            check_least("diagnostics.every_steps", self.every_steps, 1)
        check_least("diagnostics.num_volumes", self.num_volumes, 2)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(CheckpointSettings):
    """Where checkpoints go, and whether a run in the same place goes on from them.

    enabled: false is the only way to switch them off; an unset ckpt_dir (null, "", "None") is the run's own folder.
    """

    enabled: bool = True
    ckpt_dir: str | None = "${output_dir}/checkpoints"
    resume: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ckpt_dir is None or "${" not in self.ckpt_dir:
            parse_ckpt_dir(self.ckpt_dir)

    def location(self, output_dir: Path) -> CheckpointLocation:
        """The place that ckpt_dir names, <output_dir>/checkpoints where it is unset."""
        default = LocalPath(path=output_dir.absolute() / "checkpoints")
        return parse_ckpt_dir(self.ckpt_dir) or default


@dataclass(frozen=True, kw_only=True)
class RuntimeSection:
    """device: `--device` of the launcher sets it. num_processes: ranks on this host; null: one per visible GPU, or one
    on a CPU. watchdog: how long is too long.
    """

    device: DeviceChoice = "auto"
    num_processes: int | None = None
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)

    def __post_init__(self) -> None:
        if self.num_processes is None:
            return
        check_least("runtime.num_processes", self.num_processes, 1)
        if self.num_processes > 1 and self.device not in ("cpu", "cuda"):
            raise ValueError(
                f"runtime.num_processes={self.num_processes} needs runtime.device=cpu or cuda; found {self.device}. "
                f"XLA starts a process per TPU chip by itself: leave it at null there"
            )
