"""The configuration of a multi-modal run: which images, which model reads them, what becomes of absent branches.

Sections that every task has (batch, optim, train, checkpoint ...) are those of RunConfig.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from data_setup.loaders import LoaderSettings
from data_setup.neuro.open_data import NeuroDataSettings, image_source
from oct_foundation.losses.inactive import Policy, drift_warning
from oct_foundation.models.language import LanguageConfig
from oct_foundation.models.vision_language import VisionLanguageConfig
from oct_foundation.models.volume_patches import PatchLayout
from pretraining.config import RunConfig
from pretraining.sections import check_least

# Sections of the original's umbrella_llava_train.yaml whose keys have other places here (docs/multimodal.md).
_MOVED = {
    "dataset": (
        "write data, with json_file as data.path, train_size, val_size, test_size as data.val_fraction and "
        "data.test_fraction, img_size as size; a modality is off by null, not by study_sample: []"
    ),
    "trainer": (
        "write its max_epochs as train.epochs, learning_rate as optim.base_lr, warmup_steps and weight_decay below "
        "optim, per_device_batch_size as batch.per_core_batch_size, gradient_accumulation_steps as "
        "batch.grad_accum_steps, gradient_checkpointing as train.remat and model.language.gradient_checkpointing, "
        "logging_steps as train.log_every_steps, ckpt_dir as checkpoint.ckpt_dir, resume_training as "
        "checkpoint.resume, mixed_precision as train.precision"
    ),
}


@dataclass(frozen=True, kw_only=True)
class DatasetSection(NeuroDataSettings):
    """Which questions about which images, and who reads them; docs/multimodal.md shows the files."""

    loader: LoaderSettings = field(default_factory=LoaderSettings)


@dataclass(frozen=True, kw_only=True)
class PatchSection:
    """patch_size: voxels (and frames) of a patch along each axis, each a divisor of the image's. pool: patches along
    each axis that become one token of the language model, null: every patch is one.
    """

    patch_size: list[int]
    pool: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class VisionLanguageSection:
    """The vision tower (width, depth, num_heads), the patches of each modality, and the language model.

    hf_name: a causal language model of transformers by name or folder, with its tokenizer; null: a tiny Llama with
    random weights (language.*) that reads bytes, so that nothing is downloaded.
    """

    hf_name: str | None = None
    width: int = 192
    depth: int = 4
    num_heads: int = 3
    T1: PatchSection = field(default_factory=lambda: PatchSection(patch_size=[16, 16, 16]))
    rsfMRI: PatchSection = field(default_factory=lambda: PatchSection(patch_size=[16, 16, 16, 5]))
    dMRI: PatchSection = field(default_factory=lambda: PatchSection(patch_size=[16, 16, 16]))
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def network(self, shapes: dict[str, tuple[int, ...]]) -> VisionLanguageConfig:
        """For images of these shapes; raises ValueError where patches do not divide them."""
        layouts = {}
        for name, shape in shapes.items():
            section: PatchSection = getattr(self, name)
            pool = None if section.pool is None else tuple(section.pool)
            try:
                layouts[name] = PatchLayout(shape=shape, patch_size=tuple(section.patch_size), pool=pool)
            except ValueError as error:
                raise ValueError(f"model.{name}: {error}") from None
        language = LanguageConfig(**{**vars(self.language), "name": self.hf_name})
        return VisionLanguageConfig(
            modalities=layouts, language=language, width=self.width, depth=self.depth, num_heads=self.num_heads
        )


@dataclass(frozen=True, kw_only=True)
class AnswersSection:
    """every_steps: updates between looks at held-out questions. num_logged: samples of each kind whose generated
    answers are written down; max_new_tokens of each; max_samples: held-out samples that are scored, the first so many.
    """

    every_steps: int = 50
    num_logged: int = 2
    max_new_tokens: int = 16
    max_samples: int = 256

    def __post_init__(self) -> None:
        for name in ("every_steps", "num_logged", "max_new_tokens", "max_samples"):
            check_least(f"answers.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class MultimodalRunConfig(RunConfig):
    """inactive: what becomes of the branches of modalities that a batch lacks (docs/multimodal.md)."""

    task: Literal["multimodal"] = "multimodal"
    data: DatasetSection = field(default_factory=DatasetSection)
    model: VisionLanguageSection = field(default_factory=VisionLanguageSection)
    inactive: Policy = "skip"
    answers: AnswersSection = field(default_factory=AnswersSection)

    fixed_sections: ClassVar[tuple[str, ...]] = ("task", "seed", "model", "inactive")
    short_names: ClassVar[dict[str, str]] = {"model": "model.hf_name", "max_steps": "train.max_steps"}
    moved_keys: ClassVar[dict[str, str]] = _MOVED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.network  # noqa: B018 - raises where patches do not divide the images

    @property
    def network(self) -> VisionLanguageConfig:
        """The model's shape on these images."""
        return self.model.network({spec.name: spec.shape for spec in image_source(self.data).specs})

    def hint(self, total_steps: int) -> str:
        """How far absent branches will move, under the policies that move them."""
        optim = self.optim
        return drift_warning(self.inactive, learning_rate=optim.base_lr, eps=optim.eps, weight_decay=optim.weight_decay)

    @property
    def shape(self) -> str:
        """The images and the sizes of tower and language model."""
        images = ", ".join(f"{name} {list(layout.shape[1:])}" for name, layout in self.network.modalities.items())
        language = self.model.hf_name or f"Llama of {self.model.language.depth} x {self.model.language.width}"
        return f"tower {self.model.depth} x {self.model.width} ({images}), {language}"
