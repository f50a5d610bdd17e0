"""Defects planted in real checkpoints of our store: each found through the command; none in ten healthy ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oct_foundation.checkpoints.host_state import FileDigest
from oct_foundation.checkpoints.manifest import Manifest
from tests.pretraining.health.health_runs import (
    State,
    encoder_model,
    film_model,
    health,
    names_of,
    save,
    trained,
)

FIRST = "network.encoder.joint.0.dense"


def planted(state: State, change: Callable[[State], None]) -> State:
    copied: State = {**state, "model": {name: tensor.clone() for name, tensor in state["model"].items()}}
    moments = {index: {k: v.clone() for k, v in one.items()} for index, one in state["optimizer"]["state"].items()}
    copied["optimizer"] = {**state["optimizer"], "state": moments}
    change(copied)
    return copied


@pytest.fixture(scope="module")
def state() -> State:
    return trained(film_model(), 30)


def weight(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state["model"][name].view(-1)[0] = value

    return change


def dead(state: State) -> None:
    state["model"][f"{FIRST}.linear.weight"].zero_()


def exploded(state: State) -> None:
    state["model"]["network.encoder.joint.1.dense.norm.running_var"].mul_(1e9)


def exploded_first(state: State) -> None:
    state["model"]["network.encoder.text.0.dense.norm.running_var"].mul_(1e9)


def frozen(state: State) -> None:
    """Pure bf16: gains stay exactly 1, and steps are below half the last bit of weights that have grown."""
    for name, tensor in state["model"].items():
        if tensor.is_floating_point() and name.startswith("network."):
            state["model"][name] = tensor.bfloat16()
            if name.endswith("norm.weight"):
                state["model"][name].fill_(1.0)
            elif name.endswith("linear.weight"):
                state["model"][name].add_(2.0)


def broken_moments(state: State) -> None:
    state["optimizer"]["state"][3]["exp_avg_sq"].view(-1)[0] = float("nan")


@pytest.mark.parametrize(
    ("change", "finding", "code"),
    [
        (weight(f"{FIRST}.linear.weight", float("nan")), "weights_not_finite", 3),
        (weight(f"{FIRST}.linear.bias", float("inf")), "weights_not_finite", 3),
        (broken_moments, "optimizer_not_finite", 3),
        (dead, "dead_layer", 2),
        (exploded, "batchnorm_exploded", 2),
        (exploded_first, "batchnorm_exploded", 2),
        (frozen, "still_at_the_start", 2),
        (frozen, "lost_to_rounding", 2),
    ],
)
def test_a_planted_defect_is_found_in_a_checkpoint_alone(
    tmp_path: Path, state: State, change: Callable[[State], None], finding: str, code: int
) -> None:
    folder = save(tmp_path / "run", planted(state, change))
    found_code, found = health(folder, tmp_path / "out")
    assert names_of(found)[finding] == "alarm"
    assert found_code == found["exit_code"] == code
    assert found["verdict"] == "CANNOT TELL"
    assert finding.replace("_", " ") in (tmp_path / "out" / "health.md").read_text()


def test_moments_are_told_by_name_so_that_frozen_weights_are_named(tmp_path: Path, state: State) -> None:
    _, found = health(save(tmp_path / "run", planted(state, frozen)), tmp_path / "out")
    assert "matched to its parameters" in found["sections"]["weights"]["lines"][0]
    evidence = next(one["evidence"] for one in found["findings"] if one["name"] == "still_at_the_start")
    assert "norm.weight" in evidence


HEALTHY = {
    "film, batch norm": lambda: trained(film_model(1), 20),
    "film, layer norm": lambda: trained(film_model(2, "layer"), 20),
    "film, longer": lambda: trained(film_model(3), 60),
    "film, another seed": lambda: trained(film_model(4), 20, seed=4),
    "film, three updates": lambda: trained(film_model(5, "layer"), 3),
    "film, batch norm, untrained": lambda: trained(film_model(6), 0),
    "film, layer norm, untrained": lambda: trained(film_model(7, "layer"), 0),
    "encoder": lambda: trained(encoder_model(8), 6),
    "encoder, another seed": lambda: trained(encoder_model(9), 3, seed=9),
    "encoder, untrained": lambda: trained(encoder_model(10), 0),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_nothing_is_said_against_a_healthy_checkpoint(tmp_path: Path, kind: str) -> None:
    task = "vjepa" if kind.startswith("encoder") else "autoencoder"
    folder = save(tmp_path / "run", HEALTHY[kind](), config={"task": task, "optim": {}})
    code, found = health(folder, tmp_path / "out")
    assert names_of(found) == {}
    assert code == 0
    assert {one["verdict"] for one in found["modalities"]} == {"CANNOT TELL"}
    assert len(found["modalities"]) == (1 if task == "vjepa" else 4)
    assert health(folder, tmp_path / "out", "--strict")[0] == 1


def test_a_truncated_checkpoint_is_unreadable_and_stays_as_it_is(tmp_path: Path, state: State) -> None:
    folder = save(tmp_path / "run", state)
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    before = sorted(path.name for path in folder.iterdir())
    code, found = health(folder, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})
    assert "its manifest says" in found["findings"][0]["evidence"]
    assert sorted(path.name for path in folder.iterdir()) == before  # no quarantine note: health only looks


def test_a_checkpoint_with_one_wrong_byte_is_unreadable(tmp_path: Path, state: State) -> None:
    file = save(tmp_path / "run", state) / "state.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    code, found = health(file, tmp_path / "out")
    assert code == 3
    assert "sha256" in found["findings"][0]["evidence"]


def test_a_state_that_was_copied_out_of_its_checkpoint_still_has_its_optimizer(tmp_path: Path, state: State) -> None:
    for number, change in enumerate((lambda _: None, broken_moments)):
        copy = tmp_path / f"copy{number}.pt"
        copy.write_bytes((save(tmp_path / f"run{number}", planted(state, change)) / "state.pt").read_bytes())
    code, found = health(tmp_path / "copy0.pt", tmp_path / "out")
    assert (code, names_of(found)) == (0, {})
    said = found["sections"]["weights"]["lines"][0]
    assert "step 30" in said
    assert "matched to its parameters" in said
    code, found = health(tmp_path / "copy1.pt", tmp_path / "out")
    assert (code, names_of(found)["optimizer_not_finite"]) == (3, "alarm")


def test_a_folder_without_a_manifest_was_never_a_checkpoint(tmp_path: Path, state: State) -> None:
    folder = save(tmp_path / "run", state)
    (folder / "manifest.json").unlink()
    code, found = health(folder, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})


def test_weights_of_another_step_under_a_checkpoints_name_are_found(tmp_path: Path, state: State) -> None:
    """A swap that keeps every hash right: the state of step 30, written by whoever made a manifest of step 60."""
    folder = save(tmp_path / "run", state)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    other = folder.with_name(folder.name.replace("00000030", "00000060"))
    folder.rename(other)
    files = {name: FileDigest(**digest) for name, digest in manifest["files"].items()}
    resealed = Manifest(**{**manifest, "step": 60, "files": files}).sealed()
    (other / "manifest.json").write_bytes(resealed.to_bytes())
    code, found = health(other, tmp_path / "out")
    assert (code, names_of(found)) == (2, {"checkpoint_mislabelled": "alarm"})
    assert "holds the weights of step 30" in found["findings"][0]["evidence"]


def test_counts_are_those_of_the_network(tmp_path: Path, state: State) -> None:
    _, found = health(save(tmp_path / "run", state), tmp_path / "out")
    rows = dict(found["sections"]["model"]["tables"][0]["rows"])
    network = film_model().network
    assert rows["encoder"] == f"{sum(p.numel() for p in network.encoder.parameters()):,}"
    assert rows["decoder"] == f"{sum(p.numel() for p in network.decoder.parameters()):,}"
    assert torch.float32 == next(network.parameters()).dtype
    assert rows["stored as"] == "float32"
