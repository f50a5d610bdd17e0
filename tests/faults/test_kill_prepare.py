"""SIGKILL at any moment costs time only."""

from pathlib import Path

import pytest

from tests.faults.gcs_emulator import GcsEmulator
from tests.faults.kill_prepare import kill_and_compare, upload_phantoms

SIZE = "model.image_size=[8,32,32]"


def test_a_set_made_under_kills_equals_an_undisturbed_one(gcs: GcsEmulator, tmp_path: Path) -> None:
    source = upload_phantoms(gcs, tmp_path / "dicom", num_volumes=40, scale=0.5)
    outcome = kill_and_compare(source, tmp_path, gcs.environment, SIZE, kills=4, seed=1)
    assert outcome.kills >= 3
    assert outcome.different == []
    assert outcome.done_twice == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_601_phantoms_of_four_devices_under_twenty_kills(gcs: GcsEmulator, tmp_path: Path) -> None:
    source = upload_phantoms(gcs, tmp_path / "dicom", num_volumes=601, scale=1.0)
    outcome = kill_and_compare(source, tmp_path, gcs.environment, SIZE, kills=20, seed=2)
    assert outcome.kills >= 15
    assert outcome.different == []
    assert outcome.done_twice == 0
