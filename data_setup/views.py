"""How two views of a scan may differ: the settings of the transforms, apart from MONAI, whose import takes seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Probabilities of each augmentation, and how far it goes; 0 switches one off.

    Spatial (shared by both views): mirror along D and W; in-plane tilt (rad), shift and zoom (share of H and W).
    Intensity (each view for itself; grey levels 0 to 1): gain, brightness, gamma, noise (standard deviation), blur
    (voxels).
    """

    flip_prob: float = 0.5
    affine_prob: float = 0.2
    max_tilt_rad: float = 0.1
    max_shift: float = 0.05
    max_zoom: float = 0.1
    intensity_prob: float = 0.5
    max_gain: float = 0.15
    max_brightness: float = 0.05
    max_gamma: float = 1.4
    noise_prob: float = 0.2
    max_noise: float = 0.04
    blur_prob: float = 0.1
    max_blur: float = 0.8

    def __post_init__(self) -> None:
        for name in ("flip_prob", "affine_prob", "intensity_prob", "noise_prob", "blur_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.views.{name} is a probability, 0 to 1; found {getattr(self, name)}")
        for name in ("max_tilt_rad", "max_shift", "max_zoom", "max_gain", "max_brightness", "max_noise", "max_blur"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.views.{name} must be from 0 to below 1; found {getattr(self, name)}")
        if not self.max_gamma >= 1:
            raise ValueError(f"data.views.max_gamma must be at least 1 (no change); found {self.max_gamma}")
