"""The configuration of a brain/stimulus autoencoder: which film, which network, how its losses are weighed.

Sections that every task has (batch, optim, train, checkpoint ...) are those of RunConfig.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from data_setup.loaders import LoaderSettings
from data_setup.neuro.film_settings import FilmDataSettings
from oct_foundation.film import FilmShape
from oct_foundation.losses.balance import BalanceKind
from oct_foundation.losses.normalized import AudioOutput, FilmLossSettings
from oct_foundation.models.brain_config import BrainAutoencoderConfig, Norm, Preset, preset_config
from pretraining.config import RunConfig
from pretraining.sections import check_least


@dataclass(frozen=True, kw_only=True)
class FilmSection(FilmDataSettings):
    """Where film and brains come from (docs/autoencoder.md), and who reads them."""

    loader: LoaderSettings = field(default_factory=LoaderSettings)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSection:
    """preset: documented (3.5 billion parameters), small or tiny; other keys change one thing of it, null: as it is.
    Those behind audio_frames_per_tr are the fields of BrainAutoencoderConfig. Checkpoints hold all of them with their
    values, so that a preset that is changed one day leaves old checkpoints what they are.

    n_voxels, text_dim, audio_codebooks, audio_frames_per_tr: what the files of data.source=folder hold, needed there,
    so that a run can be checked and compiled without them.
    """

    preset: Preset = "small"
    n_voxels: int | None = None
    text_dim: int | None = None
    audio_codebooks: int | None = None
    audio_frames_per_tr: int | None = None
    video_hidden: tuple[int, ...] | None = None
    video_features: int | None = None
    audio_hidden: tuple[int, ...] | None = None
    audio_features: int | None = None
    text_hidden: tuple[int, ...] | None = None
    text_features: int | None = None
    joint_widths: tuple[int, ...] | None = None
    bottleneck_dim: int | None = None
    fmri_hidden: int | None = None
    trunk_widths: tuple[int, ...] | None = None
    video_decoder: tuple[int, ...] | None = None
    audio_decoder: tuple[int, ...] | None = None
    text_decoder: tuple[int, ...] | None = None
    video_dropout: tuple[float, ...] | None = None
    audio_dropout: tuple[float, ...] | None = None
    text_dropout: tuple[float, ...] | None = None
    joint_dropout: tuple[float, ...] | None = None
    fmri_dropout: float | None = None
    decoder_dropout: float | None = None
    norm: Norm | None = None
    audio_output: AudioOutput | None = None
    code_width: int | None = None
    gradient_checkpointing: bool | None = None

    def shape(self, data: FilmDataSettings) -> FilmShape:
        """Of a TR; raises ValueError where a folder is read and its sizes are not given."""
        if data.source == "phantom":
            return data.phantom.shape
        sizes = {
            "n_voxels": self.n_voxels,
            "text_dim": self.text_dim,
            "audio_codebooks": self.audio_codebooks,
            "audio_frames_per_tr": self.audio_frames_per_tr,
        }
        if missing := [f"model.{name}" for name, size in sizes.items() if size is None]:
            raise ValueError(f"data.source=folder needs {', '.join(missing)}: how much the files hold of each")
        voxels, text_dim, codebooks, codes_per_tr = (int(size or 0) for size in sizes.values())
        return FilmShape(
            frames=data.pictures.frames,
            height=data.video_height,
            width=data.video_width,
            codebooks=codebooks,
            codes_per_tr=codes_per_tr,
            text_dim=text_dim,
            voxels=voxels,
            num_codes=data.num_codes,
        )

    def network(self, data: FilmDataSettings) -> BrainAutoencoderConfig:
        """The preset for these data, with what is changed of it."""
        preset = preset_config(self.preset, self.shape(data))
        changes = {name: value for name, value in vars(self).items() if value is not None and hasattr(preset, name)}
        return dataclasses.replace(preset, **changes)


@dataclass(frozen=True, kw_only=True)
class FilmLossSection(FilmLossSettings):
    """balance: how the modalities are weighed against each other, on top of their weights."""

    balance: BalanceKind = "fixed"


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """every_steps: updates between looks at the held-out TRs, null: an epoch. early_stopping_patience: so many of them
    without a score better by early_stopping_delta end the run, null: never.
    """

    every_steps: int | None = None
    early_stopping_patience: int | None = 20
    early_stopping_delta: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("every_steps", "early_stopping_patience"):
            if getattr(self, name) is not None:
                check_least(f"evaluation.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRunConfig(RunConfig):
    """A film and the brains that watched it (docs/autoencoder.md)."""

    task: Literal["autoencoder"] = "autoencoder"
    data: FilmSection = field(default_factory=FilmSection)
    model: AutoencoderSection = field(default_factory=AutoencoderSection)
    loss: FilmLossSection = field(default_factory=FilmLossSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)

    fixed_sections: ClassVar[tuple[str, ...]] = ("task", "seed", "model", "loss")
    short_names: ClassVar[dict[str, str]] = {"model": "model.preset", "max_steps": "train.max_steps"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network.norm == "batch" and self.batch.per_core_batch_size < 2:
            raise ValueError(
                "model.norm=batch takes mean and deviation over the samples of a device; batch.per_core_batch_size is "
                f"{self.batch.per_core_batch_size}, at least 2 are needed, or model.norm=layer"
            )

    @property
    def network(self) -> BrainAutoencoderConfig:
        """The model's shape on these data."""
        return self.model.network(self.data)

    def to_dict(self) -> dict[str, object]:
        """Plain nested values, with every width of the network in `model`."""
        plain, network = super().to_dict(), dataclasses.asdict(self.network)
        own = {name: network.get(name, value) for name, value in vars(self.model).items()}
        return plain | {"model": own}

    @property
    def shape(self) -> str:
        """The network and what it reads."""
        film = self.network.shape
        return (
            f"{self.model.preset} ({film.frames} pictures of {film.height} x {film.width}, {film.audio_dim} codes, "
            f"text of {film.text_dim}, {film.voxels} voxels)"
        )
