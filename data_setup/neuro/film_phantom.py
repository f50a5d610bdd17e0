"""A generated film, and brains that watch it: the embedded data set, whose noise ceiling is known.

A few slow courses drive everything. Brightness and place of coloured blobs, codes and text follow them at once; a
brain follows them through the blood's response, with noise of its own. So what all brains share can be computed from
the film, and what they do not share cannot.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter
from scipy.special import ndtr

from data_setup.neuro.film_source import NoiseCeiling, RawFilm
from data_setup.neuro.hrf import convolved, glover_kernel
from data_setup.randomness import Purpose, sample_rng
from oct_foundation.film import FilmShape

_COURSES, _PICTURES, _CODES, _TEXT, _WEIGHTS, _NOISE = range(6)  # streams of random numbers
_CODE_NOISE = 0.15  # of a course's deviation: a few codes stay possible, not one
_TEXT_NOISE = 0.05
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class FilmPhantomSettings:
    """num_subjects brains of `voxels` watch num_trs TRs. latents courses, each AR(1) with a memory of tau_trs.

    signal_share: of a voxel's variance, what all subjects have in common; the rest is noise, AR(1) with a memory of
    noise_tau_trs. interaction: of what they have in common, how much is products of two courses. Other numbers: the
    sizes of a TR.
    """

    num_trs: int = 2400
    num_subjects: int = 6
    voxels: int = 64
    latents: int = 8
    tau_trs: float = 2.0
    noise_tau_trs: float = 2.0
    signal_share: float = 0.3
    interaction: float = 0.5
    frames: int = 3
    height: int = 12
    width: int = 16
    codebooks: int = 2
    codes_per_tr: int = 4
    num_codes: int = 16
    text_dim: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_trs": 2, "num_codes": 2, "latents": 3, "seed": 0}
        for name, value in vars(self).items():
            if isinstance(value, int) and value < least.get(name, 1):
                raise ValueError(f"data.phantom.{name} must be at least {least.get(name, 1)}; found {value}")
        for name in ("tau_trs", "noise_tau_trs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"data.phantom.{name} must be above 0; found {getattr(self, name)}")
        if not 0 <= self.signal_share < 1:
            raise ValueError(f"data.phantom.signal_share must be from 0 to below 1; found {self.signal_share}")
        if not 0 <= self.interaction <= 1:
            raise ValueError(f"data.phantom.interaction must be from 0 to 1; found {self.interaction}")

    @property
    def shape(self) -> FilmShape:
        """Of a TR."""
        names = ("frames", "height", "width", "codebooks", "codes_per_tr", "text_dim", "voxels", "num_codes")
        return FilmShape(**{name: getattr(self, name) for name in names})

    @property
    def ceiling_fvu(self) -> float:
        """Of the mean of all subjects: noise / (signal + noise), the noise divided by num_subjects."""
        return NoiseCeiling.of_average(self.signal_share, self.num_subjects).fvu

    @property
    def ceiling_r(self) -> float:
        """Of the mean of all subjects: the correlation over time of the noiseless brain with it."""
        return NoiseCeiling.of_average(self.signal_share, self.num_subjects).r


def phantom_film(settings: FilmPhantomSettings, tr: float) -> RawFilm:
    """The film, for a scanner that takes a volume every `tr` seconds; equal settings give an equal film."""
    courses = latent_courses(settings)
    signal = shared_signal(settings, courses, glover_kernel(tr))
    subjects = range(settings.num_subjects)
    return RawFilm(
        pictures=_pictures(settings, courses),
        audio=_codes(settings, courses),
        num_codes=settings.num_codes,
        text=_text(settings, courses),
        series=[_brain(settings, signal, subject) for subject in subjects],
        subject_ids=tuple(f"phantom_s{subject + 1}" for subject in subjects),
        runs=(settings.num_trs,),
        signal_share=settings.signal_share,
    )


def latent_courses(settings: FilmPhantomSettings) -> np.ndarray:
    """float64 [T, latents]: independent, of mean 0 and variance 1."""
    return _ar1(_rng(settings, _COURSES), settings.num_trs, settings.latents, settings.tau_trs)


def shared_signal(settings: FilmPhantomSettings, courses: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float64 [T, voxels]: what all brains have in common, of variance 1: the courses as the blood follows them, and
    products of two of them, which no linear map of the film can give.

    The variance of an AR(1) course after the kernel h is the sum over i, j of h_i h_j rho^|i - j|.
    """
    lags = np.abs(np.subtract.outer(np.arange(len(kernel)), np.arange(len(kernel))))
    variance = kernel @ math.exp(-1 / settings.tau_trs) ** lags @ kernel
    followed = convolved(courses, kernel, np.float64) / math.sqrt(variance)
    together = followed * np.roll(followed, 1, axis=1)  # of variance 1, too: two courses are independent
    weights = _rng(settings, _WEIGHTS).normal(size=(2, settings.latents, settings.voxels))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    share = settings.interaction
    return math.sqrt(1 - share) * followed @ weights[0] + math.sqrt(share) * together @ weights[1]


def _brain(settings: FilmPhantomSettings, signal: np.ndarray, subject: int) -> np.ndarray:
    """float32 [T, voxels]: signal and the subject's own noise, in units as a scanner gives them."""
    rng = _rng(settings, _NOISE, subject)
    noise = _ar1(rng, settings.num_trs, settings.voxels, settings.noise_tau_trs)
    share = settings.signal_share
    answer = math.sqrt(share) * signal + math.sqrt(1 - share) * noise
    level, gain = rng.uniform(600, 1400, settings.voxels), rng.uniform(5, 20)
    return (level + gain * answer).astype(np.float32)


def _pictures(settings: FilmPhantomSettings, courses: np.ndarray) -> np.ndarray:
    """uint8 [T, frames, height, width, 3]: a blob for each course, which it lights up and moves to the right."""
    rng = _rng(settings, _PICTURES)
    after = np.concatenate([courses[1:], courses[-1:]])
    parts = np.arange(settings.frames)[:, None] / settings.frames
    moving = courses[:, None] * (1 - parts) + after[:, None] * parts  # [T, frames, latents]
    y, x = (np.arange(side) / (side - 1 or 1) for side in (settings.height, settings.width))
    film = np.full((settings.num_trs, settings.frames, settings.height, settings.width, 3), 0.25, np.float32)
    for number in range(settings.latents):
        course = moving[..., number].astype(np.float32)
        top = 0.15 + 0.7 * (number + 0.5) / settings.latents
        left = 0.1 + 0.8 * (number * _GOLDEN % 1)  # far from the blobs above and below
        colour = rng.uniform(0.2, 1.0, 3)
        across = np.exp(-((x - left - 0.05 * course[..., None]) ** 2) / 0.02)
        down = np.exp(-((y - top) ** 2) / 0.02)
        light = (0.3 + 0.2 * course)[..., None, None] * down[:, None] * across[..., None, :]
        film += (light[..., None] * colour).astype(np.float32)
    return np.round(np.clip(film, 0, 1) * 255).astype(np.uint8)


def _codes(settings: FilmPhantomSettings, courses: np.ndarray) -> np.ndarray:
    """int64 [T, codebooks, codes_per_tr]: where a mix of the courses lies among num_codes equally frequent ranges.

    Each book names its ranges in an order of its own, for codes are categories: near numbers mean nothing.
    """
    rng = _rng(settings, _CODES)
    places = (settings.codebooks, settings.codes_per_tr)
    mixes = rng.normal(size=(settings.latents, *places))
    mixes /= np.linalg.norm(mixes, axis=0)
    heard = np.tensordot(courses, mixes, axes=1)
    heard += _CODE_NOISE * rng.normal(size=heard.shape)
    ranges = np.floor(settings.num_codes * ndtr(heard / math.sqrt(1 + _CODE_NOISE**2))).astype(np.int64)
    names = np.stack([rng.permutation(settings.num_codes) for _ in range(settings.codebooks)])
    return names[np.arange(settings.codebooks)[:, None], np.minimum(ranges, settings.num_codes - 1)]


def _text(settings: FilmPhantomSettings, courses: np.ndarray) -> np.ndarray:
    """float32 [T, text_dim]: a fixed linear map of the courses, and a little noise."""
    rng = _rng(settings, _TEXT)
    mixes = rng.normal(size=(settings.latents, settings.text_dim)) / math.sqrt(settings.latents)
    noise = _TEXT_NOISE * rng.normal(size=(settings.num_trs, settings.text_dim))
    return (courses @ mixes + noise).astype(np.float32)


def _ar1(rng: np.random.Generator, num_trs: int, width: int, tau_trs: float) -> np.ndarray:
    """float64 [T, width]: variance 1 from the first TR on, correlation exp(-lag / tau_trs)."""
    rho = math.exp(-1 / tau_trs)
    drive = rng.normal(size=(num_trs, width))
    drive[1:] *= math.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], drive, axis=0)


def _rng(settings: FilmPhantomSettings, stream: int, index: int = 0) -> np.random.Generator:
    return sample_rng(settings.seed, stream, index, Purpose.PHANTOM)
