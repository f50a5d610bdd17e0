"""Which volumes an encoder was pretrained on, from the set of its run: by voxels, else by ids; else nobody knows."""

import json
import shutil
from dataclasses import replace

import pytest

from data_setup.index import IndexRow, PreparedSet
from pretraining.encoder_file import load_encoder
from pretraining.export import main as export
from pretraining.seen_volumes import TrainedOn, told


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


def trained_on(run, prepared, config, tmp_path):
    """What the run is found to have trained on, with `prepared` in its folder where it is not None."""
    folder = shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
    if prepared is not None:
        shutil.copytree(prepared, folder / "prepared", dirs_exist_ok=True)
    saved = load_encoder(str(folder))
    return TrainedOn.of(replace(saved, run_config={**saved.run_config, **config}))


def test_the_train_split_of_the_runs_own_set_was_seen(run, prepared_scans, tmp_path):
    found, prepared = trained_on(run, prepared_scans, {}, tmp_path), PreparedSet.load(prepared_scans)
    assert found.is_set(prepared)
    rows = prepared.accepted()
    assert found.has_seen(rows, "resize") == [row.split == "train" for row in rows]


def test_equal_voxels_are_known_under_other_ids_and_other_voxels_are_not_known_by_theirs(run, prepared_scans, tmp_path):
    found = trained_on(run, prepared_scans, {}, tmp_path)
    train = next(row for row in found.rows)
    renamed, other = replace(train, id="f" * 16), replace(train, sha256="0" * 64)
    unhashed = IndexRow(id=train.id, status="accepted")
    assert found.has_seen([renamed, other, unhashed], "resize") == [True, False, True]
    assert found.has_seen([renamed, other, unhashed], "crop") == [False, True, True]


def test_a_set_given_as_prepared_is_found_by_its_path(run, prepared_scans, tmp_path):
    data = {"source": "prepared", "root": str(prepared_scans)}
    found = trained_on(run, None, {"data": data}, tmp_path)
    assert found.is_set(PreparedSet.load(prepared_scans))
    data["select"] = {"manufacturers": ["no such maker"], "participants": None}
    assert trained_on(run, None, {"data": data}, tmp_path).rows == []


def test_a_set_of_another_seed_or_none_is_no_answer(run, prepared_scans, tmp_path):
    assert trained_on(run, None, {}, tmp_path) is None
    assert trained_on(run, prepared_scans, {"seed": 7}, tmp_path) is None
    (tmp_path / "run" / "prepared" / "index.jsonl").write_text("")
    [version] = (tmp_path / "run" / "prepared").glob("*/")
    (version / "index.jsonl").write_text(json.dumps({}))
    assert trained_on(tmp_path / "run", None, {}, tmp_path / "again") is None


def test_an_export_knows_nothing(run, tmp_path):
    export([str(run), "--to", "hf", "--out", str(tmp_path / "hf")])
    assert TrainedOn.of(load_encoder(str(tmp_path / "hf"))) is None


@pytest.mark.parametrize(
    ("num_seen", "text"),
    [(None, "12 volumes may be some"), (0, "none of the 12 volumes"), (3, "3 of the 12 volumes: scores may be too")],
)
def test_people_are_told(num_seen, text):
    assert text in told(num_seen, 12)
