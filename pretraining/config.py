"""The configuration of a run: YAML and key=value overrides -> one frozen `RunConfig`, or one readable error.

Each section is a dataclass beside its owner, which checks its own values; here they are put together and the checks
that need more than one section are made.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.prepare import PrepareSettings
from oct_foundation.geometry import PatchGrid
from oct_foundation.models.vjepa3d import VJEPA3DConfig
from oct_foundation.tracking.wandb import WandbSettings
from pretraining.config_file import ConfigError, load_settings, to_yaml
from pretraining.sections import (
    BatchSection,
    CheckpointSection,
    DataSection,
    DiagnosticsSection,
    OptimSection,
    RuntimeSection,
    TrainSection,
    check_range,
)

__all__ = ["ConfigError", "RunConfig", "load_config"]

# What people type most often, allowed on the command line.
_SHORT_NAMES = {"model": "model.preset", "max_steps": "train.max_steps"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run; saved, resolved, in its folder and with every checkpoint.

    init_from: V-JEPA 2 weights of `transformers` (folder or .safetensors) to start from, null: at random.
    """

    name: str = "octfm"
    output_dir: str | None = None  # null: runs/<name>-<time of start>
    seed: int = 0
    init_from: str | None = None
    model: VJEPA3DConfig
    mask: MaskSettings = field(default_factory=MaskSettings)
    data: DataSection = field(default_factory=DataSection)
    batch: BatchSection = field(default_factory=BatchSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    diagnostics: DiagnosticsSection = field(default_factory=DiagnosticsSection)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**32 - 1)
        _check_best_metric(self.checkpoint.best_metric)
        MaskGenerator(self.grid, self.mask)  # raises where the ratio leaves no context or no target

    @property
    def grid(self) -> PatchGrid:
        """How a volume is cut into tokens."""
        return PatchGrid(image_size=self.model.image_size, patch_size=self.model.patch_size)

    @property
    def prepare(self) -> PrepareSettings:
        """What makes a file of the source a volume of the working size."""
        return self.data.prepare_settings(self.model.image_size, split_seed=self.seed)

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
            f"chosen by it. Leave it null (the last one is delivered), or name a probe on labels that you do not "
            f"report, such as diag/probe/thickness_um with checkpoint.best_mode=max"
        )


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads YAML at `path`, applies `key.sub=value` overrides, checks everything.

    Raises ConfigError with one readable message; no device, network or data is touched.
    """
    started = os.environ.get("OCTFM_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    defaults = {"output_dir": f"runs/${{name}}-{started}"}  # the launcher names the time once for all processes
    return load_settings(RunConfig, Path(path), overrides, defaults=defaults, short_names=_SHORT_NAMES)
