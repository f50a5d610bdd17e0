import json
import os
import platform
import sys
from pathlib import Path

import pytest

from pretraining.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
SMOKE = str(CONFIGS / "smoke_test.yaml")
ON_LINUX = (sys.platform, platform.machine()) == ("linux", "x86_64")
needs_compiler = pytest.mark.skipif(not ON_LINUX, reason="the TPU compiler exists for Linux on x86-64 only: NOT tested")


def test_without_its_extra_it_says_how_to_get_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(sys.modules, "jax", None)
    assert main(["preflight", SMOKE]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "jax" in message
    assert "pip install 'octfm[preflight]'" in message
    assert "requirements/tpu.txt" in message


def test_on_another_machine_it_says_where_to_go(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert main(["preflight", SMOKE]) == 2
    assert "x86-64" in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v4-31"], "v4-32"),
        (["--topology", "v4-32"], "Set batch.global_batch_size to one of"),  # 2 over 16 chips
        (["--json", "/nowhere/found.json"], "there is no folder /nowhere"),  # said before minutes of compiling
        (["model.presett=vit_tiny"], "did you mean model.preset"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["preflight", SMOKE, *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("octfm: ")


@pytest.mark.slow  # .ci/run calls the command itself, on larger shapes
@needs_compiler
def test_the_smallest_step_is_compiled_for_the_smallest_pod(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = dict(os.environ)
    settings = ["model.image_size=[8,32,32]", "optim.warmup_steps=0", "batch.global_batch_size=4"]
    code = main(["preflight", SMOKE, *settings, "--topology", "v4-8", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.startswith("FITS")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["train_graphs"], found["compiles"], found["fits"]) == (1, True, True)
    # 788,544 gradients of 4 bytes, and of two tuples of scalars at most a little more
    assert 4 * 788_544 <= found["collective_bytes"] < 1.3 * 4 * 788_544
    state = 4 * (1_334_496 + 2 * 788_544)
    assert state <= found["hbm_donated_bytes"] <= found["hbm_args_bytes"] < 1.3 * state  # tiles are padded
    assert found["hbm_total_bytes"] < found["hbm_limit_bytes"] == 32 * 2**30
    assert found["versions"].keys() >= {"torch", "torch_xla", "jax", "libtpu"}
    assert dict(os.environ) == before


@needs_compiler
@pytest.mark.slow  # 60 to 120 s
def test_a_sharded_step_takes_a_quarter_of_the_state_on_each_of_four_chips(tmp_path: Path):
    settings = ["model=vit_small", "model.image_size=[8,32,32]", "batch.global_batch_size=4", "train.sharding=full"]
    assert main(["preflight", SMOKE, *settings, "--topology", "v4-8", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["train_graphs"], found["compiles"], found["fits"]) == (1, True, True)
    assert (found["sharding"], found["chips"]) == ("full", 4)
    share = (found["parameters"] + 2 * found["trainable_parameters"]) * 4 / 4  # fp32, over 4 chips
    assert share <= found["hbm_donated_bytes"] <= found["hbm_args_bytes"] < 1.3 * share  # tiles are padded
    (train,) = [one for name, one in found["programs"].items() if name.endswith("train")]
    assert train["hlo"]["num_kernels"] > 0
    assert {"all-gather", "reduce-scatter"} <= train["hlo"]["collective_bytes"].keys()


@needs_compiler
@pytest.mark.slow
def test_the_smoke_shapes_compile_for_the_pod(tmp_path: Path):
    shapes = ["batch.global_batch_size=16", "--topology", "v4-32"]
    assert main(["preflight", SMOKE, *shapes, "--json", str(tmp_path / "found.json"), "--keep", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["train_graphs"] == 1
    assert (tmp_path / "0-train.v4-32.hlo.txt").read_text().startswith("HloModule")
