import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_setup.arrays import write_prepared
from data_setup.index import IndexRow
from data_setup.phantom_benchmark import LABELS_NAME, BenchmarkSettings, write_benchmark
from oct_foundation.runtime.native import NativeRuntime
from pretraining.assemble import build_state
from pretraining.assemble_diagnostics import build_diagnostics, default_interval
from pretraining.config import ConfigError, load_as
from pretraining.diagnose import Diagnostics
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState
from pretraining.step import train_step
from pretraining.tasks.vjepa import VJEPATask
from pretraining.vjepa_config import VJEPARunConfig
from tests.integration.conftest import SMOKE

EYES = BenchmarkSettings(num_volumes=26, image_size=(8, 32, 32), patch_size=(4, 16, 16))
TINY = (
    "model.preset=vit_tiny", "model.image_size=[8,32,32]", "data.source=prepared", "data.max_samples=null",
    "batch.global_batch_size=4", "batch.per_core_batch_size=4", "train.precision=fp32", "train.max_steps=200",
    "train.epochs=1000",
)  # fmt: skip
RUNTIME = NativeRuntime("cpu")


class Watched:
    """A model on 8 training and 18 held-out eyes, which do not divide into batches of 4, and what looks at it."""

    def __init__(self, folder: Path, *overrides: str, volumes: list[np.ndarray] | None = None) -> None:
        self.folder = folder
        if volumes is None:
            self.prepared = write_benchmark(folder / "set", EYES, num_train=8, num_val=18)
        else:
            splits = ["train"] * 4 + ["val"] * (len(volumes) - 4)
            rows = [IndexRow(id=f"v{n:02}", status="accepted", split=split) for n, split in enumerate(splits)]
            self.prepared = write_prepared(folder / "set", rows, volumes)
        self.config: VJEPARunConfig = load_as(VJEPARunConfig, SMOKE, [*TINY, f"data.root={folder / 'set'}", *overrides])
        self.task = VJEPATask(self.config, self.prepared)
        self.state: TrainState = build_state(self.config, self.task.objective, RUNTIME)
        self.diagnostics = self.look_anew()

    def look_anew(self) -> Diagnostics:
        run = RunFolder(self.folder / "run")
        found = build_diagnostics(self.config, self.prepared, self.state.model, RUNTIME, total_steps=200, folder=run)
        assert found is not None
        return found

    def train(self, steps: int) -> None:
        scalars = self.config.optim.schedules(200).at(100)
        for batch in self.task.train_batches(rank=0, world_size=1, start_step=self.state.step, num_steps=steps):
            objective, state = self.task.objective, self.state
            train_step(objective, state.model, state.replica, state.optimizer, RUNTIME, [batch], scalars, "fp32")
            self.state.step += 1

    def read(self):
        return self.diagnostics.read(self.state, RUNTIME, {"learning_rate": 1e-4, "ema_momentum": 0.99})


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_every_held_out_volume_counts_whatever_the_batch(watched):
    values, _ = watched.read()
    assert values["num_volumes"] == 18
    assert "scan_r2" in values


def test_labels_of_volumes_that_do_not_fill_the_last_batch_are_probed_for(tmp_path, caplog):
    watched = Watched(tmp_path, f"diagnostics.labels={tmp_path / 'set' / LABELS_NAME}")
    values, _ = watched.read()
    assert {"probe/thickness_um", "probe/drusen_count", "probe_init/thickness_um"} <= values.keys()
    assert "no column patient" in caplog.text


def test_what_the_untrained_encoder_scored_is_kept_and_never_made_up(tmp_path):
    watched = Watched(tmp_path, f"diagnostics.labels={tmp_path / 'set' / LABELS_NAME}")
    start, _ = watched.read()
    watched.train(3)
    later, _ = watched.read()
    assert later["probe_init/fluid"] == start["probe/fluid"] != later["probe/fluid"]
    watched.diagnostics = watched.look_anew()  # another machine, whose record is lost
    unknown, _ = watched.read()
    assert "probe/fluid" in unknown
    assert "probe_init/fluid" not in unknown
    watched.diagnostics = watched.look_anew()
    watched.diagnostics.take_up(3, start)  # the checkpoint has carried the first reading
    assert watched.read()[0]["probe_init/fluid"] == start["probe/fluid"]


def test_labels_that_fit_nothing_are_a_wrong_configuration(tmp_path):
    (tmp_path / "labels.csv").write_text("id,age\nsomebody,3\n")
    with pytest.raises(ConfigError, match=r"diagnostics\.labels.*no row"):
        Watched(tmp_path, f"diagnostics.labels={tmp_path / 'labels.csv'}")
    with pytest.raises(ConfigError, match=r"phantoms needs data\.source=phantom; found prepared"):
        Watched(tmp_path, "diagnostics.labels=phantoms")


def test_weights_that_are_not_numbers_are_a_finding_and_no_crash(watched):
    watched.read()
    with torch.no_grad():
        for weight in watched.state.model.parameters():
            weight.fill_(torch.nan)
    watched.state.step = 150
    _, judgement = watched.read()
    assert judgement.verdict == "NOT LEARNING"
    assert "not_finite" in {finding.name for finding in judgement.findings}


def test_equal_volumes_are_a_finding_and_no_crash(tmp_path, caplog):
    watched = Watched(tmp_path, volumes=[np.full((8, 32, 32), 90, np.uint8)] * 24)
    values, judgement = watched.read()
    assert "scan_r2" not in values
    assert all(np.isfinite(value) for value in values.values())
    watched.state.step = 120
    _, judgement = watched.read()
    assert judgement.verdict != "LEARNING"


def test_a_disk_that_refuses_pictures_is_one_warning(watched, caplog):
    pictures = RunFolder(watched.folder / "run").pictures
    pictures.parent.mkdir(parents=True)
    pictures.write_text("a file where the folder should be")
    for _ in range(2):
        assert watched.read() is not None
        watched.state.step += 1
    assert caplog.text.count("the report will lack pictures") == 1


def test_the_first_and_the_newest_pictures_stay(watched):
    for step in (0, 10, 20):
        watched.state.step = step
        watched.read()
    found = sorted(path.name for path in RunFolder(watched.folder / "run").pictures.iterdir())
    assert found == ["pictures-0.npz", "pictures-20.npz"]
    with np.load(RunFolder(watched.folder / "run").pictures / found[0]) as file:
        assert sorted(set(file["vendors"].tolist())) == ["maker A", "maker B", "maker C"]
        assert file["pca"].shape == (4, 2, 2, 3)
        assert np.array_equal(np.isnan(file["similarity"]), ~file["hidden"])


def test_a_held_out_volume_that_is_gone_costs_readings_and_not_the_run(watched, caplog):
    row = watched.prepared.accepted("val")[3]
    (watched.prepared.folder / watched.prepared.info["volumes"] / f"{row.id}.npy").unlink()
    assert watched.read() is None
    assert row.id in caplog.text


def test_a_reading_changes_nothing_of_the_training(tmp_path):
    runs = [Watched(tmp_path / name) for name in ("seen", "unseen")]
    for number, watched in enumerate(runs):
        watched.train(2)
        if number == 0:
            before = torch.get_rng_state()
            watched.read()
            assert torch.equal(torch.get_rng_state(), before)
            assert all(weight.grad is None for weight in watched.state.model.parameters())
            assert watched.state.model.context_encoder.training
            assert not watched.state.model.target_encoder.training
        watched.train(2)
    for seen, unseen in zip(runs[0].state.model.parameters(), runs[1].state.model.parameters(), strict=True):
        assert torch.equal(seen, unseen)


def test_the_update_of_a_skipped_step_is_no_reading(watched):
    watched.train(2)
    assert watched.read()[0]["update_ratio/encoder"] > 0
    for weight in watched.state.optimizer.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    watched.state.optimizer.step()
    watched.state.optimizer.zero_grad()
    watched.state.step += 1
    assert "update_ratio/encoder" not in watched.read()[0]


def test_a_finding_is_told_once_and_again_only_after_another_start(watched, caplog):
    caplog.set_level(logging.WARNING)
    for step in (0, 120, 150, 180):
        watched.state.step = step
        watched.read()  # nothing trains between them
    assert caplog.text.count("nothing_trains") == 1


def test_without_volumes_to_hold_out_nothing_is_looked_at(tmp_path, caplog):
    prepared = write_benchmark(tmp_path / "set", replace(EYES, num_volumes=5), num_train=5)
    config = load_as(VJEPARunConfig, SMOKE, [*TINY, f"data.root={tmp_path / 'set'}"])
    model = VJEPATask(config, prepared).objective.build_model()
    assert build_diagnostics(config, prepared, model, RUNTIME, total_steps=9, folder=RunFolder(tmp_path)) is None
    assert "data.val_fraction" in caplog.text


@pytest.mark.parametrize("world", [1, 8])
def test_readings_take_two_per_cent_of_the_volume_steps(world):
    every = default_interval(num_volumes=128, width=384, num_domains=3, batch_size=2, global_batch=32, world_size=world)
    cost = 128 + 55 * 8 / 7 + 3 * 2 * world
    assert 0.0195 <= cost / (every * 32) <= 0.02
