"""The report of a run as Chromium shows it: no complaint, no empty page, no sideways scrolling on a phone."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretraining.report.command import main
from tests.pretraining.report_runs import crashed_run, probe_row, rows, write_pictures, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE, DESK, DARK = 390, 1200, "--blink-settings=preferredColorScheme=0"
Shoot = Callable[..., np.ndarray]


@pytest.fixture
def shoot(tmp_path: Path) -> Shoot:
    """shoot(page, width, *options) -> uint8 [4000, width, 3]; fails where the browser complains of the page."""
    if CHROMIUM is None:
        pytest.skip("CHROMIUM ABSENT: nobody has looked at the rendered page. Install chromium; this did NOT run.")

    def run(page: Path, width: int, *options: str) -> np.ndarray:
        shot = tmp_path / "shot.png"
        looks = [f"--window-size={width},4000", f"--screenshot={shot}", "--enable-logging=stderr", "--v=0"]
        command = [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'chromium'}", *looks, *options, page.as_uri()]
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
        assert not re.findall(r".*CONSOLE.*", said)
        return np.asarray(Image.open(shot).convert("RGB"))

    return run


def alive_run(folder: Path) -> Path:
    run = write_run(folder, rows())
    for step in (0, 600):
        write_pictures(run / "diagnostics", step)
    (run / "probes").mkdir()
    table = [probe_row("encoder", 0.7), probe_row("random_init", 0.5), probe_row("mean_predictor", 0.0, probe="mean")]
    (run / "probes" / "600.json").write_text(json.dumps(table))
    return run


def test_chromium_shows_an_alive_run_on_a_desk_and_on_a_phone_in_light_and_dark(tmp_path: Path, shoot: Shoot) -> None:
    page = alive_run(tmp_path / "run") / "report.html"
    assert main([str(page.parent)]) == 0
    for width in (DESK, PHONE):
        light, dark = shoot(page, width), shoot(page, width, DARK)
        assert light.shape == dark.shape == (4000, width, 3)
        assert (light[0, 0] == 255).all()
        assert dark[0, 0].max() < 40
        for screen in (light, dark):
            inked = (np.abs(screen.astype(int) - screen[0, 0]).max(axis=2) > 60).reshape(40, 100, width)
            assert inked.any(axis=(1, 2)).all()  # something in every stretch of 100 rows
            assert not inked[:, :, :8].any()  # margins stay free on both sides: nothing is wider than the screen
            assert not inked[:, :, -8:].any()
        blue = (np.abs(light.astype(int) - (0, 114, 178)).max(axis=2) < 8).sum()
        assert blue > 500  # curves


@pytest.mark.parametrize("write", [lambda path: write_run(path, rows(dead=True)), crashed_run])
def test_chromium_shows_dead_and_crashed_runs_without_complaint(
    tmp_path: Path, shoot: Shoot, write: Callable[[Path], Path]
) -> None:
    page = write(tmp_path / "run") / "report.html"
    assert main([str(page.parent)]) == 0
    assert (shoot(page, PHONE)[:3000] < 128).any()


def test_a_page_that_breaks_its_own_policy_is_noticed(tmp_path: Path, shoot: Shoot) -> None:
    page = alive_run(tmp_path / "run") / "report.html"
    main([str(page.parent)])
    page.write_text(page.read_text().replace("</main>", '<img src="https://example.org/a.png"></main>'))
    with pytest.raises(AssertionError, match="CONSOLE"):
        shoot(page, PHONE)
