"""`octfm embed`: its rows against the encoder called by hand, its metadata, and what happens to broken files."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from pyarrow import parquet

from data_setup.index import PreparedSet
from pretraining.embed import main as embed_command
from pretraining.embedding import embed, open_volumes
from pretraining.encoder_file import load_encoder, random_encoder, weights_sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture
def copied(prepared_scans, tmp_path):
    """A prepared set that a test may damage."""
    return shutil.copytree(prepared_scans, tmp_path / "prepared")


def by_hand(encoder, prepared):
    """Each volume alone: mean over the patches [M, E], all patches [M, N, E]."""
    tokens = []
    for row in prepared.accepted():
        with torch.no_grad():
            tokens.append(encoder(torch.from_numpy(np.array(prepared.volume(row)))[None, None])[0].numpy())
    return np.stack(tokens).mean(axis=1), np.stack(tokens)


def test_the_table_holds_what_the_encoder_says_of_each_volume(run, prepared_scans, tmp_path, capsys):
    out = tmp_path / "new" / "table.parquet"
    assert (
        embed_command(
            [
                str(run),
                str(prepared_scans),
                "--out",
                str(out),
                "--tokens",
                str(tmp_path / "tokens"),
                "--batch-size",
                "5",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "12 volumes, 96 numbers each, step 5" in printed
    assert "1 of 13 files are no usable volumes" in printed
    table = parquet.read_table(out)
    prepared, saved = PreparedSet.load(prepared_scans), load_encoder(str(run))
    rows = prepared.accepted()
    pooled, tokens = by_hand(saved.encoder, prepared)
    assert table["id"].to_pylist() == [row.id for row in rows]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), pooled, atol=1e-6)
    assert table.schema.field("embedding").type.list_size == 96
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["vendor"], first["laterality"], first["split"]) == (rows[0].vendor, rows[0].laterality, rows[0].split)
    assert tuple(first["shape"]) == rows[0].shape
    assert first["spacing_mm"] == pytest.approx(rows[0].spacing_mm)
    facts = json.loads(table.schema.metadata[b"octfm"])
    assert (facts["step"], facts["weights_sha256"]) == (5, weights_sha256(saved.encoder))
    assert facts["model"]["preset"] == "vit_tiny"
    for row, expected in zip(rows, tokens, strict=True):
        with np.load(tmp_path / "tokens" / f"{row.id}.npz") as saved_tokens:
            assert saved_tokens["grid"].tolist() == [2, 2, 2]
            assert saved_tokens["tokens"].dtype == np.float16
            np.testing.assert_allclose(saved_tokens["tokens"], expected, atol=2e-3, rtol=2e-3)
    assert len(list((tmp_path / "tokens").iterdir())) == len(rows)


def test_scans_are_prepared_on_the_way_in_and_found_again(run, scans, tmp_path):
    arguments = [str(run), str(scans), "--work", str(tmp_path / "work"), "--split", "train", "--out"]
    assert embed_command([*arguments, str(tmp_path / "a.parquet")]) == 0
    prepared = PreparedSet.load(tmp_path / "work")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npy")}
    assert embed_command([*arguments, str(tmp_path / "b.parquet")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npy")} == stamps
    first, second = (parquet.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert first.equals(second)
    assert first["id"].to_pylist() == [row.id for row in prepared.accepted("train")]


def test_a_broken_volume_is_named_and_counted_and_the_rest_embedded(run, copied, tmp_path, capsys):
    prepared = PreparedSet.load(copied)
    row = prepared.accepted()[4]
    path = copied / prepared.info["volumes"] / f"{row.id}.npy"
    path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "table.parquet"
    assert embed_command([str(run), str(copied), "--out", str(out)]) == 0
    found = capsys.readouterr()
    assert "11 volumes" in found.out
    assert f"left out: prepared volume {row.id} cannot be read" in found.err
    ids = parquet.read_table(out)["id"].to_pylist()
    assert len(ids) == 11
    assert row.id not in ids
    assert json.loads(parquet.ParquetFile(out).metadata.metadata[b"octfm_left_out"]) == [row.id]


def test_without_a_readable_volume_an_earlier_table_stays(run, copied, tmp_path, capsys):
    prepared = PreparedSet.load(copied)
    for path in (copied / prepared.info["volumes"]).glob("*.npy"):
        path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "table.parquet"
    out.write_text("earlier")
    assert embed_command([str(run), str(copied), "--out", str(out)]) == 2
    assert "none of 12 volumes can be read" in capsys.readouterr().err
    assert out.read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["prepared", "table.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--out": "table.csv"}, "give a file that ends with .parquet"),
        ({"--step": "4"}, "committed steps: [3, 5]"),
        ({"--split": "test"}, "holds no usable volume of split test; there are: 6 train, 6 val, 0 test"),
        ({"--device": "cuda"}, "torch finds no CUDA device"),
    ],
)
def test_a_wrong_call_is_one_line(run, prepared_scans, tmp_path, capsys, changes, message):
    if "--device" in changes and torch.cuda.is_available():
        pytest.skip("THIS MACHINE HAS CUDA: its absence was NOT tested")
    options = {"--out": str(tmp_path / "t.parquet")} | changes
    assert embed_command([str(run), str(prepared_scans), *(word for pair in options.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_set_of_another_size_is_refused_with_the_command_that_mends_it(run, prepared_scans):
    with pytest.raises(
        ValueError, match=r"are \[8,32,32\], the encoder takes \[16,32,32\].*model.image_size=\[16,32,32\]"
    ):
        open_volumes(str(prepared_scans), (16, 32, 32))


def test_embeddings_in_memory_are_those_of_the_table(run, prepared_scans):
    saved, volumes = load_encoder(str(run)), open_volumes(str(prepared_scans), (8, 32, 32))
    calls = []
    found = embed(saved.encoder, volumes, tokens=True, batch_size=5, progress=lambda *done: calls.append(done))
    pooled, tokens = by_hand(saved.encoder, PreparedSet.load(prepared_scans))
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-6)
    np.testing.assert_allclose(found.tokens, tokens, atol=1e-5)
    assert found.ids == [row.id for row in volumes.rows]
    assert calls[-1] == (12, 12)
    assert embed(saved.encoder, volumes).tokens is None


def test_what_a_run_says_of_cropping_reaches_its_embeddings(run, scans, tmp_path):
    saved = load_encoder(str(run))
    config = {**saved.run_config, "data": {"fit": "crop"}}
    volumes = open_volumes(str(scans), (8, 32, 32), work=tmp_path, run_config=config)
    assert volumes.prepared.info["settings"]["fit"] == "crop"


def test_real_scans_go_through_embed_export_and_back(test_data, tmp_path, save_run):
    """Radial scans are no volumes and are left out by name; the macula is embedded, exported and embedded again."""
    from pretraining.export import main as export

    model = save_run(tmp_path / "run", image_size=(16, 64, 64))
    data, work = str(test_data / "oct"), str(tmp_path / "work")
    tables = []
    export([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf")])
    for name in ("run", "hf"):
        out = tmp_path / f"{name}.parquet"
        assert embed_command([str(tmp_path / name), data, "--out", str(out), "--work", work]) == 0
        tables.append(parquet.read_table(out))
    before, after = (np.stack(table["embedding"].to_numpy()) for table in tables)
    assert len(before) >= 2
    assert np.abs(before - after).max() <= 1e-6
    random = embed(random_encoder(model.config), open_volumes(work, (16, 64, 64)))
    assert np.abs(random.pooled - before).max() > 1e-2
