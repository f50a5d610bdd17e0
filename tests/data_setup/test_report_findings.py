"""Oracles for what the data report finds in pixels: hand values, slow loops, scipy, phantoms and real scans."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy.fft import dctn

from data_setup.phantom_anatomy import random_anatomy, render
from data_setup.report_findings import (
    NEAR_DISTANCE,
    NUM_SAMPLED,
    fingerprint,
    intensity_histogram,
    mid_bscan,
    near_duplicates,
    sampled_bscans,
    upside_down_score,
)
from data_setup.resample import resize, triangle_weights

SHAPE = (16, 128, 128)
Change = Callable[[np.ndarray], np.ndarray]


def phantom(number: int, speckle: int = 0) -> np.ndarray:
    anatomy = random_anatomy(np.random.default_rng([7, number]))
    return render(anatomy, SHAPE, np.random.default_rng([8, number, speckle]))


@pytest.fixture(scope="module")
def eyes() -> list[np.ndarray]:
    """Twelve phantoms of different eyes."""
    return [phantom(number) for number in range(12)]


@pytest.fixture(scope="module")
def real_scans(test_data: Path) -> list[np.ndarray]:
    """A macula and an optic disc at the size of the phantoms."""
    names = ("spectralis_macula_drusen_97x496x512_jpegls.dcm", "spectralis_onh_rc_27x496x768_explicitLE.dcm")
    return [resize(dcmread(test_data / "oct" / name).pixel_array, SHAPE) for name in names]


def noisy(volume: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 12, volume.shape)
    return np.clip(volume + noise, 0, 255).astype(np.uint8)


COPIES: dict[str, Change] = {
    "darker": lambda volume: (0.7 * volume).astype(np.uint8),
    "brighter": lambda volume: np.clip(1.4 * volume, 0, 255).astype(np.uint8),
    "raised": lambda volume: np.clip(volume.astype(int) + 20, 0, 255).astype(np.uint8),
    "gamma": lambda volume: (255 * (volume / 255) ** 0.8).astype(np.uint8),
    "noisy": noisy,
}


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean(fingerprint(one) != fingerprint(other)))


@pytest.mark.parametrize(("num_bscans", "middle"), [(1, 0), (2, 1), (5, 2), (64, 32)])
def test_the_mid_bscan_is_the_middle_one_and_no_view_of_the_file(num_bscans: int, middle: int) -> None:
    volume = np.arange(num_bscans, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 4), np.uint8)
    found = mid_bscan(volume)
    assert found.shape == (3, 4)
    assert (found == middle).all()
    found[:] = 255
    assert (volume[middle] == middle).all()


@pytest.mark.parametrize(
    ("num_bscans", "places"),
    [(1, [0] * 8), (4, [0, 0, 1, 1, 2, 2, 3, 3]), (8, list(range(8))), (64, [4, 12, 20, 28, 36, 44, 52, 60])],
)
def test_sampled_bscans_spread_evenly(num_bscans: int, places: list[int]) -> None:
    volume = np.arange(num_bscans, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert sampled_bscans(volume)[:, 0, 0].tolist() == places


def test_findings_of_the_sampled_bscans_are_those_of_the_volume(eyes: list[np.ndarray]) -> None:
    few = sampled_bscans(eyes[0])
    assert len(few) == NUM_SAMPLED
    assert (fingerprint(few) == fingerprint(eyes[0])).all()
    assert (intensity_histogram(few) == intensity_histogram(eyes[0])).all()
    assert upside_down_score(few) == upside_down_score(eyes[0])


def test_the_histogram_counts_like_a_slow_loop() -> None:
    volume = np.random.default_rng(0).integers(0, 200, (8, 5, 6), dtype=np.uint8)
    slow = [0] * 256
    for value in volume.ravel().tolist():
        slow[value] += 1
    assert intensity_histogram(volume).tolist() == slow


def test_the_fingerprint_is_the_signs_of_scipys_cosine_transform(eyes: list[np.ndarray]) -> None:
    tiles = eyes[0][1::2].astype(np.float64)  # the eight sampled of sixteen
    shrink = triangle_weights(128, 32)
    small = np.stack([shrink @ tile @ shrink.T for tile in tiles])
    waves = dctn(small - small.mean(axis=0), axes=(1, 2))[:, :8, :8].reshape(8, -1)[:, 1:]
    found = fingerprint(eyes[0])
    assert found.shape == (504,)
    assert found.dtype == bool
    clear = np.abs(waves).ravel() > 1e-3  # where rounding cannot turn the sign
    assert clear.mean() > 0.99
    assert (found == (waves.ravel() > 0))[clear].all()


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_other_brightness_or_with_noise_are_alike(copy: str, eyes: list[np.ndarray]) -> None:
    assert max(unlike(eye, COPIES[copy](eye)) for eye in eyes) <= NEAR_DISTANCE


def test_different_eyes_are_unlike(eyes: list[np.ndarray]) -> None:
    prints = [fingerprint(eye) for eye in eyes]
    assert min(np.mean(one != other) for one, other in combinations(prints, 2)) > NEAR_DISTANCE + 0.03


def test_single_bscans_are_told_apart_too(eyes: list[np.ndarray]) -> None:
    single = [np.repeat(eye[8:9], 16, axis=0) for eye in eyes]  # as prepare delivers a scan of one B-scan
    assert min(unlike(one, other) for one, other in combinations(single, 2)) > NEAR_DISTANCE + 0.1
    assert max(unlike(one, COPIES["darker"](one)) for one in single) < NEAR_DISTANCE


@pytest.mark.parametrize("copy", COPIES)
def test_real_scans_are_like_their_copies_and_unlike_each_other(copy: str, real_scans: list[np.ndarray]) -> None:
    macula, disc = real_scans
    assert unlike(macula, COPIES[copy](macula)) < 0.08
    assert unlike(disc, COPIES[copy](disc)) < 0.08
    assert unlike(macula, COPIES[copy](disc)) > 0.35


def slow_groups(prints: dict[str, np.ndarray], limit: float) -> set[tuple[str, ...]]:
    """Grows each group until nothing joins."""
    left, groups = set(prints), set()
    while left:
        group = {min(left)}
        while joining := {
            name for name in left - group if any(np.mean(prints[name] != prints[member]) <= limit for member in group)
        }:
            group |= joining
        left -= group
        groups.add(tuple(sorted(group)))
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_slow_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prints = {f"{number:03d}": rng.random(16) < 0.5 for number in rng.permutation(40)}
    found = near_duplicates(prints, limit=0.2)
    assert len(found) > 1
    assert {group.ids for group in found} == slow_groups(prints, 0.2)
    assert [group.distance for group in found] == sorted(group.distance for group in found)


def test_a_chain_is_one_group_with_its_widest_link() -> None:
    bits = np.zeros((4, 20), bool)
    bits[1, :2] = True  # 2 of 20 from a
    bits[2, :5] = True  # 3 of 20 from b, 5 of 20 from a
    bits[3, 10:] = True
    groups = near_duplicates(dict(zip("abcd", bits, strict=True)), limit=0.15)
    assert groups == [(("a", "b", "c"), 0.15)]


def test_nothing_to_compare_gives_no_groups() -> None:
    assert near_duplicates({}) == []
    assert near_duplicates({"a": np.zeros(504, bool)}) == []


def test_the_score_of_a_drawn_scan_is_the_hand_value() -> None:
    bscan = np.repeat(np.array([10] * 20 + [200] * 10 + [30] * 30, np.uint8)[:, None], 32, axis=1)
    # The darkest 5 % are 10: 0 above the band and 20 below, (0 - 20) / (0 + 20 + 1).
    assert upside_down_score(bscan[None]) == pytest.approx(-20 / 21)
    assert upside_down_score(bscan[None, ::-1]) == pytest.approx(20 / 21)


def test_a_retina_that_fills_the_image_says_nothing() -> None:
    bscan = np.full((60, 32), 200, np.uint8)
    bscan[28:32] = 10  # a dark gap between bright rows that reach both borders
    assert upside_down_score(bscan[None]) == 0.0


@pytest.mark.parametrize("copy", COPIES)
def test_flipped_phantoms_are_suspected_and_upright_ones_are_not(copy: str, eyes: list[np.ndarray]) -> None:
    assert max(upside_down_score(COPIES[copy](eye)) for eye in eyes) < -0.7
    assert min(upside_down_score(np.flip(COPIES[copy](eye), axis=1)) for eye in eyes) > 0.7


def test_every_real_bscan_is_upright_and_its_flip_suspected(test_data: Path) -> None:
    for name in ("spectralis_macula_drusen_97x496x512_jpegls.dcm", "spectralis_onh_rc_27x496x768_explicitLE.dcm"):
        frames = dcmread(test_data / "oct" / name).pixel_array
        bscans = resize(frames, (len(frames), 128, 128))
        scores = np.array([upside_down_score(bscan[None]) for bscan in bscans])
        flipped = np.array([upside_down_score(bscan[None, ::-1]) for bscan in bscans])
        assert scores.max() < -0.55
        np.testing.assert_allclose(flipped, -scores, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 7, 5), (16, 33, 9), (3, 16, 1)])
def test_odd_and_tiny_volumes_are_scored_without_trouble(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert fingerprint(volume).shape == (504,)
    assert -1 <= upside_down_score(volume) <= 1
    assert upside_down_score(np.flip(volume, axis=1)) == pytest.approx(-upside_down_score(volume), abs=1e-5)
