"""Volume -> two aligned views and a mask, as MONAI transforms; the only file that knows MONAI.

The views share every spatial transform, so that a token is the same tissue in both, and differ in intensity. All
randomness comes from (seed, epoch, index): no worker, order or resume can change a sample.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrast,
    RandAffine,
    Randomizable,
    RandScaleIntensity,
    RandShiftIntensity,
    Transform,
)
from scipy.ndimage import gaussian_filter

from data_setup.collate import plain_tensor
from data_setup.masking import MaskGenerator
from data_setup.randomness import Purpose, sample_rng
from data_setup.sampler import SampleKey
from data_setup.views import ViewSettings

VIEWS = ("context_view", "target_view")


class TwoViewTransform(MapTransform, Randomizable):
    """`image` uint8 [1, D, H, W] -> `context_view`, `target_view`: aligned uint8 [1, D, H, W], own intensities.

    Coins are tossed first, so that nine million voxels become floats only where something needs them.
    """

    def __init__(self, settings: ViewSettings, image_size: tuple[int, int, int]) -> None:
        super().__init__(keys=["image"])
        self._settings = settings
        self._mirrored: list[int] = []
        self._tilts = False
        _, height, width = image_size
        self._tilt = RandAffine(
            prob=1.0,
            rotate_range=settings.max_tilt_rad,
            translate_range=(settings.max_shift * height, settings.max_shift * width),
            scale_range=(settings.max_zoom, settings.max_zoom),
            mode="bilinear",
            padding_mode="border",
        )
        self._intensities = {view: _Intensity(settings) for view in VIEWS}

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "TwoViewTransform":
        """One state decides all: the spatial transforms, then each view's intensities."""
        super().set_random_state(seed, state)
        settings = self._settings
        self._mirrored = [axis for axis in (0, 2) if self.R.random() < settings.flip_prob]  # D and W
        self._tilts = bool(self.R.random() < settings.affine_prob)
        for part in (self._tilt, *self._intensities.values()):
            part.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces `image` by the two views."""
        rest = {key: value for key, value in data.items() if key != "image"}
        # B-scans as channels: in-plane work is 2-D then, 8 times faster than 3-D, and nothing blurs across B-scans,
        # which lie ten times farther apart than voxels within one.
        bscans = torch.as_tensor(data["image"])[0].flip(self._mirrored)
        if self._tilts:
            bscans = _to_uint8(self._tilt(_to_grey(bscans)))
        return {**rest, **{view: self._intensities[view](bscans)[None] for view in VIEWS}}


class _Intensity(Randomizable):
    """What makes the views of one scan differ: uint8 [D, H, W] -> uint8 [D, H, W]."""

    def __init__(self, settings: ViewSettings) -> None:
        self._settings = settings
        prob = settings.intensity_prob
        self._curve = Compose(
            [
                RandScaleIntensity(factors=settings.max_gain, prob=prob),
                RandShiftIntensity(offsets=settings.max_brightness, prob=prob),
                RandAdjustContrast(prob=prob, gamma=(1 / settings.max_gamma, settings.max_gamma)),
            ]
        )
        self._blur: tuple[float, float] | None = None
        self._noise_std, self._noise_seed = 0.0, 0

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> "_Intensity":
        """Decides the curve, the blur and the noise."""
        super().set_random_state(seed, state)
        settings = self._settings
        blurs, noisy = self.R.random() < settings.blur_prob, self.R.random() < settings.noise_prob
        self._blur = (self.R.uniform(0, settings.max_blur), self.R.uniform(0, settings.max_blur)) if blurs else None
        self._noise_std = float(self.R.uniform(0, settings.max_noise)) if noisy else 0.0
        self._noise_seed = int(self.R.randint(2**31))
        self._curve.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, bscans: torch.Tensor) -> torch.Tensor:
        """Gain, brightness and gamma act on each grey level alone: the curve of 256 levels costs 20 us, a look-up of
        9.4 million voxels 15 ms, the same on floats 160 ms.
        """
        levels = _to_uint8(self._curve(torch.arange(256, dtype=torch.float32)[None] / 255))[0]
        view = levels.numpy()[bscans.numpy()]
        if self._blur is not None:
            view = _blurred(view, self._blur)
        if self._noise_std:
            view = _noisy(view, self._noise_std * 255, np.random.default_rng(self._noise_seed))
        return torch.from_numpy(view)


def _blurred(bscans: np.ndarray, sigma: tuple[float, float]) -> np.ndarray:
    """Gaussian of `sigma` voxels along H and W, within each B-scan. SciPy takes 68 ms where MONAI takes 243."""
    return np.rint(gaussian_filter(bscans, (0, *sigma), truncate=3.0, output=np.float32)).astype(np.uint8)


def _noisy(bscans: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of `std` grey levels: each voxel draws one of 65,536 normal values, in half of the time that
    normal values of its own would take.
    """
    draws = np.rint(rng.normal(0.0, std, 1 << 16)).astype(np.int16)
    noise = draws[np.frombuffer(rng.bytes(2 * bscans.size), np.uint16)].reshape(bscans.shape)
    return np.clip(noise + bscans, 0, 255, out=noise).astype(np.uint8)


def _to_grey(bscans: torch.Tensor) -> torch.Tensor:
    """uint8 -> grey levels 0 to 1."""
    return bscans.float().div_(255)


def _to_uint8(view: torch.Tensor) -> torch.Tensor:
    """Grey levels 0 to 1 -> 0 to 255; a device standardises them, and the way there costs a quarter of floats."""
    plain = plain_tensor(view)
    assert plain is not None
    return plain.mul(255).round_().clamp_(0, 255).to(torch.uint8)


class JEPAMaskGeneratord(Transform):
    """Adds `mask` bool [N] (True: hidden), `context_idx` int64 [Nc] and `target_idx` int64 [Nt] to a sample."""

    def __init__(self, masks: MaskGenerator) -> None:
        self._masks = masks
        self._rng = np.random.default_rng(0)

    def set_rng(self, rng: np.random.Generator) -> "JEPAMaskGeneratord":
        """Where the next mask comes from."""
        self._rng = rng
        return self

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with a mask of its own."""
        drawn = self._masks.draw(self._rng)
        arrays = zip(("mask", "context_idx", "target_idx"), drawn, strict=True)
        return {**data, **{name: torch.from_numpy(array) for name, array in arrays}}


class TrainingTransform:
    """uint8 volume [D, H, W] and its SampleKey -> {context_view, target_view, mask, context_idx, target_idx}."""

    def __init__(self, settings: ViewSettings, masks: MaskGenerator, *, seed: int) -> None:
        self._views = TwoViewTransform(settings, masks.grid.image_size)
        self._mask = JEPAMaskGeneratord(masks)
        self._seed = seed

    def __call__(self, volume: np.ndarray, key: SampleKey) -> dict[str, Any]:
        """The same sample for the same (seed, epoch, index), whoever asks."""
        set_track_meta(False)  # MONAI's switch is per process; a worker starts with metadata on
        view_rng = sample_rng(self._seed, key.epoch, key.index, Purpose.VIEWS)
        self._views.set_random_state(seed=int(view_rng.integers(2**32)))
        self._mask.set_rng(sample_rng(self._seed, key.epoch, key.index, Purpose.MASK))
        return self._mask(self._views({"image": np.array(volume[None])}))


class ValidationTransform:
    """The same without augmentation: both views are the volume, and its mask is the same at every validation."""

    def __init__(self, masks: MaskGenerator, *, seed: int) -> None:
        self._mask = JEPAMaskGeneratord(masks)
        self._seed = seed

    def __call__(self, volume: np.ndarray, key: SampleKey) -> dict[str, Any]:
        """Depends on (seed, index) only."""
        self._mask.set_rng(sample_rng(self._seed, 0, key.index, Purpose.VALIDATION_MASK))
        view = torch.from_numpy(np.array(volume[None]))
        return self._mask(dict.fromkeys(VIEWS, view))
