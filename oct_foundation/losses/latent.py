"""The latent prediction loss of a JEPA: predicted features against layer-normed teacher features, in fp32.

Targets have unit RMS by construction, so predicting zero costs 1.0 (mse), 0.42 (smooth_l1) or 0.80 (l1) on Gaussian
features; the loss alone cannot tell a good encoder from a collapsed one.
"""

from typing import Literal

import torch
from torch.nn import functional as F

LatentLoss = Literal["mse", "smooth_l1", "l1"]


def normalize_targets(features: torch.Tensor) -> torch.Tensor:
    """Layer norm over the width without gain and bias: float [..., E] -> float32 [..., E], mean 0 and RMS 1.

    Without it the teacher may shrink its features and the loss with them (arXiv 2404.08471).
    """
    return F.layer_norm(features.float(), features.shape[-1:])


def latent_loss(predictions: torch.Tensor, targets: torch.Tensor, kind: LatentLoss) -> torch.Tensor:
    """Mean over all elements of rho(predictions - targets), a float32 scalar: float [B, Nt, E] both.

    mse: d^2; smooth_l1: d^2 / 2 below |d| = 1, |d| - 1/2 above (I-JEPA); l1: |d| (V-JEPA).
    Raises ValueError when the shapes differ, which would broadcast in silence, or for another kind.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions {list(predictions.shape)} and targets {list(targets.shape)} must have one shape [B, Nt, E]"
        )
    predictions, targets = predictions.float(), targets.float()
    match kind:
        case "mse":
            return F.mse_loss(predictions, targets)
        case "smooth_l1":
            return F.smooth_l1_loss(predictions, targets, beta=1.0)
        case "l1":
            return F.l1_loss(predictions, targets)
        case _:
            raise ValueError(f"loss {kind!r} is unknown; allowed: mse, smooth_l1, l1")
