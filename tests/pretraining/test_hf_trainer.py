"""DummyLossTrainer, in processes of its own: where torch_xla is, Trainer moves to it, unless told before it starts."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_setup.neuro.conversations import read_conversations
from oct_foundation.losses.inactive import TINY, predicted_drift
from tests.conftest import PROJECT

ABSENT = ("rsfMRI", "dMRI")
PROJ = "vision_tower.{}_patch_embed.proj"
POLICIES = ("skip", "zero", "tiny", "find_unused")


def python(*arguments: object, folder: Path = PROJECT) -> None:
    """Runs it in `folder` to its end; shows what it said where that is an error."""
    settings = {"PYTHONPATH": str(PROJECT), "USE_TORCH_XLA": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case has found; one start for all, since a start is what takes time."""
    folder = tmp_path_factory.mktemp("trainer")
    python("-m", "tests.pretraining.hf_trainer_cases", folder, folder / "found.json")
    return json.loads((folder / "found.json").read_text())


def gradient_names(log):
    return {name for name in log if name.startswith("grad/")}


def test_signatures_are_those_of_the_installed_transformers(found):
    for name, (ours, theirs) in found["signatures"].items():
        assert ours == theirs, name


@pytest.mark.parametrize("policy", ["skip", "find_unused"])
def test_an_absent_branch_does_not_move_at_all(found, policy):
    case = found[f"absent, {policy}"]
    assert {case["moved"][name] for name in ABSENT} == {0.0}
    assert case["touched"] == 0, "AdamW has no state of it"
    assert case["moved"]["T1"] > 1e-3
    assert all(log[f"drift/[inactive]/{name}"] == 0.0 for log in case["logs"] for name in ABSENT)


def test_under_zero_decay_alone_moves_it(found):
    case = found["absent, zero"]
    for name in ABSENT:
        expected = predicted_drift("zero", learning_rate=1e-3, weight_decay=0.1, num_steps=6)
        assert case["relative"][name] == pytest.approx(expected, rel=1e-3)


def test_under_tiny_it_moves_as_predicted_and_the_log_says_so(found):
    """lr g / (g + eps) a step and weight, and decay; two micro-batches make g 2e-7."""
    case = found["absent, tiny"]
    step = 1e-3 * 2 * TINY / (2 * TINY + case["eps"])
    for name in ABSENT:
        decay = 6 * 1e-3 * 0.1  # of a weight of 1, the largest: positions start as sines and cosines
        assert case["moved"][name] == pytest.approx(6 * step + decay, rel=0.01)
        assert case["relative"][name] == pytest.approx(case["logs"][-1][f"drift/[inactive]/{name}"], rel=1e-6)
        first = case["logs"][0][f"drift/[inactive]/{name}"]
        assert case["relative"][name] == pytest.approx(6 * first, rel=0.03)


def test_the_policy_does_not_change_what_is_trained(found):
    losses = [[log["loss"] for log in found[f"absent, {policy}"]["logs"]] for policy in POLICIES]
    assert len(losses[0]) == 6
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_logs_have_the_names_and_sizes_of_the_documents(found, policy):
    case = found[f"absent, {policy}"]
    for log in case["logs"]:
        active = log[f"grad/[T1]/{PROJ.format('T1')}"]
        assert 1e-4 < active < 1
        for name in ABSENT:
            dummy = 2 * TINY * math.sqrt(case["sizes"][name]) if policy == "tiny" else 0.0
            assert log[f"grad/[inactive]/{PROJ.format(name)}"] == pytest.approx(dummy, rel=1e-3)
        assert "grad/projector.0" in log
        assert not [name for name in log if "bias" in name]
        assert (log["ratio/active_inactive"] < 1e4) if policy == "tiny" else math.isinf(log["ratio/active_inactive"])
        assert (log["dummy_loss"] != 0.0) == (policy == "tiny")
        assert set(log) >= {"loss", "grad_norm", "loss/T1", "share/T1"}
        assert "loss/dMRI" not in log


def test_batches_of_all_modalities_show_no_inactive_label_and_shared_weights_never_do(found):
    for log in found["overfit"]["logs"]:
        assert not [name for name in log if "[inactive]" in name or name.startswith("ratio")]
        assert {"loss/T1", "loss/rsfMRI", "loss/dMRI", "loss/text"} <= set(log)
        assert sum(value for name, value in log.items() if name.startswith("share/")) == pytest.approx(1)
    for case in [*(f"absent, {policy}" for policy in POLICIES), "present_then_absent", "two_of_three_then_text"]:
        labelled = {n for log in found[case]["logs"] for n in gradient_names(log) if "[inactive]" in n}
        assert labelled
        assert all("_patch_embed." in name for name in labelled)


def test_a_branch_with_a_history_stays_where_it_was_left(found):
    """Moments of two updates, then four without it: momentum would go on under any other policy."""
    logs = found["present_then_absent"]["logs"]
    assert [f"grad/[dMRI]/{PROJ.format('dMRI')}" in log for log in logs] == [True, True, *[False] * 4]
    assert [log.get("drift/[inactive]/dMRI") for log in logs] == [None, None, *[0.0] * 4]
    assert min(found["present_then_absent"]["moved"].values()) > 0


def test_the_label_follows_the_update_not_the_micro_batch(found):
    case = found["two_of_three_then_text"]
    labels = [{n.split("/")[1] for n in gradient_names(log) if "patch_embed.proj" in n} for log in case["logs"]]
    assert labels == [{"[T1]", "[rsfMRI]", "[inactive]"}, {"[T1]", "[dMRI]", "[inactive]"}, {"[inactive]"}]
    assert case["trunk_steps"], "text alone does not touch the trunk"
    assert case["logs"][2]["grad/projector.0"] == 0.0
    assert set(case["logs"][2]) >= {f"drift/[inactive]/{name}" for name in ("T1", *ABSENT)}


def test_a_few_phantoms_are_learned(found):
    losses = [log["loss"] for log in found["overfit"]["logs"]]
    assert losses[-1] < 0.3 * losses[0]
    assert found["overfit"]["logs"][-1]["loss/text"] < 0.3 * losses[0]


def test_evaluation_gets_generated_answers_and_their_score(found):
    metrics = found["overfit"]["metrics"]
    assert metrics["eval_all_loss"] == pytest.approx(found["overfit"]["logs"][-1]["loss"], rel=0.5)
    assert 0 <= metrics["eval_dMRI_accuracy"] <= 1
    assert metrics["eval_all_accuracy"] > 0, "some of seven questions, trained on 45 times"
    assert found["overfit"]["shapes"] == [[7, 16, 7, 72], [2, 16, 2, 72]]


def test_weights_are_saved_loaded_and_taken_up_by_trainer_itself(found):
    assert found["overfit"]["loads"]
    assert found["overfit"]["resumed"] < 1e-6, "45 updates, and 40 + 5"
    assert found["tied_weights"] == {"equal": True, "missing": []}


def test_fixed_samples_are_answered_into_the_output_folder(found):
    lines = found["overfit"]["answers"]
    assert [line["step"] for line in lines] == [20] * 3 + [40] * 3
    assert [line["modality"] for line in lines] == ["T1", "rsfMRI", "dMRI"] * 2
    assert set(lines[0]) == {"step", "epoch", "modality", "sample_id", "prompt", "generated_text", "reference"}
    assert lines[0]["reference"] in ("left", "right")
    assert found["overfit"]["in_working_directory"] == []


def test_answers_change_nothing_of_training_and_their_errors_are_not_swallowed(found):
    case = found["generation_is_harmless"]
    assert case["equal"]
    assert case["training"]
    assert case["answers"] == ["dMRI", "T1"] * 3, "in the order they were given"
    assert not case["nothing_without"]
    assert "volumes must be" in case["error"]
    assert case["training_after_error"], "eval mode has not survived the error"


@pytest.mark.parametrize("kind", ["T1", "rsfMRI", "dMRI", "text", "mixed", "joint"])
def test_every_kind_of_batch_can_be_evaluated(found, kind):
    case = found["every_kind_of_evaluation"][kind]
    assert case["loss"] == pytest.approx(case["by_hand"], rel=1e-5)
    assert case["alone"] == case["loss"]
    assert case["nothing"] == [None, None]
    assert case["answers"][1] == 16
    assert case["labels"]


def test_an_update_is_that_of_the_mean_over_all_its_answer_tokens(found):
    """Answers of 5 to 11 tokens in three micro-batches; the mean of means would be another one."""
    case = found["one_update_by_hand"]
    assert case["losses"][0] == pytest.approx(case["losses"][1], rel=1e-6)
    assert case["error"] < 1e-7


def test_logged_norms_are_those_of_plain_torch_for_every_weight(found):
    case = found["one_update_by_hand"]
    assert case["names_differ"] == []
    assert case["norm_error"] < 1e-5


def test_norms_ratio_and_drift_by_hand(found):
    case = found["norms_by_hand"]
    root = math.sqrt(2)
    assert case["mixed"] == pytest.approx(
        {"grad/[A]/a": 3 * root, "grad/[inactive]/b": 0.5 * root, "grad/both": root, "ratio/active_inactive": 6.0}
    )
    assert set(case["all"]) == {"grad/[A]/a", "grad/[B]/b", "grad/both"}
    assert case["still"] == math.inf
    assert case["drift"] == [pytest.approx(values) for values in ({"B": 0.5}, {"A": 1.0, "B": 2.0}, {"A": 1.0})]


def test_all_values_of_a_log_come_in_one_fetch(found):
    assert found["fetches_of_a_log"]["single"] == 0
    assert found["fetches_of_a_log"]["whole"] == 1
    assert found["fetches_of_a_log"]["values"] > 30


@pytest.mark.parametrize("policy", ["skip", "tiny"])
def test_the_dummy_is_a_float32_scalar_of_what_a_batch_lacks(found, policy):
    case = found["dummies"][policy]
    assert [case["dtype"], case["shape"], case["device"]] == ["torch.float32", [], "cpu"]
    for value, tiny in (case["value"], case["one"]):
        assert value == pytest.approx(tiny if policy == "tiny" else 0.0, rel=1e-4)


def test_a_dummy_needs_names_of_modalities_and_leaves_out_what_is_switched_off(found):
    case = found["dummies"]
    assert case["two enabled"][0] == pytest.approx(case["two enabled"][1], rel=1e-4)
    assert [error.split(";")[0] for error in case["errors"]] == [
        f"the model has no branch for {name}" for name in ("PET", "dMRI", "rsFMRI")
    ]


def test_nan_is_not_averaged_away(found):
    """Trainer's default filter was asked for; it would show the mean of the losses before."""
    assert found["nan_in_an_absent_branch"]["losses"] == ["nan", "nan"]


def test_logs_by_epoch_of_a_model_that_trainer_has_made(found):
    logs = found["epochs_of_logs"]["logs"]
    assert [log["step"] for log in logs] == [2, 4]
    assert all(log[f"grad/[{name}]/{PROJ.format(name)}"] > 0 for log in logs for name in ("T1", *ABSENT))
    assert found["epochs_of_logs"]["config"] == 24


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("deepspeed", "fills the gradients of absent branches with zeros"),
        ("fsdp", "mixes up their weights without an error"),
        ("torch_compile", "one set of modalities"),
        ("data_parallel", "one process sees 2 GPUs"),
        ("find_unused", "ddp_find_unused_parameters is False"),
        ("dispatch", "cuts every tensor of a batch alike"),
        ("alone", "each would train alone"),
        ("places", "2 images of T1 need 8 places each in the text; found 2"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(found, backend, words):
    assert words in found["refusals"][backend]


def test_ddp_searches_for_unused_parameters_under_that_policy_alone(found):
    case = found["arguments_by_policy"]
    assert {policy: case[policy] for policy in POLICIES} == {policy: policy == "find_unused" for policy in POLICIES}
    assert all(case[f"{policy} untouched"] for policy in POLICIES), "the user's own arguments"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The union batch in one process."""
    folder = tmp_path_factory.mktemp("one")
    python("-m", "tests.pretraining.hf_trainer_ranks", folder, 4, "skip")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "find_unused"])
def test_two_ranks_with_different_modalities_equal_one_process_on_the_union_batch(one_process, tmp_path, policy):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    python(*launcher, "-m", "tests.pretraining.hf_trainer_ranks", tmp_path, 2, policy)
    alone = json.loads((one_process / "rank0.json").read_text())
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    weights, expected = (load_file(folder / "saved" / "model.safetensors") for folder in (tmp_path, one_process))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for rank in (*ranks, alone):
        assert rank["rsfMRI moved"] == 0.0
        assert rank["updates"] == {"T1": [3.0], "rsfMRI": [0.0], "dMRI": [2.0]}
        assert rank["updates of the trunk"] == [3.0]
        assert rank["training"]
    for log, other, reference in zip(ranks[0]["logs"], ranks[1]["logs"], alone["logs"], strict=True):
        assert log == other
        assert log == pytest.approx(reference, rel=1e-4, abs=1e-7)
    for rank in ranks:
        assert rank["sharded"]["shared"] == pytest.approx(rank["sharded"]["plain"], rel=1e-5)
        assert rank["evaluation"]["eval_loss"] == pytest.approx(alone["evaluation"]["eval_loss"], rel=1e-5)
        assert [rank["evaluation"][f"eval_{name}"] for name in ("answers", "labels")] == [9, 9]
    answers = [json.loads(line) for line in (tmp_path / "generation_logs.jsonl").read_text().splitlines()]
    assert [(line["step"], line["modality"]) for line in answers] == [(2, "T1"), (2, "dMRI"), (4, "T1"), (4, "dMRI")]


def from_the_documentation(language: str) -> str:
    """The one block of this language in docs/multimodal.md."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", (PROJECT / "docs" / "multimodal.md").read_text(), re.DOTALL)
    return block


def test_both_forms_of_json_in_the_documentation_are_read(tmp_path):
    for number, text in enumerate(from_the_documentation("json").split("\n\n")):
        (tmp_path / f"{number}.json").write_text(text)
    records, refused = read_conversations(tmp_path)
    assert [(r.sample_id, r.subject_id, r.kind, r.answer) for r in records] == [
        ("a", "s1", "T1&dMRI", "45"),
        ("b", "s2", "rsfMRI", "slow"),
    ]
    assert not refused


@pytest.mark.slow
def test_the_program_in_the_documentation_trains_answers_and_saves(tmp_path):
    (tmp_path / "train_hf.py").write_text(from_the_documentation("python"))
    python("train_hf.py", folder=tmp_path)
    assert len((tmp_path / "runs/hf/generation_logs.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "runs/hf/final/model.safetensors").exists()


@pytest.mark.slow
def test_where_trainer_would_move_to_xla_it_says_how_to_prevent_that():
    pytest.importorskip("torch_xla", reason="TORCH_XLA ABSENT: that Trainer is refused beside it was NOT tested")
    program = "import types, pretraining.hf_backend as b; b.check_backend(types.SimpleNamespace())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={**os.environ, "USE_TORCH_XLA": "1", "PJRT_DEVICE": "CPU"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ValueError" in done.stderr
    assert "set USE_TORCH_XLA=0 before Python starts" in done.stderr
