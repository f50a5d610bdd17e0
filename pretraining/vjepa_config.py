"""The configuration of a V-JEPA3D run: volumes, masks, the model, and how it is watched."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.prepare import PrepareSettings
from oct_foundation.geometry import PatchGrid
from oct_foundation.models.vjepa3d import VJEPA3DConfig
from pretraining.config import RunConfig
from pretraining.sections import DataSection, DiagnosticsSection


@dataclass(frozen=True, kw_only=True)
class VJEPARunConfig(RunConfig):
    """init_from: V-JEPA 2 weights of `transformers` (folder or .safetensors) to start from, null: at random."""

    task: Literal["vjepa"] = "vjepa"
    init_from: str | None = None
    model: VJEPA3DConfig
    mask: MaskSettings = field(default_factory=MaskSettings)
    data: DataSection = field(default_factory=DataSection)
    diagnostics: DiagnosticsSection = field(default_factory=DiagnosticsSection)

    fixed_sections: ClassVar[tuple[str, ...]] = ("task", "model", "mask", "seed")
    short_names: ClassVar[dict[str, str]] = {"model": "model.preset", "max_steps": "train.max_steps"}

    def __post_init__(self) -> None:
        super().__post_init__()
        MaskGenerator(self.grid, self.mask)  # raises where the ratio leaves no context or no target

    @property
    def shape(self) -> str:
        """`vit_small [64, 384, 384]`."""
        return f"{self.model.preset} {list(self.model.image_size)}"

    def hint(self, total_steps: int) -> str:
        """Where the teacher would lag behind."""
        return self.optim.lagging_teacher(total_steps)

    @property
    def grid(self) -> PatchGrid:
        """How a volume is cut into tokens."""
        return PatchGrid(image_size=self.model.image_size, patch_size=self.model.patch_size)

    @property
    def prepare(self) -> PrepareSettings:
        """What makes a file of the source a volume of the working size."""
        return self.data.prepare_settings(self.model.image_size, split_seed=self.seed)
