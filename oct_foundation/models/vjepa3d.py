"""V-JEPA on 3-D OCT volumes (arXiv 2404.08471): predict the teacher's features of hidden patches from visible ones.

Two aligned views and token indices enter, the loss leaves. Three networks: context encoder and predictor are
trained, the target encoder is the context encoder's moving average and never sees a gradient.
"""

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from oct_foundation.geometry import PatchGrid
from oct_foundation.losses.latent import LatentLoss, latent_loss, normalize_targets
from oct_foundation.models.compiled import compile_blocks
from oct_foundation.models.ema import update_teacher
from oct_foundation.models.encoder import Encoder
from oct_foundation.models.positions import RopeLayout
from oct_foundation.models.predictor import Predictor
from oct_foundation.models.remat import Remat, recompute

Preset = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_small_h128", "vit_base_h128", "vit_large_h128"]
Positions = Literal["sincos", "rotary"]


class Sizes(NamedTuple):
    """Width, depth and heads of encoder and predictor."""

    width: int
    depth: int
    num_heads: int
    predictor_width: int
    predictor_depth: int
    predictor_heads: int


PRESETS: dict[Preset, Sizes] = {
    "vit_tiny": Sizes(96, 4, 3, 96, 2, 3),  # for tests
    "vit_small": Sizes(384, 12, 6, 384, 4, 6),  # 29,082,624 trainable parameters at patch [4, 16, 16]
    "vit_base": Sizes(768, 12, 12, 384, 12, 12),
    "vit_large": Sizes(1024, 24, 16, 384, 12, 12),  # the smallest that V-JEPA 2 is published in
    # Heads as wide as a TPU's matrix unit, 128: with 64 half of it is idle in attention.
    "vit_small_h128": Sizes(384, 12, 3, 384, 4, 3),
    "vit_base_h128": Sizes(768, 12, 6, 384, 12, 3),
    "vit_large_h128": Sizes(1024, 24, 8, 384, 12, 3),
}


@dataclass(frozen=True, kw_only=True)
class VJEPA3DConfig:
    """What decides the shape of a VJEPA3D; sizes in voxels [D, H, W].

    rope_layout counts with rotary positions only; `vjepa2` is for V-JEPA 2's own weights (positions.py).
    """

    image_size: tuple[int, int, int]
    patch_size: tuple[int, int, int] = (4, 16, 16)
    preset: Preset = "vit_small"
    positions: Positions = "sincos"
    rope_layout: RopeLayout = "interleaved"
    loss: LatentLoss = "mse"
    in_channels: int = 1

    def __post_init__(self) -> None:
        grid = PatchGrid(image_size=self.image_size, patch_size=self.patch_size)
        object.__setattr__(self, "image_size", grid.image_size)
        object.__setattr__(self, "patch_size", grid.patch_size)
        choices = {
            "preset": tuple(PRESETS),
            "positions": ("sincos", "rotary"),
            "rope_layout": ("interleaved", "vjepa2"),
            "loss": ("mse", "smooth_l1", "l1"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"model.{key} is {getattr(self, key)!r}; allowed: {', '.join(allowed)}")
        if self.in_channels < 1:
            raise ValueError(f"model.in_channels must be at least 1 (OCT intensity: 1); found {self.in_channels}")

    @property
    def grid(self) -> PatchGrid:
        """How a volume is cut into tokens."""
        return PatchGrid(image_size=self.image_size, patch_size=self.patch_size)


class VJEPA3D(nn.Module):
    """Context encoder, predictor and EMA target encoder; `forward` is the only entry in training (DDP wraps it).

    `momentum` is the EMA momentum of the last `update_teacher`. Weights come from torch's global generator:
    call torch.manual_seed before building.
    """

    def __init__(self, config: VJEPA3DConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        sizes = PRESETS[config.preset]
        self.embed_dim = sizes.width
        self.momentum: float | torch.Tensor = 1.0
        rope_layout = config.rope_layout if config.positions == "rotary" else None
        self.context_encoder = Encoder(
            self.grid,
            in_channels=config.in_channels,
            width=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            rope_layout=rope_layout,
        )
        self.predictor = Predictor(
            self.grid.grid,
            encoder_width=sizes.width,
            width=sizes.predictor_width,
            depth=sizes.predictor_depth,
            num_heads=sizes.predictor_heads,
            rope_layout=rope_layout,
        )
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VJEPA3D":
        """As nn.Module.train, but the teacher stays in eval mode."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def forward(
        self,
        context_view: torch.Tensor,
        target_view: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        context_idx: torch.Tensor | None = None,
        target_idx: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss (float32 scalar), predictions float [B, Nt, E] and targets float32 [B, Nt, E], layer-normed.

        Views: [B, C, D, H, W], uint8 (standardised here, encoder.py) or float (standardised already).
        Training gives context_idx int64 [B, Nc] and target_idx int64 [B, Nt], disjoint: no shape depends on data.
        Interactive use may give mask instead: bool [B, N], True = hidden = target, as many in each row.
        Raises ValueError on shapes that do not fit, unequal rows, or anything but one of the two forms.
        """
        if mask is not None:
            if context_idx is not None or target_idx is not None:
                raise ValueError("give either mask or context_idx and target_idx; found both")
            context_idx, target_idx = mask_to_indices(mask)
        if context_idx is None or target_idx is None:
            raise ValueError("give mask, or both context_idx and target_idx; found neither in full")
        self._check_shapes(context_view, target_view, context_idx, target_idx)
        targets = self._targets(target_view, target_idx)
        context = self.context_encoder(context_view, context_idx)
        predictions = self.predictor(context, context_idx, target_idx)
        return latent_loss(predictions, targets, self.config.loss), predictions, targets

    @torch.no_grad()
    def _targets(self, target_view: torch.Tensor, target_idx: torch.Tensor) -> torch.Tensor:
        """The teacher sees the whole volume; its layer-normed features at the hidden patches: float32 [B, Nt, E]."""
        return normalize_targets(self.target_encoder(target_view, asked=target_idx))

    @torch.no_grad()
    def encode(self, volume: torch.Tensor) -> torch.Tensor:
        """Features of the EMA encoder, the one to keep: uint8 or float [B, C, D, H, W] -> float [B, N, E]."""
        self._check_view("volume", volume)
        return self.target_encoder(volume)

    def update_teacher(self, momentum: float | torch.Tensor) -> None:
        """Sets teacher to momentum * teacher + (1 - momentum) * student, after the optimizer's update."""
        self.momentum = momentum
        update_teacher(self.target_encoder, self.context_encoder, 1 - momentum)

    def recompute(self, remat: Remat) -> None:
        """Which blocks of the trained networks are computed again in the backward (remat.py)."""
        recompute((self.context_encoder, self.predictor), remat)

    def compile_blocks(self) -> None:
        """Blocks of all three networks through torch.compile, in place (compiled.py); not for XLA."""
        compile_blocks((self.context_encoder, self.predictor, self.target_encoder))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Context encoder and predictor."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def num_trainable_parameters(self) -> int:
        """Without the teacher; position tables are constants and count nowhere."""
        return sum(parameter.numel() for parameter in self.trainable_parameters())

    def _check_view(self, name: str, view: torch.Tensor) -> None:
        expected = (self.config.in_channels, *self.config.image_size)
        if view.ndim != 5 or view.shape[1:] != expected:
            raise ValueError(
                f"{name} must be [B, C, D, H, W] = [B, {', '.join(map(str, expected))}]; found {list(view.shape)}"
            )

    def _check_shapes(
        self, context_view: torch.Tensor, target_view: torch.Tensor, context_idx: torch.Tensor, target_idx: torch.Tensor
    ) -> None:
        """Shapes only: looking at values would make the device wait."""
        self._check_view("context_view", context_view)
        self._check_view("target_view", target_view)
        for name, idx in (("context_idx", context_idx), ("target_idx", target_idx)):
            if idx.ndim != 2 or idx.shape[0] != context_view.shape[0] or idx.shape[1] < 1:
                raise ValueError(
                    f"{name} must be int64 [B, n] with B = {context_view.shape[0]}; found {list(idx.shape)}"
                )
        if context_view.shape[0] != target_view.shape[0]:
            raise ValueError(
                f"the two views must hold the same volumes; found {context_view.shape[0]} and {target_view.shape[0]}"
            )
        if context_idx.shape[1] + target_idx.shape[1] > self.grid.num_patches:
            raise ValueError(
                f"{context_idx.shape[1]} context and {target_idx.shape[1]} target tokens cannot be disjoint "
                f"among {self.grid.num_patches} patches"
            )


def mask_to_indices(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits bool [B, N], True = target, into int64 context [B, Nc] and target [B, Nt] in raster order; reads the mask.

    Raises ValueError when it is not bool [B, N], or when its rows do not all have the same 1 <= Nt < N.
    """
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask must be bool [B, N]; found {mask.dtype} {list(mask.shape)}")
    counts = sorted(set(mask.sum(dim=1).tolist()))
    if len(counts) != 1 or not 0 < counts[0] < mask.shape[1]:
        raise ValueError(
            f"every row of mask must hide the same number of patches, at least 1 and below N = {mask.shape[1]}; "
            f"found {counts}. Draw masks of a fixed count"
        )
    order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    num_context = mask.shape[1] - counts[0]
    return order[:, :num_context], order[:, num_context:]
