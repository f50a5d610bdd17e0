"""A small autoencoder run with three checkpoints, and what its model says of held-out TRs."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from data_setup.neuro.film_dataset import FilmDataset
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.reconstruct.command import main
from pretraining.reconstruct.opening import open_autoencoder
from pretraining.reconstruct.samples import Predictions, predict
from pretraining.tasks.autoencoder import AutoencoderTask
from tests.pretraining.reconstruct.film_runs import small_config

SCORES = {10: 0.1, 20: 0.3, 30: 0.2}  # the best is in the middle
SaveRun = Callable[..., Path]


@pytest.fixture(scope="session")
def save_film_run() -> SaveRun:
    """`save_film_run(folder, **config)` writes checkpoints of steps 10, 20, 30, each of other weights."""

    def save(folder: Path, config: AutoencoderRunConfig | None = None) -> Path:
        config = config or small_config()
        task = AutoencoderTask(config)
        model = task.objective.build_model()
        facts = {"config": config.to_dict(), "data": task.data_fingerprint(world_size=1)}
        manager = CheckpointManager(LocalStore(folder / "checkpoints"), CheckpointSettings(), run_id="0123456789ab")
        for step, score in SCORES.items():
            with torch.no_grad():
                model.network.encoder.fmri[-1].bias.fill_(float(step))
            manager.save(step, {"model": model.state_dict()}, {"diag/score": score}, facts)
        (folder / "config.yaml").write_text(config.to_yaml())
        return folder

    return save


@pytest.fixture(scope="session")
def film_run(save_film_run: SaveRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_film_run(tmp_path_factory.mktemp("film") / "run")


@pytest.fixture(scope="session")
def shown(film_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where `octfm reconstruct` has written two samples of the run, and what it printed."""
    out = tmp_path_factory.mktemp("shown")
    with redirect_stdout(io.StringIO()) as said:
        assert main([str(film_run), "--out", str(out), "--num-samples", "2"]) == 0
    return out, said.getvalue()


@pytest.fixture(scope="session")
def held_out(film_run: Path) -> Predictions:
    run = open_autoencoder(str(film_run))
    return predict(run.model, FilmDataset(run.task.film, "val"), batch_size=8, device="cpu", bf16=False)
