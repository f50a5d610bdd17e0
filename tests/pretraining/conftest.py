"""Small runs with checkpoints, and small scans whose brightness is known, for all that uses an encoder."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from data_setup.prepare import PrepareSettings, prepare, read_key
from data_setup.prepare_file import keyed_id
from data_setup.sources import DirectorySource
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from tests.data_setup.conftest import opt_dataset

SIZE = (8, 32, 32)
NUM_SCANS = 12

SaveRun = Callable[..., VJEPA3D]


def loud_model(config: VJEPA3DConfig, seed: int) -> VJEPA3D:
    """Student, teacher and predictor all differ, by enough that a mix-up shows."""
    torch.manual_seed(seed)
    model = VJEPA3D(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def save_run() -> SaveRun:
    """`save_run(folder, **model)` writes a run folder with checkpoints of steps 3 and 5; returns the newest model."""

    def save(folder: Path, source: str = "phantom", **model: object) -> VJEPA3D:
        config = VJEPA3DConfig(**{"preset": "vit_tiny", "image_size": SIZE} | model)  # type: ignore[arg-type]
        manager = CheckpointManager(LocalStore(folder / "checkpoints"), CheckpointSettings(), run_id="0123456789ab")
        facts = {"config": {"seed": 0, "model": json.loads(json.dumps(asdict(config))), "data": {"source": source}}}
        for step in (3, 5):
            found = loud_model(config, seed=step)
            manager.save(step, {"model": found.state_dict(), "step": step}, {"train/loss": 1 / step}, facts)
        (folder / "config.yaml").write_text(json.dumps(facts["config"]))
        return found

    return save


def level_of(number: int) -> int:
    """The brightness of a scan, 0 to 11; that of a patient's other eye is far from it."""
    return 5 * number % NUM_SCANS


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scans of six patients, each of another brightness, and one file that is no scan."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(NUM_SCANS):
        voxels = np.random.default_rng(number).integers(0, 60, SIZE, dtype=np.uint8) + np.uint8(12 * level_of(number))
        opt_dataset(voxels, f"P{number // 2}").save_as(folder / f"scan{number:02d}.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("not a scan")
    return folder


@pytest.fixture(scope="session")
def prepared_scans(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans as a prepared set of the size that the runs take."""
    folder = tmp_path_factory.mktemp("prepared-scans")
    (folder / ".source_key").write_bytes(bytes(32))  # the same ids, and so the same order, in every session
    prepare(DirectorySource(scans), folder, PrepareSettings(image_size=SIZE, val_fraction=0.34), num_workers=1)
    return folder


@pytest.fixture(scope="session")
def scan_labels(prepared_scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV: id, patient, brightness (a value), bright (a class), clinic (a class that goes by patient)."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    key = read_key(prepared_scans)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "patient", "brightness", "bright", "clinic"])
        for number in range(NUM_SCANS):
            volume = keyed_id(key, f"scan{number:02d}.dcm")
            level, patient = level_of(number), number // 2
            bright, clinic = "yes" if level >= NUM_SCANS // 2 else "no", "east" if patient < 3 else "west"
            writer.writerow([volume, f"P{patient}", 12.5 * level + 3, bright, clinic])
    return path
