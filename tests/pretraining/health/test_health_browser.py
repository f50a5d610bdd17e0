"""The health page as Chromium shows it: no complaint, no sideways scrolling on a phone, light and dark."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretraining.health.command import main
from tests.pretraining.health.health_runs import sound_run
from tests.pretraining.test_report_browser import CHROMIUM, DARK, DESK, PHONE, QUIET

HEIGHT = 3000


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("look", ["", DARK])
def test_chromium_shows_the_page_without_complaint(tmp_path: Path, width: int, look: str) -> None:
    if CHROMIUM is None or shutil.which(CHROMIUM) is None:
        pytest.skip("CHROMIUM ABSENT: nobody has looked at the rendered page. Install chromium; this did NOT run.")
    run, shot = sound_run(tmp_path / "run"), tmp_path / "shot.png"
    assert main([str(run)]) == 0
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'chromium'}", f"--window-size={width},{HEIGHT}"]
    command += [f"--screenshot={shot}", "--enable-logging=stderr", "--v=0", *filter(None, [look])]
    page = (run / "health" / "health.html").as_uri()
    said = subprocess.run([*command, page], capture_output=True, text=True, timeout=120, check=True).stderr
    assert not re.findall(r".*CONSOLE.*", said)
    screen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert screen.shape == (HEIGHT, width, 3)
    assert screen[0, 0].max() < 40 if look else screen[0, 0].min() == 255
    inked = np.abs(screen - screen[0, 0]).max(axis=2) > 60
    assert inked.reshape(HEIGHT // 200, 200, width).any(axis=(1, 2)).all()  # something in every stretch
    assert not inked[:, :8].any()  # nothing is wider than the screen: tables scroll in their own boxes
    assert not inked[:, -8:].any()
