"""Every place an encoder may lie in gives the same network; everything else is refused with a remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from oct_foundation.models.vjepa3d import VJEPA3DConfig
from pretraining.checkpoint_commands import main as checkpoints
from pretraining.encoder_file import load_encoder, random_encoder, read_weights, weights_sha256
from pretraining.export import main as export


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("run")
    return folder, save_run(folder)


def volume():
    return torch.randint(0, 256, (2, 1, 8, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def places(folder, tmp_path):
    """Name -> where the newest encoder of the run lies."""
    checkpoints(["export", str(folder), "--to", str(tmp_path / "full")])
    export([str(folder), "--to", "hf", "--out", str(tmp_path / "hf")])
    export([str(folder), "--to", "safetensors", "--out", str(tmp_path / "small")])
    newest = max((folder / "checkpoints").glob("step-00000005-*"))
    return {
        "run": folder,
        "checkpoints": folder / "checkpoints",
        "one checkpoint": newest,
        "export": tmp_path / "full",
        "best_checkpoint.pt": tmp_path / "full" / "best_checkpoint.pt",
        "encoder.safetensors": tmp_path / "small" / "encoder.safetensors",
        "safetensors": tmp_path / "small",
        "hugging face": tmp_path / "hf",
    }


def test_every_place_gives_the_teacher_of_the_newest_step(run, tmp_path):
    folder, model = run
    expected = model.encode(volume())
    for name, place in places(folder, tmp_path).items():
        saved = load_encoder(str(place))
        with torch.no_grad():
            difference = (saved.encoder(volume()) - expected).abs().max().item()
        assert difference <= 1e-6, name
        assert (saved.step, saved.config, saved.width) == (5, model.config, 96), name
        assert saved.run_folder == (folder if name in ("run", "checkpoints", "one checkpoint") else None), name
        assert not saved.encoder.training
        assert weights_sha256(saved.encoder) == weights_sha256(model.target_encoder), name


def test_a_step_of_a_run_is_that_steps_encoder(run):
    folder, model = run
    older = load_encoder(str(folder), step=3)
    assert older.step == 3
    assert weights_sha256(older.encoder) != weights_sha256(model.target_encoder)
    assert older.run_config["data"] == {"source": "phantom"}


def test_a_damaged_checkpoint_is_passed_over_and_no_note_is_left(tmp_path, save_run):
    save_run(tmp_path)
    newest = next((tmp_path / "checkpoints").glob("step-00000005-*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    before = sorted(tmp_path.rglob("*"))
    assert load_encoder(str(tmp_path)).step == 3
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="is not intact"):
        load_encoder(str(tmp_path), step=5)


def test_what_is_no_encoder_is_refused_with_what_is_allowed(tmp_path, run):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    torch.save({"weights": 1}, tmp_path / "y.pt")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "checkpoints").mkdir()
    folder, _ = run
    for source, step, message in [
        (tmp_path / "absent", None, "does not exist. Give a run folder"),
        (tmp_path, None, "holds no encoder, but: empty, notes.txt"),
        (tmp_path / "x.pt", None, "is no saved checkpoint"),
        (tmp_path / "y.pt", None, "holds no model with its config and step"),
        (tmp_path / "vit", None, "model_type 'vit' and not written by octfm"),
        (tmp_path / "empty", None, "holds no checkpoint"),
        (folder, 4, r"committed steps: \[3, 5\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_encoder(str(source), step=step)


def test_a_step_that_contradicts_the_path_is_refused(run):
    folder, _ = run
    newest = next((folder / "checkpoints").glob("step-00000005-*"))
    assert load_encoder(str(newest), step=5).step == 5
    with pytest.raises(ValueError, match="is the checkpoint of step 5, --step says 3; leave one of them out"):
        load_encoder(str(newest), step=3)


def test_an_export_holds_one_step(run, tmp_path):
    folder, _ = run
    export([str(folder), "--to", "safetensors", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="holds step 5 only, not 3"):
        load_encoder(str(tmp_path), step=3)


def test_keys_are_strict(run, tmp_path):
    folder, _ = run
    export([str(folder), "--to", "hf", "--out", str(tmp_path)])
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    gone = weights.pop("norm.bias")
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"1 missing \(norm.bias\)"):
        load_encoder(str(tmp_path))
    save_file({**weights, "norm.bias": gone[:5].clone(), "extra": gone}, path)
    with pytest.raises(
        ValueError, match=r"1 unexpected \(extra\); 1 of another shape \(norm.bias \[5\] instead of \[96\]\)"
    ):
        load_encoder(str(tmp_path))


def test_weights_that_encoder_json_does_not_name_are_refused(run, tmp_path):
    folder, _ = run
    export([str(folder), "--to", "safetensors", "--out", str(tmp_path / "a")])
    export([str(folder), "--to", "safetensors", "--step", "3", "--out", str(tmp_path / "b")])
    shutil.copy(tmp_path / "b" / "encoder.safetensors", tmp_path / "a" / "encoder.safetensors")
    with pytest.raises(ValueError, match="not the file whose sha256"):
        load_encoder(str(tmp_path / "a"))


def test_a_model_of_another_version_is_refused_by_the_key_that_is_new(run, tmp_path):
    folder, _ = run
    export([str(folder), "--to", "hf", "--out", str(tmp_path)])
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["octfm"]["model"]["wavelets"] = True
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="its model has wavelets"):
        read_weights(str(tmp_path))


def test_a_random_encoder_follows_from_its_seed_and_leaves_the_generator_alone():
    config = VJEPA3DConfig(preset="vit_tiny", image_size=(8, 32, 32))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = random_encoder(config, 4), random_encoder(config, 4), random_encoder(config, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
