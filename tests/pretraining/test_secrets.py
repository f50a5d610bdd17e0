"""Secrets come from the environment, are refused anywhere else, and a run leaves no trace of them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pretraining.config import ConfigError, load_config

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = PROJECT / "configs" / "smoke_test.yaml"
CANARY = "canary7f3a9c"
HF = f"hf_{CANARY}0123456789abcdefghij"


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert CANARY not in message
    return message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (f"wandb.api_key={CANARY}", "wandb.api_key"),
        (f"WANDB_API_KEY={CANARY}", "WANDB_API_KEY"),
        (f"hf_token={CANARY}", "hf_token"),
        (f"data.password={CANARY}", "data.password"),
        (f"secrets={{wandb: {CANARY}}}", "secrets"),
        (f"wandb={{api_key: {CANARY}}}", "wandb.api_key"),
        ("wandb.api_key=${oc.env:WANDB_API_KEY}", "wandb.api_key"),
        ("wandb.project=${oc.env:WANDB_API_KEY}", "wandb.project"),
        (f"wandb.project={HF}", "wandb.project"),
        (f"wandb.tags=[a,{HF}]", "wandb.tags"),
        (f"train.max_steps={HF}", "train.max_steps"),  # before OmegaConf says that this is no integer
        (f"data.root=https://me:{CANARY}@host.example/scans", "data.root"),
    ],
)
def test_a_secret_on_the_command_line_is_refused_by_its_key_and_not_shown(override, key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    message = refusal(SMOKE, override)
    assert key in message
    assert "WANDB_API_KEY for W&B" in message
    assert "unknown key" not in message


@pytest.mark.parametrize("override", [f"wandb.api_key {CANARY}", HF, f"{HF}=1"])
def test_a_secret_in_a_malformed_override_is_not_shown_either(override):
    assert "looks like a secret" in refusal(SMOKE, override)


@pytest.mark.parametrize(
    "text",
    [
        f"wandb:\n  api_key: {CANARY}\n",
        f"wandb:\n  tags: [a, {{token: {CANARY}}}]\n",
        f"tracking: {{password: {CANARY}}}\n",
        "wandb:\n  entity: ${oc.env:WANDB_API_KEY}\n",
        f"wandb:\n  entity: |\n    -----BEGIN PRIVATE KEY-----\n    {CANARY}\n",
    ],
)
def test_a_secret_in_a_file_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    (tmp_path / "run.yaml").write_text(SMOKE.read_text() + text)
    assert "(not shown)" in refusal(tmp_path / "run.yaml")


def test_an_interpolation_that_brings_a_secret_under_another_name_is_refused(monkeypatch):
    monkeypatch.setenv("HARMLESS", HF)
    assert "wandb.entity" in refusal(SMOKE, "wandb.entity=${oc.env:HARMLESS}")


def test_innocent_keys_and_values_pass(monkeypatch):
    monkeypatch.setenv("HARMLESS", "team-eye")
    config = load_config(SMOKE, ["wandb.entity=${oc.env:HARMLESS}", "wandb.tags=[token,secret]", "name=hf_dataset"])
    assert (config.wandb.entity, config.wandb.tags, config.name) == ("team-eye", ("token", "secret"), "hf_dataset")


@pytest.mark.parametrize("name", ["wandb.api_key=", "num_tokens=3"])
def test_a_key_without_a_secret_is_just_an_unknown_key(name):
    assert "unknown key" in refusal(SMOKE, name)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`; the members of zip files (checkpoints) by themselves, as they may be compressed."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        found[str(path)] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path}:{name}": archive.read(name) for name in archive.namelist()}
    return found


def test_a_run_leaves_no_trace_of_the_secrets_in_its_environment(tmp_path):
    canaries = {
        "WANDB_API_KEY": f"{CANARY}-wandb-0123456789abcdef0123456789",
        "HF_TOKEN": HF,
        "MY_PASSWORD": f"{CANARY}-password",
    }
    run, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "pretraining.supervise", "--max-restarts", "0", "--"]
    command += [sys.executable, "-m", "pretraining.train", str(SMOKE), "--device", "cpu", f"output_dir={run}"]
    command += ["train.max_steps=1", "optim.warmup_steps=0", "checkpoint.every_steps=1", "wandb.mode=offline"]
    environment = {**os.environ, **canaries, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stdout.decode()[-3000:] + done.stderr.decode()[-3000:]
    written = {**contents(tmp_path), "stdout": done.stdout, "stderr": done.stderr}
    for expected in ("config.yaml", "supervisor.json", "summary.json", ".wandb", "manifest.json", "train.log", ".pkl"):
        assert any(name.endswith(expected) for name in written), expected  # or it proves nothing
    assert [name for name, content in written.items() if CANARY.encode() in content] == []
