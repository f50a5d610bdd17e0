"""The configuration of a run: YAML and key=value overrides -> one frozen configuration, or one readable error.

Each section is a dataclass beside its owner, which checks its own values. What every task has is here; a task's own
sections are in <task>_config.py, and `task:` in the file says which.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeVar, get_args

from oct_foundation.tracking.wandb_settings import WandbSettings
from pretraining.config_file import ConfigError, load_settings, to_yaml, value_of
from pretraining.sections import (
    BatchSection,
    CheckpointSection,
    OptimSection,
    RuntimeSection,
    TrainSection,
    check_range,
)

__all__ = ["ConfigError", "RunConfig", "TaskName", "load_config"]

TaskName = Literal["vjepa", "multimodal", "autoencoder"]
_Config = TypeVar("_Config", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What decides a run of any task; saved, resolved, in its folder and with every checkpoint.

    fixed_sections must not change when a run goes on from a checkpoint; short_names are what people type most often;
    moved_keys: what to say of keys that stand elsewhere in files of the program that a task was made after.
    """

    task: TaskName
    name: str = "octfm"
    output_dir: str | None = None  # null: runs/<name>-<time of start>
    seed: int = 0
    batch: BatchSection = field(default_factory=BatchSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)

    fixed_sections: ClassVar[tuple[str, ...]] = ("task", "seed")
    short_names: ClassVar[dict[str, str]] = {"max_steps": "train.max_steps"}
    moved_keys: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**32 - 1)
        _check_best_metric(self.checkpoint.best_metric)
        if self.train.max_steps is not None:
            self.optim.schedules(self.train.max_steps)  # it may become shorter with the data, but not longer

    def fed_by_rank(self, cores: int) -> Self:
        """As a rank sees it that feeds so many devices: as one device with so many times the batch."""
        batch = dataclasses.replace(self.batch, per_core_batch_size=self.batch.per_core_batch_size * cores)
        return dataclasses.replace(self, batch=batch)

    @property
    def shape(self) -> str:
        """The model and its input in a few words, for headlines."""
        return self.task

    def hint(self, total_steps: int) -> str:
        """What to say at the start of a run of so many updates; "" where there is nothing."""
        return ""

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return to_yaml(self)

    def to_dict(self) -> dict[str, object]:
        """Plain nested values, for checkpoints and trackers."""
        return dataclasses.asdict(self)


def _check_best_metric(metric: str | None) -> None:
    """Raises ValueError for a loss: the lowest of nine toy runs was a dead encoder's (docs/decisions/009)."""
    if metric is not None and "loss" in metric and not metric.startswith("diag/probe/"):
        raise ValueError(
            f"checkpoint.best_metric is {metric!r}: a low V-JEPA loss may be a dead encoder's, so no checkpoint is "
            f"chosen by a loss. Leave it null (the last one is delivered), or name a reading with best_mode=max: a "
            f"probe on labels that you do not report, such as diag/probe/thickness_um, or an autoencoder's diag/score"
        )


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads YAML at `path`, applies `key.sub=value` overrides, checks everything; `task` says what is read.

    Raises ConfigError with one readable message; no device, network or data is touched.
    """
    task = value_of("task", Path(path), overrides) or "vjepa"
    return load_as(_schema(task), path, overrides)


def load_as(schema: type[_Config], path: Path | str, overrides: Sequence[str] = ()) -> _Config:
    """As load_config, where only one task's configuration can be used; raises ConfigError for another's."""
    task = value_of("task", Path(path), overrides) or "vjepa"
    if not issubclass(_schema(task), schema):
        wanted = next(item.default for item in fields(schema) if item.name == "task")
        raise ConfigError(f"{path} says task: {task}, and this command is for task: {wanted} only")
    started = os.environ.get("OCTFM_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    defaults = {"output_dir": f"runs/${{name}}-{started}"}  # the launcher names the time once for all processes
    return load_settings(
        schema,
        Path(path),
        overrides,
        defaults=defaults,
        short_names=schema.short_names,
        moved_keys=schema.moved_keys,
    )


def _schema(task: str) -> type[RunConfig]:
    """Imported when it is named: each brings the settings of its own data and model."""
    match task:
        case "vjepa":
            from pretraining.vjepa_config import VJEPARunConfig

            return VJEPARunConfig
        case "multimodal":
            from pretraining.multimodal_config import MultimodalRunConfig

            return MultimodalRunConfig
        case "autoencoder":
            from pretraining.autoencoder_config import AutoencoderRunConfig

            return AutoencoderRunConfig
        case _:
            raise ConfigError(f"task is {task!r}; allowed: {', '.join(get_args(TaskName))}")
