"""The configuration of a run: YAML and key=value overrides -> one frozen `RunConfig`, or one readable error.

Each section is a dataclass beside its owner, which checks its own values; here they are put together and the checks
that need more than one section are made. OmegaConf reads, merges and converts; nothing else of it leaves this file.
"""

import dataclasses
import difflib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from data_setup.loaders import LoaderSettings
from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.phantom import PhantomSettings
from data_setup.prepare import PrepareSettings
from data_setup.transforms import ViewSettings
from oct_foundation.checkpoints.location import parse_ckpt_dir
from oct_foundation.checkpoints.manager import CheckpointSettings
from oct_foundation.geometry import PatchGrid
from oct_foundation.models.vjepa3d import VJEPA3DConfig
from oct_foundation.optim.schedules import Schedule, Schedules, ScheduleShape
from oct_foundation.runtime.base import Precision
from oct_foundation.runtime.select import DeviceChoice
from oct_foundation.tracking.wandb import WandbSettings


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the key, what was found and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which volumes, and how they are made ready."""

    source: Literal["phantom", "directory"] = "phantom"
    root: str | None = None
    cache_dir: str | None = None  # null: <output_dir>/prepared
    max_samples: int | None = None
    val_fraction: float = 0.1
    max_bad_fraction: float = 0.25
    any_sop_class: bool = False
    include_nonvolumetric: bool = False
    allow_burned_in: bool = False
    prepare_workers: int = 2
    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        if self.source == "directory" and not self.root:
            raise ValueError("data.root is needed with data.source=directory: the folder that holds the DICOM files")
        _check_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        _check_least("data.prepare_workers", self.prepare_workers, 1)
        if self.max_samples is not None:
            _check_least("data.max_samples", self.max_samples, 1)


@dataclass(frozen=True, kw_only=True)
class BatchSection:
    """global_batch_size = per_core_batch_size x devices x grad_accum_steps; `auto` derives the last."""

    global_batch_size: int = 32
    per_core_batch_size: int = 1
    grad_accum_steps: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_least("batch.global_batch_size", self.global_batch_size, 1)
        _check_least("batch.per_core_batch_size", self.per_core_batch_size, 1)
        if self.grad_accum_steps != "auto":
            _check_least("batch.grad_accum_steps", self.grad_accum_steps, 1)

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
            _check_range(f"optim.{name}", getattr(self, name), 0.0, 10.0)
        for name in ("ema_momentum", "final_ema_momentum"):
            _check_range(f"optim.{name}", getattr(self, name), 0.0, 1.0)
        for beta in self.betas:
            _check_range("optim.betas", beta, 0.0, 0.999999)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm must be above 0, or null to measure only; found {self.clip_norm}")
        _check_least("optim.max_skipped_in_a_row", self.max_skipped_in_a_row, 1)

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


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How long, in which precision, and what is said on the way."""

    epochs: int = 1
    max_steps: int | None = None
    precision: Precision = "bf16"
    drop_last: bool = True
    log_every_steps: int = 10
    val_every_steps: int | None = None  # null: at the end only

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "log_every_steps", "val_every_steps"):
            if getattr(self, name) is not None:
                _check_least(f"train.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(CheckpointSettings):
    """Where checkpoints go, and whether a run in the same place goes on from them."""

    ckpt_dir: str | None = "${output_dir}/checkpoints"
    resume: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ckpt_dir is None or "${" not in self.ckpt_dir:
            parse_ckpt_dir(self.ckpt_dir)


@dataclass(frozen=True, kw_only=True)
class RuntimeSection:
    """`--device` of the launcher sets the first; the second starts gloo processes on a CPU."""

    device: DeviceChoice = "auto"
    num_processes: int = 1

    def __post_init__(self) -> None:
        _check_least("runtime.num_processes", self.num_processes, 1)
        if self.num_processes > 1 and self.device != "cpu":
            raise ValueError(
                f"runtime.num_processes={self.num_processes} starts CPU processes and needs runtime.device=cpu; found "
                f"{self.device}. GPUs are started by torchrun, TPU chips by xmp.spawn: leave it at 1 there"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run; saved, resolved, in its folder and with every checkpoint."""

    name: str = "octfm"
    output_dir: str | None = None  # null: runs/<name>-<time of start>
    seed: int = 0
    model: VJEPA3DConfig
    mask: MaskSettings = field(default_factory=MaskSettings)
    data: DataSection = field(default_factory=DataSection)
    batch: BatchSection = field(default_factory=BatchSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)

    def __post_init__(self) -> None:
        _check_range("seed", self.seed, 0, 2**32 - 1)
        MaskGenerator(self.grid, self.mask)  # raises where the ratio leaves no context or no target

    @property
    def grid(self) -> PatchGrid:
        """How a volume is cut into tokens."""
        return PatchGrid(image_size=self.model.image_size, patch_size=self.model.patch_size)

    @property
    def prepare(self) -> PrepareSettings:
        """What makes a file of the source a volume of the working size."""
        return PrepareSettings(
            image_size=self.model.image_size,
            any_sop_class=self.data.any_sop_class,
            include_nonvolumetric=self.data.include_nonvolumetric,
            allow_burned_in=self.data.allow_burned_in,
            val_fraction=self.data.val_fraction,
            split_seed=self.seed,
        )

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return OmegaConf.to_yaml(OmegaConf.structured(self))

    def to_dict(self) -> dict[str, object]:
        """Plain nested values, for checkpoints and trackers."""
        return dataclasses.asdict(self)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads YAML at `path`, applies `key.sub=value` overrides, checks everything.

    Raises ConfigError with one readable message; no device, network or data is touched.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist" + _beside(path))
    wrong = [item for item in overrides if "=" not in item]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r} is not of the form key=value, for example train.max_steps=10")
    given: list[DictConfig] = []
    try:
        given = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]  # type: ignore[list-item]
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *given)
        if merged.output_dir is None:
            merged = OmegaConf.merge(merged, {"output_dir": f"runs/{merged.name}-{_start_stamp()}"})
        config = OmegaConf.to_object(merged)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ConfigError(f"{path}: unknown key {error.full_key!r}{_nearest(str(error.full_key))}") from None
    except MissingMandatoryValue as error:
        raise ConfigError(f"{path}: {error.full_key} has no value, and no default exists for it") from None
    except OmegaConfBaseException as error:
        key = error.full_key or _culprit(given)
        raise ConfigError(f"{path}: {key}: {str(error.msg or error).splitlines()[0]}") from None
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    assert isinstance(config, RunConfig)
    return config


def _start_stamp() -> str:
    """Time of start; the launcher names it once, so that all processes of one job agree."""
    return os.environ.get("OCTFM_STARTED") or time.strftime("%Y%m%d-%H%M%S")


def _culprit(given: Sequence[DictConfig]) -> str:
    """The key that OmegaConf refuses without naming it (a tuple of the wrong length): each is tried by itself."""
    schema = OmegaConf.structured(RunConfig)
    for source in given:
        for key in _leaves(OmegaConf.to_container(source)):
            try:
                OmegaConf.merge(schema, _only(source, key))
            except OmegaConfBaseException:
                return key
    return "a value"


def _leaves(node: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in nested dicts that is no dict."""
    if not isinstance(node, dict):
        yield prefix
        return
    for name, value in node.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))


def _only(source: DictConfig, key: str) -> DictConfig:
    """`source` reduced to one key."""
    reduced = OmegaConf.create({})
    OmegaConf.update(reduced, key, OmegaConf.select(source, key))
    return reduced


def _all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(kind):
        yield prefix + entry.name
        if dataclasses.is_dataclass(entry.type) and isinstance(entry.type, type):
            yield from _all_keys(entry.type, f"{prefix}{entry.name}.")


def _nearest(key: str) -> str:
    """Known keys that look like `key`, or whose last word does: a misplaced key is as common as a misspelt one."""
    known = list(_all_keys(RunConfig))
    last = key.rsplit(".", 1)[-1]
    by_last: dict[str, list[str]] = {}
    for candidate in known:
        by_last.setdefault(candidate.rsplit(".", 1)[-1], []).append(candidate)
    close = [name for word in difflib.get_close_matches(last, by_last, n=3, cutoff=0.7) for name in by_last[word]]
    close += [name for name in difflib.get_close_matches(key, known, n=3, cutoff=0.7) if name not in close]
    if close:
        return f"; did you mean {' or '.join(close[:3])}?"
    parent = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = [name for name in known if name.startswith(parent) and "." not in name[len(parent) :]]
    return f"; allowed here: {', '.join(siblings)}"


def _beside(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    found = sorted(str(other) for other in folder.glob("*.yaml"))
    return f"; there are: {', '.join(found)}" if found else ""


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key} must be between {low:g} and {high:g}; found {value}")


def _check_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key} must be at least {least}; found {value}")
