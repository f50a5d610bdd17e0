import json
import os
import time
from pathlib import Path

import pytest

from oct_foundation.preflight.stages import Stage, StageFailed, clean_environment, run_stages

MODULE = "tests.preflight.shows_environment"


def run(argument: str, timeout_s: float = 200) -> None:
    run_stages([stage(argument)], timeout_s=timeout_s, progress=lambda line: None)


def stage(*arguments: str) -> Stage:
    return Stage(module=MODULE, arguments=[*arguments], environment={"PJRT_DEVICE": "CPU"}, what="showing")


def test_nothing_of_a_pod_or_of_a_test_reaches_a_stage():
    caller = {
        "TPU_PROCESS_BOUNDS": "2,2,4", "PJRT_DEVICE": "TPU", "CPU_NUM_DEVICES": "1", "XLA_FLAGS": "--x", "RANK": "3",
        "CLOUD_TPU_TASK_ID": "1", "LIBTPU_INIT_ARGS": "--y", "JAX_PLATFORMS": "tpu", "HOME": "/home", "PATH": "/bin",
    }  # fmt: skip
    found = clean_environment({"CPU_NUM_DEVICES": "16"}, caller)
    assert {name: found.pop(name) for name in ("HOME", "PATH")} == {"HOME": "/home", "PATH": "/bin"}
    assert found == {
        "CPU_NUM_DEVICES": "16", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip


def test_a_stage_sees_its_own_environment_and_leaves_the_callers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    before = dict(os.environ)
    run(str(tmp_path / "seen.json"))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["PJRT_DEVICE"] == "CPU"
    assert "TPU_WORKER_ID" not in seen
    assert dict(os.environ) == before


def test_a_stage_finds_the_package_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run("seen.json")
    assert (tmp_path / "seen.json").is_file()


def test_a_stage_that_dies_says_why():
    with pytest.raises(StageFailed, match=r"(?s)showing failed with code 1.*the reason"):
        run("fail")


def test_a_stage_that_takes_too_long_is_ended():
    with pytest.raises(StageFailed, match=r"longer than 1 s.*--timeout-s"):
        run("wait", timeout_s=1)


def test_stages_run_beside_one_another(tmp_path: Path):
    files = [tmp_path / f"{number}.json" for number in range(3)]
    run_stages([stage(str(file)) for file in files], timeout_s=200, progress=print, at_once=2)
    assert all(file.is_file() for file in files)


def test_no_stage_outlives_the_failure_of_another(tmp_path: Path):
    """The folder tells the stage from those of other tests on this machine."""
    begun = time.monotonic()
    with pytest.raises(StageFailed, match="the reason"):
        run_stages([stage("wait", str(tmp_path)), stage("fail")], timeout_s=200, progress=print, at_once=2)
    assert time.monotonic() - begun < 100, "the failure was not heard before the other stage's end"
    waiting = f"{MODULE} wait {tmp_path}".encode()
    commands = list(Path("/proc").glob("[0-9]*/cmdline"))
    assert not any(waiting in _read(path).replace(b"\0", b" ") for path in commands)


def _read(path: Path) -> bytes:
    """Nothing, for a process that has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
