"""Draws a head, smooth and ellipsoid, with the one property that a question asks for and many that it does not.

Where the head lies, its size, tilt, gain, shading and noise vary and tell nothing about the answer. Coordinates run
from -1 to 1 over the cube: x to the right, y to the front, z to the top.
"""

from typing import NamedTuple

import numpy as np

_AXES = (0.70, 0.84, 0.76)  # half the head's width, length and height
_LAYERS = ((1.0, 0.55), (0.93, 0.15), (0.87, 0.5), (0.70, 0.75))  # skull, fluid, grey, white: outer radius, brightness
_EDGE = 0.05  # softness of borders: about a voxel at 32 a side


class Head(NamedTuple):
    """Coordinates in the head's own frame, float64 [S, S, S] each, and the distance from its centre, 1 at the skin."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    radius: np.ndarray


def place_head(size: int, rng: np.random.Generator) -> Head:
    """A head shifted by up to 0.08, tilted by up to 8 degrees about two axes, 6 % smaller or larger."""
    side = (np.arange(size) + 0.5) / size * 2 - 1
    x, y, z = np.meshgrid(side, side, side, indexing="ij")
    x, y, z = (axis - shift for axis, shift in zip((x, y, z), rng.uniform(-0.08, 0.08, 3), strict=True))
    turn, nod = np.deg2rad(rng.uniform(-8, 8, 2))
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    y, z = y * np.cos(nod) + z * np.sin(nod), z * np.cos(nod) - y * np.sin(nod)
    x, y, z = (axis / scale for axis, scale in zip((x, y, z), rng.uniform(0.94, 1.06, 3), strict=True))
    radius = np.sqrt(sum((axis / half) ** 2 for axis, half in zip((x, y, z), _AXES, strict=True)))
    return Head(x, y, z, radius)


def lesion_scan(size: int, right: bool, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S, S]: tissue with one bright lesion in the right or left hemisphere, shaded and noisy."""
    head = place_head(size, rng)
    image = _tissue(head)
    across, along, up = rng.uniform(0.2, 0.42), rng.uniform(-0.45, 0.45), rng.uniform(-0.35, 0.35)
    blob = (head.x - (across if right else -across)) ** 2 + (head.y - along) ** 2 + (head.z - up) ** 2
    image += 1.2 * np.exp(-blob / (2 * rng.uniform(0.11, 0.15) ** 2))
    return _finished(image, head, rng)


def tract_scan(size: int, across: bool, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S, S]: an anisotropy map with a bundle of bright tracts from left to right, or from back to front."""
    head = place_head(size, rng)
    image = 0.15 * _inside(head.radius, 1.0) + 0.1 * _inside(head.radius, 0.8)
    along, aside = (head.x, head.y) if across else (head.y, head.x)
    for _ in range(4):
        tilt = np.deg2rad(rng.uniform(-12, 12))
        offset, height, shift = rng.uniform(-0.22, 0.22), rng.uniform(-0.3, 0.3), rng.uniform(-0.05, 0.05)
        forward = along * np.cos(tilt) + aside * np.sin(tilt) - shift
        distance = np.hypot(aside * np.cos(tilt) - along * np.sin(tilt) - offset, head.z - height)
        tube = _inside(distance, rng.uniform(0.09, 0.13)) * _inside(np.abs(forward), 0.56)
        image = np.maximum(image, 0.8 * tube)
    return _finished(image, head, rng)


def resting_run(size: int, num_frames: int, fast: bool, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S, S, T]: a brain that swings once per run (slow), or 3 times per 8 frames (fast), in any phase.

    Voxels outside the brain are exactly 0, as in masked runs.
    """
    head = place_head(size, rng)
    still = _tissue(head) + 0.3
    weight = 0.6 + 0.4 * np.cos(rng.uniform(2, 4) * head.x + rng.uniform(0, 6)) * np.cos(3 * head.y + rng.uniform(0, 6))
    time = np.arange(num_frames) / num_frames
    cycles = max(2, round(num_frames * 3 / 8)) if fast else 1
    swing = 0.35 * np.cos(2 * np.pi * (cycles * time + rng.uniform())) + rng.uniform(-0.05, 0.05) * time
    run = still[..., None] * (1 + weight[..., None] * swing)
    run = run * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 0.06, run.shape)
    return np.where(head.radius[..., None] < 0.9, run, 0).astype(np.float32)


def _tissue(head: Head) -> np.ndarray:
    """Skull, fluid, grey and white matter, and two ventricles."""
    image = np.zeros_like(head.radius)
    for outer, brightness in _LAYERS:
        shape = _inside(head.radius, outer)
        image = image * (1 - shape) + brightness * shape
    for side in (-1, 1):
        ventricle = ((head.x - side * 0.1) / 0.06) ** 2 + (head.y / 0.22) ** 2 + ((head.z - 0.05) / 0.1) ** 2
        image *= 1 - 0.8 * np.exp(-ventricle)
    return image


def _finished(image: np.ndarray, head: Head, rng: np.random.Generator) -> np.ndarray:
    """Shading of up to 15 % across the head, gain, noise."""
    slope = rng.uniform(-0.15, 0.15, 3)
    shaded = image * (1 + slope[0] * head.x + slope[1] * head.y + slope[2] * head.z)
    return (shaded * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 0.04, image.shape)).astype(np.float32)


def _inside(distance: np.ndarray, border: float) -> np.ndarray:
    """1 within the border, 0 outside, softly."""
    return 1 / (1 + np.exp(np.clip((distance - border) / (_EDGE / 3), -50, 50)))
