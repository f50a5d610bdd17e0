"""The page of reconstructions as Chromium shows it on a phone."""

import numpy as np

from tests.pretraining.test_report_browser import PHONE, Shoot, shoot

__all__ = ["shoot"]


def test_chromium_shows_the_page_without_complaint_and_nothing_is_wider_than_a_phone(shown, shoot: Shoot) -> None:
    screen = shoot(shown[0] / "reconstructions.html", PHONE)
    inked = np.abs(screen.astype(int) - screen[0, 0]).max(axis=2) > 60
    assert inked[:2000].reshape(20, 100, PHONE).any(axis=(1, 2)).all()
    assert not inked[:, :8].any()
    assert not inked[:, -8:].any()
    blue = (np.abs(screen.astype(int) - (0, 114, 178)).max(axis=2) < 8).sum()
    assert blue > 500  # the model's curves and bars
