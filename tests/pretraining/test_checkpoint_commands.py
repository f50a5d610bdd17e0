"""`octfm checkpoints`: what it prints, deletes and exports, and its exit codes."""

import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from pretraining.checkpoint_commands import main

LOSSES = {10: 0.9, 20: 0.5, 30: 0.7, 40: 0.8}
CONFIG = {"model": {"preset": "x"}, "checkpoint": {"best_metric": "val/loss"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with four checkpoints, the one of step 20 the best."""
    manager = CheckpointManager(LocalStore(tmp_path / "checkpoints"), CheckpointSettings(keep_last=9), run_id="r")
    for step, loss in LOSSES.items():
        weights = {"target_encoder.w": torch.full((3, 2), float(step)), "predictor.w": torch.zeros(2)}
        manager.save(step, {"model": weights, "step": step}, {"val/loss": loss}, {"config": CONFIG})
    return tmp_path


def state_file(run: Path, step: int) -> Path:
    return next((run / "checkpoints").glob(f"step-{step:08d}-*/state.pt"))


def test_list_shows_every_step_and_the_best(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10", "20", "30", "40"]
    assert [line.endswith("best") for line in lines] == [False, True, False, False]
    assert main(["list", str(run / "checkpoints"), "--mode", "max"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("best")


def test_verify_finds_a_flipped_bit_that_list_cannot_see(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state_file(run, 30)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert main(["list", str(run)]) == 0
    assert main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "step       30" in out
    assert out.count("NOT INTACT") == 1
    assert "all" not in out
    assert path.exists(), "verifying changes nothing"


def test_verify_says_that_all_is_whole_and_finds_fault_with_a_place_without_checkpoints(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all 4 intact"
    (run / "empty").mkdir()
    assert main(["verify", str(run / "empty")]) == 1
    assert capsys.readouterr().out == "no checkpoint\n"


def test_export_gives_the_best_encoder_and_names_its_hash(run: Path) -> None:
    assert main(["export", str(run)]) == 0
    encoder = load_file(run / "export" / "encoder.safetensors")
    assert set(encoder) == {"w"}
    assert torch.equal(encoder["w"], torch.full((3, 2), 20.0))
    weights = torch.load(run / "export" / "best_checkpoint.pt", weights_only=True)
    assert set(weights["model"]) == {"target_encoder.w", "predictor.w"}
    assert (weights["step"], weights["config"]) == (20, CONFIG)
    facts = json.loads((run / "export" / "encoder.json").read_text())
    assert facts["model"] == {"preset": "x"}
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((run / "export" / name).read_bytes()).hexdigest() == digest


def test_without_a_metric_there_is_no_best_and_the_newest_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = CheckpointManager(LocalStore(tmp_path), CheckpointSettings(), run_id="r")
    for step in (10, 20):
        manager.save(step, {"model": {"target_encoder.w": torch.full((2,), float(step))}}, {"val/loss": step / 100}, {})
    assert main(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "best" not in out
    assert "None" not in out
    assert main(["export", str(tmp_path)]) == 0
    assert load_file(tmp_path / "export" / "encoder.safetensors")["w"][0] == 20


def test_a_run_that_keeps_its_checkpoints_elsewhere_is_found_by_its_configuration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(f"checkpoint: {{ckpt_dir: {run / 'checkpoints'}}}\n")
    assert main(["list", str(other)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_export_of_a_step_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--step", "10", "--to", str(tmp_path / "given")]) == 0
    assert load_file(tmp_path / "given" / "encoder.safetensors")["w"][0, 0] == 10


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--keep-last", "1"], ["20", "40"]),
        (["--keep-last", "1", "--keep-best", "2"], ["20", "30", "40"]),
        (["--keep-last", "1", "--keep-best", "0"], ["40"]),
        ([], ["20", "30", "40"]),
    ],
)
def test_prune_keeps_what_it_is_told(
    run: Path, flags: list[str], left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(run), *flags]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == left
    assert len(list((run / "checkpoints").glob("step-*"))) == len(left)


def test_prune_list_and_export_go_by_the_wishes_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wishes = {
        "every_steps": 10,
        "keep_last": 1,
        "keep_best": 1,
        "keep_every": 20,
        "best_metric": "f1",
        "best_mode": "max",
    }
    manager = CheckpointManager(LocalStore(tmp_path), CheckpointSettings(keep_last=9), run_id="r")
    for step, f1 in ((10, 0.9), (20, 0.1), (30, 0.2), (40, 0.3), (50, 0.4)):
        weights = {"target_encoder.w": torch.full((2,), float(step))}
        manager.save(step, {"model": weights}, {"f1": f1}, {"config": {"checkpoint": wishes}})
    assert main(["list", str(tmp_path)]) == 0
    assert "f1 0.9" in capsys.readouterr().out.splitlines()[0]
    assert main(["prune", str(tmp_path)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["10", "20", "40", "50"]
    assert main(["export", str(tmp_path)]) == 0
    assert load_file(tmp_path / "export" / "encoder.safetensors")["w"][0] == 10
    assert main(["export", str(tmp_path), "--mode", "min"]) == 0
    assert load_file(tmp_path / "export" / "encoder.safetensors")["w"][0] == 20
    assert main(["prune", str(tmp_path), "--keep-every", "7"]) == 2
    assert "keep_every is 7, but steps are saved every 10" in capsys.readouterr().err


def test_an_export_that_fails_leaves_the_last_one_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in (run / "export").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert main(["export", str(run), "--step", "10"]) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (run / "export").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "/no/such/run"], "is no folder"),
        (["list", "None"], "names no run"),
        (["list", "gs://None/x"], "RUN is 'gs://None/x': 'None' is no bucket name"),
        (["export", "RUN", "--step", "11"], r"committed steps: [10, 20, 30, 40]"),
        (["export", "RUN", "--metric", "f1"], "no checkpoint has a value of f1; there are: val/loss"),
    ],
)
def test_a_wrong_call_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_without_a_teacher_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager = CheckpointManager(LocalStore(tmp_path), CheckpointSettings(), run_id="r")
    manager.save(1, {"model": {"w": torch.zeros(1)}}, {}, {})
    assert main(["export", str(tmp_path)]) == 2
    assert "holds no target_encoder" in capsys.readouterr().err
