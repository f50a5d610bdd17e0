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

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.prepare import PrepareSettings
from oct_foundation.geometry import PatchGrid
from oct_foundation.models.vjepa3d import VJEPA3DConfig
from oct_foundation.tracking.wandb import WandbSettings
from pretraining.sections import (
    BatchSection,
    CheckpointSection,
    ConfigError,
    DataSection,
    OptimSection,
    RuntimeSection,
    TrainSection,
    check_range,
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
        check_range("seed", self.seed, 0, 2**32 - 1)
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
