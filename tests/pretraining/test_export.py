"""`octfm export`: the folder in `transformers` gives the same features, and the card says what must be said."""

import json

import pytest
import torch
import yaml

from oct_foundation.models.encoder import standardize
from pretraining.encoder_file import load_encoder, read_weights
from pretraining.export import main as export
from tests.pretraining.report_runs import probe_row

SQUARE = {"positions": "rotary", "rope_layout": "vjepa2"}


def volume(size=(8, 32, 32)):
    return torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def exported(save_run, folder, **model):
    """The run's newest model, and where its Hugging Face folder lies."""
    found = save_run(folder / "run", **model)
    assert export([str(folder / "run"), "--to", "hf", "--out", str(folder / "hf")]) == 0
    return found, folder / "hf"


def card(folder):
    """The header of the model card, and its text."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def loaded_by_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="TRANSFORMERS ABSENT (octfm[dev]): parity was NOT tested")
    model, report = transformers.VJEPA2Model.from_pretrained(folder, output_loading_info=True)
    return model.eval(), report


def test_transformers_loads_the_folder_with_strict_keys_and_gives_the_same_features(save_run, tmp_path, capsys):
    model, folder = exported(save_run, tmp_path, **SQUARE)
    assert "transformers.VJEPA2Model.from_pretrained loads this folder" in capsys.readouterr().out
    peer, report = loaded_by_transformers(folder)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.no_grad():
        theirs = peer(standardize(volume()).transpose(1, 2), skip_predictor=True).last_hidden_state
    difference = (theirs - model.encode(volume())).abs().max().item()
    print(difference)
    assert difference <= 1e-5


def test_the_standardisation_on_file_is_the_one_that_the_encoder_does_itself(save_run, tmp_path):
    model, folder = exported(save_run, tmp_path, **SQUARE)
    facts = json.loads((folder / "preprocessor_config.json").read_text())
    assert facts["size"] == {"num_bscans": 8, "height": 32, "width": 32}
    pixels = (volume().float() * facts["rescale_factor"] - facts["image_mean"][0]) / facts["image_std"][0]
    torch.testing.assert_close(model.encode(pixels), model.encode(volume()), rtol=1e-5, atol=1e-5)


def test_an_encoder_without_its_predictor_lacks_the_documented_keys_only(save_run, tmp_path):
    model, folder = exported(save_run, tmp_path, **SQUARE)
    export([str(tmp_path / "run"), "--to", "safetensors", "--out", str(tmp_path / "small")])
    export([str(tmp_path / "small"), "--to", "hf", "--out", str(tmp_path / "again")])
    peer, report = loaded_by_transformers(tmp_path / "again")
    assert report["missing_keys"]
    assert all(key.startswith("predictor.") for key in report["missing_keys"])
    assert not report["unexpected_keys"]
    assert "keys below `predictor.` as missing" in card(tmp_path / "again")[1]
    assert "keys below `predictor.` as missing" not in card(folder)[1]
    with torch.no_grad():
        theirs = peer(standardize(volume()).transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (theirs - model.encode(volume())).abs().max() <= 1e-5


@pytest.mark.parametrize("model", [{}, {"positions": "rotary"}, {**SQUARE, "image_size": (8, 32, 48)}, SQUARE])
def test_every_folder_is_read_back_with_equal_weights(save_run, tmp_path, model):
    found, folder = exported(save_run, tmp_path, **model)
    saved = load_encoder(str(folder))
    pixels = volume(found.config.image_size)
    with torch.no_grad():
        assert (saved.encoder(pixels) - found.encode(pixels)).abs().max() <= 1e-6
    assert (saved.config, saved.step) == (found.config, 5)
    if model == SQUARE:
        predictor = read_weights(str(folder)).part("predictor.")
        assert all(torch.equal(predictor[name], tensor) for name, tensor in found.predictor.state_dict().items())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, "its positions are sincos"),
        ({"positions": "rotary"}, "rope_layout interleaved"),
        ({**SQUARE, "image_size": (8, 32, 48)}, "B-scans are 32 x 48"),
    ],
)
def test_where_transformers_cannot_follow_the_command_and_the_card_say_why(save_run, tmp_path, capsys, model, reason):
    _, folder = exported(save_run, tmp_path, **model)
    printed = capsys.readouterr().out
    assert "octfm loads this folder, transformers cannot: " in printed
    assert reason in printed
    assert json.loads((folder / "config.json").read_text())["model_type"] == "octfm_vjepa3d"
    header, text = card(folder)
    assert header["library_name"] == "octfm"
    assert reason in text


def test_the_card_of_a_phantom_run_and_of_others_differ_in_duties(save_run, tmp_path):
    save_run(tmp_path / "phantom", source="phantom")
    save_run(tmp_path / "manifest", source="manifest")
    cards = {}
    for source in ("phantom", "manifest"):
        export([str(tmp_path / source), "--to", "hf", "--out", str(tmp_path / f"{source}-hf")])
        cards[source] = card(tmp_path / f"{source}-hf")
    assert cards["phantom"][0]["license"] == "apache-2.0"
    assert cards["manifest"][0]["license"] == "other"
    assert "type 2 diabetes" in cards["manifest"][1]
    assert "type 2 diabetes" not in cards["phantom"][1]
    for header, text in cards.values():
        assert header["pipeline_tag"] == "image-feature-extraction"
        assert "For research only" in text
        assert "train/loss | 0.2" in text
        assert "CANNOT TELL" in text or "Unknown: the diagnostics" in text
        assert str(tmp_path) not in text


def test_a_card_shows_the_verdict_of_its_run(save_run, tmp_path):
    save_run(tmp_path / "run")
    readings = [{"step": step, "diag/pos_ratio": 0.1, "diag/pooled_std_ratio": 1.0} for step in range(6)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in readings))
    export([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf")])
    text = card(tmp_path / "hf")[1]
    assert any(f"**{verdict}.**" in text for verdict in ("LEARNING", "NOT LEARNING", "COLLAPSED", "CANNOT TELL"))


def test_a_card_shows_probes_of_the_exported_weights_and_says_where_they_are_of_others(save_run, tmp_path):
    save_run(tmp_path / "run")
    (tmp_path / "run" / "probes").mkdir()
    secret = str(tmp_path / "clinic-of-dr-who")
    about = {"acquaintance": "The encoder was pretrained on 3 of the 9 volumes: scores may be too good."}
    for name, label, data, more in [
        ("3-phantoms.json", "of_3", "phantoms", {}),
        ("3-a-000000.json", "of_3_too", secret, {"split": "val and test", **about}),
        ("5-phantoms.json", "of_5", "phantoms", {}),
    ]:
        rows = [probe_row("encoder", 0.7, label=label, data=data, **more)]
        (tmp_path / "run" / "probes" / name).write_text(json.dumps(rows))
    texts = {}
    for step in ("3", "5"):
        export([str(tmp_path / "run"), "--to", "hf", "--step", step, "--out", str(tmp_path / step)])
        texts[step] = card(tmp_path / step)[1]
    assert "Generated eyes (phantoms), weights after 5 updates:" in texts["5"]
    assert "| of 5 | ridge |" in texts["5"]
    assert "of 3" not in texts["5"]
    assert "Data set 1, val and test, weights after 3 updates:" in texts["3"]
    assert f"updates:\n\n{about['acquaintance']}\n\n| label | probe |" in texts["3"]
    assert "not of the weights in this folder" not in texts["3"] + texts["5"]
    assert "clinic" not in texts["3"]
    (tmp_path / "run" / "probes" / "5-phantoms.json").unlink()
    export([str(tmp_path / "run"), "--to", "hf", "--step", "5", "--out", str(tmp_path / "5")])
    text = card(tmp_path / "5")[1]
    assert "Generated eyes (phantoms), weights after 3 updates:" in text
    assert text.count("**These scores are not of the weights in this folder**, which are those after 5 updates") == 2
    assert "\n\n| label | probe |" in text  # Markdown needs an empty line before a table


def test_a_wrong_call_is_one_line(tmp_path, capsys):
    assert export([str(tmp_path / "absent"), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nobody_elses_files_are_replaced(save_run, tmp_path, capsys):
    save_run(tmp_path / "run")
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine")
    assert export([str(tmp_path / "run"), "--to", "hf", "--out", str(project)]) == 2
    assert "project holds README.md, which this command has not written" in capsys.readouterr().err
    assert [path.read_text() for path in project.iterdir()] == ["mine"]
