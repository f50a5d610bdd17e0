"""Whole runs of the brain/stimulus autoencoder on a generated film: devices, ranks, resume, early end, best, last."""

import re
import shutil

import numpy as np
import pytest

from oct_foundation.checkpoints.manifest import CheckpointName
from oct_foundation.diagnostics.film_verdict import as_values
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import ConfigError, load_as
from pretraining.film_series import FilmSeries
from pretraining.health.command import main
from pretraining.tasks.autoencoder import AutoencoderTask
from tests.integration.conftest import PROJECT, assert_states_equal

CONFIG = PROJECT / "configs" / "autoencoder_phantom.yaml"
STEPS = 12
# 160 training TRs, a gap of 20, 20 held out: a last batch of them that has to be filled.
TINY = (
    "data.phantom.num_trs=200", "data.phantom.voxels=6", "data.phantom.height=4", "data.phantom.width=6",
    "data.phantom.text_dim=8", "data.phantom.num_subjects=3", "model.preset=tiny", "batch.global_batch_size=12",
    "batch.per_core_batch_size=12", "optim.warmup_steps=2", "train.log_every_steps=1", "evaluation.every_steps=4",
    "checkpoint.every_steps=4",
)  # fmt: skip
SHORT = (*TINY, f"train.max_steps={STEPS}")
LINE = re.compile(
    r"Epoch \d+/\d+ \| Train Loss: (\S+) \| Val Loss: (\S+) \| fMRI Corr: (-?\d\.\d{4}) \| LR: (\d\.\d\de[+-]\d\d)"
)


@pytest.fixture(scope="module")
def cpu_run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("cpu"), *SHORT, "model.decoder_dropout=0.2", config=CONFIG)


@pytest.fixture(scope="module")
def plain_run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"), *SHORT, config=CONFIG)


def series_of(run, name: str = "last") -> FilmSeries:
    return FilmSeries.load(run.folder / "evaluation" / f"{name}.npz")


def test_xla_makes_one_program_and_learns_the_same(train, plain_run, tmp_path):
    xla = train(tmp_path / "xla", *SHORT, device="xla", config=CONFIG)
    assert xla.summary["train_step_graphs"] == 1
    for name in ("train/loss", "diag/val_loss", "diag/fvu/fmri"):
        expected = plain_run.curve(name)
        assert expected
        assert xla.curve(name) == {step: pytest.approx(value, rel=2e-3) for step, value in expected.items()}


def test_every_held_out_tr_is_predicted_once_and_the_record_says_what_the_series_say(plain_run):
    series = series_of(plain_run)
    assert (series.step, series.complete, series.leak_free) == (STEPS, True, True)
    assert series.trs.tolist() == list(range(180, 200))
    values = as_values(series.verdicts())
    last = [row for row in plain_run.rows if "diag/score" in row][-1]
    for name, value in values.items():
        assert last[f"diag/{name}"] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    error = ((series.truth["fmri"] - series.prediction["fmri"]) ** 2).mean() / series.variance["fmri"]
    assert last["diag/fvu/fmri"] == pytest.approx(error, rel=1e-5)
    assert last["diag/val_loss/fmri"] == pytest.approx(error, rel=1e-5)
    assert [row["train/total_loss"] for row in plain_run.rows if "train/loss" in row]
    assert last["diag/val_loss"] == pytest.approx(sum(last[f"diag/val_loss/{n}"] for n in values_of_film()), rel=1e-6)


def values_of_film() -> tuple[str, ...]:
    return ("video", "audio", "text", "fmri")


def test_shares_of_loss_and_gradient_add_up(plain_run):
    for row in plain_run.rows:
        if "train/loss" in row:
            assert sum(row[f"train/share/{name}"] for name in values_of_film()) == pytest.approx(1)
            assert row["train/total_loss"] == pytest.approx(row["train/loss"])
    shares = [row for row in plain_run.rows if "diag/grad_share/fmri" in row]
    assert [row["step"] for row in shares] == [4, 8, 12]
    assert all(sum(row[f"diag/grad_share/{name}"] for name in values_of_film()) == pytest.approx(1) for row in shares)


def test_the_log_has_the_documented_line_for_each_reading(plain_run):
    lines = (plain_run.folder / "training.log").read_text().splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert len(found) == 3
    assert all(found)
    assert float(found[-1][2]) == pytest.approx(plain_run.curve("diag/val_loss")[STEPS], abs=1e-4)
    losses = plain_run.curve("train/loss")
    assert float(found[-1][1]) == pytest.approx(np.mean([losses[step] for step in range(9, 13)]), abs=1e-4)


def test_the_best_series_and_checkpoint_are_those_of_the_best_score(plain_run):
    scores = {step: score for step, score in plain_run.curve("diag/score").items() if step}
    best = max(scores, key=lambda step: scores[step])
    assert series_of(plain_run, "best").step == best
    saved = [CheckpointName.of_key(path.name).step for path in (plain_run.folder / "checkpoints").glob("step-*")]
    assert best in saved


def test_a_resumed_run_goes_on_bit_for_bit(train, cpu_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cpu_run.folder, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if CheckpointName.of_key(path.name).step > 4:
            shutil.rmtree(path)
    resumed = train(folder, *SHORT, "model.decoder_dropout=0.2", config=CONFIG)
    assert resumed.summary["start_step"] == 4
    assert resumed.curve("train/loss") == cpu_run.curve("train/loss")
    assert resumed.curve("diag/score") == cpu_run.curve("diag/score")
    assert_states_equal(resumed.state()["model"], cpu_run.state()["model"])


@pytest.mark.parametrize("sharding", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_two_ranks_equal_one_process_and_validate_all_together(train, plain_run, tmp_path, sharding):
    ranks = ("runtime.num_processes=2", "batch.per_core_batch_size=6", f"train.sharding={sharding}")
    two = train(tmp_path / "two", *SHORT, *ranks, config=CONFIG)
    for name in ("train/loss", "train/grad_norm", "diag/val_loss", "diag/r_time/fmri"):
        expected = plain_run.curve(name)
        assert expected
        assert two.curve(name) == {step: pytest.approx(value, rel=2e-3) for step, value in expected.items()}, name
    assert series_of(two).trs.tolist() == list(range(180, 200))


@pytest.mark.slow
def test_running_statistics_of_two_ranks_become_those_of_one_process(train, tmp_path):
    """With weights that stand still the mean over ranks is the mean over the whole batch."""
    still = ("model.norm=batch", "optim.base_lr=0", "optim.weight_decay=0")
    one = train(tmp_path / "one", *SHORT, *still, config=CONFIG).state()["model"]
    ranks = ("runtime.num_processes=2", "batch.per_core_batch_size=6")
    two = train(tmp_path / "two", *SHORT, *still, *ranks, config=CONFIG).state()["model"]
    name = "network.encoder.video.0.dense.norm.running_mean"
    assert one[name].abs().max() > 0.01
    assert_states_equal(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_a_run_ends_when_its_score_does_not_rise_and_stays_at_its_end(train, tmp_path):
    still = ("evaluation.early_stopping_patience=1", "evaluation.early_stopping_delta=100")
    run = train(tmp_path / "run", *SHORT, *still, config=CONFIG)
    assert (run.summary["outcome"], run.summary["steps"], run.summary["total_steps"]) == ("completed", 8, STEPS)
    assert main([str(run.folder), "--out", str(tmp_path / "health")]) != 3
    assert "rate_not_as_planned" not in (tmp_path / "health" / "health.json").read_text()
    assert "has not risen for 1 readings" in run.output
    again = train(tmp_path / "run", *SHORT, *still, config=CONFIG)
    assert again.summary["steps"] == 8


@pytest.mark.slow
def test_a_modality_of_weight_0_is_neither_trained_nor_judged_also_on_two_ranks(train, tmp_path):
    ranks = ("runtime.num_processes=2", "batch.per_core_batch_size=6")
    rarely = "train.log_every_steps=100"  # a reading without a logged loss before it: no NaN in training.log
    run = train(tmp_path / "run", *SHORT, *ranks, "loss.video_weight=0", rarely, config=CONFIG)
    found = [LINE.fullmatch(line) for line in (run.folder / "training.log").read_text().splitlines()]
    assert all(float(line[1]) > 0 for line in found)
    last = [row for row in run.rows if "diag/score" in row][-1]
    assert {name for name in last if name.startswith("diag/verdict/")} == {
        f"diag/verdict/{name}" for name in ("audio", "text", "fmri")
    }


@pytest.mark.slow
def test_learned_weights_of_the_losses_move(train, tmp_path):
    run = train(tmp_path / "run", *SHORT, "loss.balance=uncertainty", config=CONFIG)
    log_variances = run.state()["model"]["balance.log_variances"]
    assert (log_variances.abs() > 1e-4).all()
    names = values_of_film()
    first, last = (next(row for row in run.rows if row["step"] == step and "train/loss" in row) for step in (1, STEPS))
    assert [first[f"train/share/{name}"] for name in names] != [last[f"train/share/{name}"] for name in names]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.source=folder", "data.path is needed"),
        ("train.remat=all", "model.gradient_checkpointing"),
        ("model.preset=huge", "'documented', 'small', 'tiny'"),
        ("data.max_trs=10", "data.gap_trs"),
        ("loss.fmri_weight=-1", "loss.fmri_weight"),
        ("checkpoint.best_metric=diag/val_loss", "best_metric"),
    ],
)
def test_what_cannot_work_is_refused_in_words(override, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        AutoencoderTask(load_as(AutoencoderRunConfig, CONFIG, [*SHORT, override]))
