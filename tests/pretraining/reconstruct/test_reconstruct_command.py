"""`octfm reconstruct` from a run folder to a page: checkpoint, verdicts, files, and what is refused."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from oct_foundation.checkpoints.location import LocalPath
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.opening import open_store
from oct_foundation.checkpoints.retention import CheckpointSettings
from pretraining.reconstruct.album import draw_album
from pretraining.reconstruct.command import main
from pretraining.reconstruct.judging import judge, series_of
from pretraining.reconstruct.opening import open_autoencoder
from pretraining.reconstruct.page import headline
from tests.pretraining.reconstruct.film_runs import small_config

FILES = [f"{name}_reconstruction.png" for name in ("audio", "fmri", "text", "video")]


def checkpoint(run: Path, step: int) -> Path:
    [found] = (run / "checkpoints").glob(f"step-{step:08d}-*")
    return found


def resaved(run: Path, **config: object) -> None:
    """A newer checkpoint of another configuration."""
    manager = CheckpointManager(open_store(LocalPath(path=run / "checkpoints")), CheckpointSettings(), run_id="0" * 12)
    state, manifest = manager.restore()
    manager.save(99, state, {"diag/score": 9.0}, manifest.facts | {"config": manifest.facts["config"] | config})


@pytest.fixture
def own_run(film_run, tmp_path) -> Path:
    """A copy to change."""
    return shutil.copytree(film_run, tmp_path / "run")


def test_a_run_becomes_pictures_and_one_page_that_needs_nothing_else(shown):
    out, said = shown
    for place in (0, 1):
        assert sorted(path.name for path in (out / f"sample_{place}").iterdir()) == FILES
    page = (out / "reconstructions.html").read_text()
    pictures = sorted(base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page))
    assert pictures == sorted(path.read_bytes() for path in out.rglob("*.png"))
    assert len(pictures) == 2 * 4 + 1
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]{1,30})', page)
    assert {link[:11] for link in links} == {"data:image/"}
    assert "<script" not in page
    assert f"{out}/reconstructions.html" in said
    for name in ("video", "audio", "text", "fmri"):
        assert re.search(rf"^{name} (LEARNED|NOT LEARNED|CANNOT TELL): ", said, re.M)
    assert len(re.findall(r"<h2>TR \d+</h2>", page)) == 2


def test_the_best_checkpoint_is_shown_and_said(film_run):
    run = open_autoencoder(str(film_run))
    assert (run.step, run.which) == (20, "the best of 3 by diag/score: 0.3")
    assert run.model.network.encoder.fmri[-1].bias[0] == 20  # its weights, not its name alone
    assert not run.model.training


def test_a_checkpoint_knows_its_widths_whatever_its_preset_has_become(own_run):
    """`tiny` of this version stands for a preset of another one: only the name of it differs."""
    before = open_autoencoder(str(own_run))
    saved = before.task.config.to_dict()["model"]
    assert saved["joint_widths"] == (32, 32)
    resaved(own_run, model=json.loads(json.dumps(saved | {"preset": "small"})))
    run = open_autoencoder(str(own_run))
    assert run.step == 99
    assert run.model.network.config == before.model.network.config


def test_a_checkpoint_that_is_named_is_the_one(film_run):
    run = open_autoencoder(str(checkpoint(film_run, 10)))
    assert (run.step, run.which) == (10, "the one named")
    assert run.model.network.encoder.fmri[-1].bias[0] == 10
    assert run.folder == film_run


def test_without_a_metric_the_newest_is_shown(save_film_run, tmp_path):
    run = open_autoencoder(str(save_film_run(tmp_path / "run", small_config(best_metric=None))))
    assert run.step == 30
    assert "newest of 3" in run.which


def test_a_damaged_best_checkpoint_is_a_warning_and_the_next_best_is_taken(own_run, caplog):
    file = checkpoint(own_run, 20) / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    run = open_autoencoder(str(own_run))
    assert (run.step, "0.2" in run.which) == (30, True)
    assert "step 20, the best, is damaged" in caplog.text
    assert not list(own_run.rglob("quarantine.json"))  # looking changes nothing


def test_verdicts_are_the_runs_own_where_it_wrote_them_at_this_step(own_run, held_out):
    run = open_autoencoder(str(own_run))
    computed = judge(run, held_out)
    assert "made for this page" in computed.basis
    series = series_of(run, held_out)
    series.save(own_run / "evaluation" / "best.npz")
    written = judge(run, held_out)
    assert "evaluation/best.npz" in written.basis
    assert written.verdicts == computed.verdicts
    assert written.ceiling == computed.ceiling
    other = open_autoencoder(str(checkpoint(own_run, 30)))
    assert "made for this page" in judge(other, held_out).basis
    (own_run / "evaluation" / "best.npz").write_bytes(b"no")
    assert "made for this page" in judge(run, held_out).basis


def test_training_trs_get_no_verdict(own_run, capsys):
    assert main([str(own_run), "--split", "train", "--num-samples", "1"]) == 0
    page = (own_run / "reconstructions-train" / "reconstructions.html").read_text()
    assert "No verdict" in page
    assert not re.search(r"\b(NOT )?LEARNED\b|CANNOT TELL", page + capsys.readouterr().out)


def test_pictures_of_an_earlier_call_do_not_stay_beside_new_ones(tmp_path, held_out):
    for place in (1, 2):
        (tmp_path / f"sample_{place}").mkdir()
        for name in FILES:
            (tmp_path / f"sample_{place}" / name).write_bytes(b"of another checkpoint")
    (tmp_path / "sample_2" / "mine.txt").write_text("a note")
    draw_album(tmp_path, held_out, [5], None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overview.png", "sample_0", "sample_2"]
    assert [path.name for path in (tmp_path / "sample_2").iterdir()] == ["mine.txt"]


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("octfm: ")
    return said


def test_a_run_of_another_task_is_refused(own_run, capsys):
    resaved(own_run, task="vjepa")
    assert "is a run of task vjepa" in refused(capsys, str(own_run))


def test_a_place_without_a_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert "holds no checkpoint" in refused(capsys, str(tmp_path))
    assert "no folder" in refused(capsys, str(tmp_path / "absent"))


def test_a_film_that_has_moved_is_refused_with_what_to_do(own_run, capsys):
    config = json.loads((checkpoint(own_run, 20) / "manifest.json").read_text())["facts"]["config"]
    sizes = {"n_voxels": 10, "text_dim": 8, "audio_codebooks": 2, "audio_frames_per_tr": 4}
    resaved(
        own_run,
        data=config["data"] | {"source": "folder", "path": "/nowhere/film"},
        model=config["model"] | sizes,
    )
    said = refused(capsys, str(own_run))
    assert "/nowhere/film" in said
    assert "--data DIR" in said
    assert "/elsewhere" in refused(capsys, str(own_run), "--data", "/elsewhere")


def test_another_film_is_refused(own_run, capsys):
    config = json.loads((checkpoint(own_run, 20) / "manifest.json").read_text())["facts"]["config"]
    phantom = config["data"]["phantom"] | {"seed": 1}
    resaved(own_run, data=config["data"] | {"phantom": phantom})
    said = refused(capsys, str(own_run))
    assert "not the one that" in said
    assert "mean of video, mean of text, frequencies of codes, variance of video" in said


def test_the_same_film_with_other_brains_is_refused(own_run, capsys):
    config = json.loads((checkpoint(own_run, 20) / "manifest.json").read_text())["facts"]["config"]
    resaved(own_run, data=config["data"] | {"subjects": [1, 2]})
    said = refused(capsys, str(own_run))
    assert "another variance of fmri." in said


def test_a_film_that_differs_in_bits_only_is_a_warning(own_run, caplog):
    manager = CheckpointManager(
        open_store(LocalPath(path=own_run / "checkpoints")), CheckpointSettings(), run_id="0" * 12
    )
    state, manifest = manager.restore()
    open_autoencoder(str(own_run))
    assert not caplog.records
    manager.save(99, state, {"diag/score": 9.0}, manifest.facts | {"data": "0" * 32})
    assert open_autoencoder(str(own_run)).step == 99
    assert "not bit for bit" in caplog.text


def test_a_configuration_of_another_version_is_refused_without_naming_a_temporary_file(own_run, capsys):
    resaved(own_run, new_section={"a": 1})
    said = refused(capsys, str(own_run))
    assert "another version of octfm" in said
    assert "new_section" in said
    assert "/tmp" not in said.replace(str(own_run), "")


def test_calls_that_cannot_be_right_are_refused(film_run, tmp_path, capsys):
    assert "are allowed" in refused(capsys, str(film_run), "--num-samples", "9999")
    assert "is generated" in refused(capsys, str(film_run), "--data", "/x")
    (tmp_path / "file").write_text("")
    assert "--out" in refused(capsys, str(film_run), "--num-samples", "1", "--out", str(tmp_path / "file" / "x"))


def test_words_come_worst_first_with_their_modalities(film_run, held_out):
    verdicts = judge(open_autoencoder(str(film_run)), held_out).verdicts
    said = headline(verdicts)
    assert {name for _, _, names in said for name in names.split(", ")} == {"video", "audio", "text", "fmri"}
    order = ["NOT LEARNED", "CANNOT TELL", "LEARNED"]
    assert [word for _, word, _ in said] == [word for word in order if word in {found.verdict for found in verdicts}]
