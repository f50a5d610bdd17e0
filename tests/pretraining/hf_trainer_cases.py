"""What the tests of DummyLossTrainer look at, run in one process of its own: python -m ... <folder> <output.json>."""

import dataclasses
import inspect
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from data_setup.neuro.collate import joined
from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import TINY
from oct_foundation.models.language import LanguageConfig
from pretraining.branch_norms import BranchNorms, Drift
from pretraining.hf_backend import arguments_for
from pretraining.hf_trainer import DummyLossTrainer, MultimodalSettings, NumberedSamples, _Measured
from tests.pretraining.hf_trainer_setup import (
    COLLATOR,
    LAYOUTS,
    TOKENIZER,
    Listed,
    new_model,
    phantoms,
    samples_of,
    trainer_of,
)

ABSENT = ("rsfMRI", "dMRI")  # in updates of T1 alone
PROJ = "vision_tower.{}_patch_embed.proj"
ALL = ("T1", "rsfMRI", "dMRI")


def logged(trainer: DummyLossTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def branch_of(tensors: dict[str, torch.Tensor], modality: str) -> torch.Tensor:
    return torch.cat([value.flatten() for name, value in tensors.items() if f".{modality}_patch_embed." in name])


def largest_difference(model: torch.nn.Module, other: torch.nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))


def signatures(folder: Path) -> dict[str, Any]:
    """Of ours and of the installed transformers."""
    names = ("compute_loss", "training_step", "prediction_step")
    return {
        name: [list(inspect.signature(getattr(owner, name)).parameters) for owner in (DummyLossTrainer, Trainer)]
        for name in names
    }


def absent_for_six_updates(folder: Path, policy: str) -> dict[str, Any]:
    """T1 alone, two micro-batches an update, decay and clip: how rsfMRI and dMRI fare, and what is logged of it."""
    trainer = trainer_of(
        folder, ["T1"] * 24, MultimodalSettings(policy=policy), gradient_accumulation_steps=2, max_grad_norm=100.0
    )
    before = parameters_of(trainer.model)
    trainer.train()
    after = parameters_of(trainer.model)
    branches = trainer.inactive.branches
    sizes = {weight.name: weight.parameter.numel() for weight in trainer._norms.weights}
    moved = {name: branch_of(after, name) - branch_of(before, name) for name in ALL}
    return {
        "moved": {name: value.abs().max().item() for name, value in moved.items()},
        "relative": {name: (moved[name].norm() / branch_of(before, name).norm()).item() for name in ALL},
        "touched": sum(p in trainer.optimizer.state for name in ABSENT for p in branches[name]),
        "logs": logged(trainer),
        "sizes": {name: sizes[PROJ.format(name)] for name in ALL},
        "eps": trainer.args.adam_epsilon,
    }


def present_then_absent(folder: Path) -> dict[str, Any]:
    """Two updates with all three, moments and all, then four with T1 alone."""
    trainer = trainer_of(folder, [*ALL, *ALL, *["T1"] * 12], per_device_train_batch_size=3)
    before = parameters_of(trainer.model)
    trainer.train()
    moved = {name: (branch_of(parameters_of(trainer.model), name) - branch_of(before, name)).norm() for name in ALL}
    return {"logs": logged(trainer), "moved": {name: value.item() for name, value in moved.items()}}


def two_of_three_then_text(folder: Path) -> dict[str, Any]:
    """An update with rows of T1 and rsfMRI, one whose micro-batches differ, one of text alone."""
    kinds = ["T1", "rsfMRI", "T1", "rsfMRI", "T1", "T1", "dMRI", "dMRI", *["text"] * 4]
    trainer = trainer_of(folder, kinds, gradient_accumulation_steps=2)
    trunk = trainer.model.trunk()
    trainer.train()
    return {"logs": logged(trainer), "trunk_steps": {float(trainer.optimizer.state[p]["step"]) for p in trunk} == {2.0}}


def overfit(folder: Path) -> dict[str, Any]:
    """A few phantoms of all kinds, over and over; evaluated, saved, and taken up again."""
    model, samples = new_model(), samples_of([*ALL * 2, "text"])
    evaluation = {"all": Listed(samples), "dMRI": Listed([s for s in samples if s.record.kind == "dMRI"])}
    seen: list[list[int]] = []
    recipe: dict[str, Any] = {
        "per_device_train_batch_size": 7,
        "num_train_epochs": 45,
        "learning_rate": 5e-3,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }

    def score(prediction: Any) -> dict[str, float]:
        seen.append([*prediction.predictions.shape, *prediction.label_ids.shape])
        said = [TOKENIZER.decode(row, skip_special_tokens=True).strip() for row in prediction.predictions]
        wanted = [TOKENIZER.decode(row[row >= 0], skip_special_tokens=True) for row in prediction.label_ids]
        return {"accuracy": sum(s == w for s, w in zip(said, wanted, strict=True)) / len(wanted)}

    trainer = trainer_of(
        folder,
        [*ALL * 2, "text"],
        MultimodalSettings(generate_every=20, fixed_samples=samples[:3]),
        model,
        more={"eval_dataset": evaluation, "compute_metrics": score},
        save_strategy="steps",
        save_steps=40,
        **recipe,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "saved"))
    loaded = new_model()
    loaded.load_state_dict(load_file(folder / "saved" / "model.safetensors"))
    again = trainer_of(folder / "again", [*ALL * 2, "text"], model=new_model(), **recipe)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-40"))
    lines = [json.loads(line) for line in (folder / "generation_logs.jsonl").read_text().splitlines()]
    return {
        "logs": logged(trainer),
        "metrics": metrics,
        "shapes": seen,
        "loads": largest_difference(model, loaded) == 0.0,
        "resumed": max(
            (p - q).abs().max().item() for p, q in zip(model.parameters(), again.model.parameters(), strict=True)
        ),
        "answers": lines,
        "in_working_directory": [name for name in os.listdir() if name.startswith("generation_logs")],
    }


def every_kind_of_evaluation(folder: Path) -> dict[str, Any]:
    """prediction_step of each kind, of mixed rows and of the joint batch: loss, shapes, and the loss by hand."""
    trainer = trainer_of(folder, ["T1"])
    found = {}
    unsorted = ["text", "dMRI", "T1", "rsfMRI"]
    for name, kinds in {**{k: [k, k] for k in (*ALL, "text")}, "mixed": unsorted, "joint": [*ALL]}.items():
        samples = samples_of(kinds)
        nested = COLLATOR(samples)
        batch = joined(nested)
        loss, answers, labels = trainer.prediction_step(trainer.model, batch if name == "joint" else nested, False)
        alone, *nothing = trainer.prediction_step(trainer.model, nested, True)
        found[name] = {
            "loss": loss.item(),
            "alone": alone.item(),
            "nothing": nothing,
            "by_hand": sum(token_losses(trainer.model, batch, row).mean().item() for row in range(len(kinds)))
            / len(kinds),
            "answers": list(answers.shape),
            "labels": torch.equal(labels, torch.cat([joined(COLLATOR([sample])).labels for sample in samples])),
        }
    return found


def token_losses(model: torch.nn.Module, batch: ConversationBatch, row: int) -> torch.Tensor:
    """Of the answer tokens of a row, from the logits."""
    logits = model.language_model(batch.input_ids, batch.attention_mask, model.look(batch.images, batch.input_ids))
    losses = torch.nn.functional.cross_entropy(logits[row, :-1], batch.labels[row, 1:], reduction="none")
    return losses[batch.labels[row, 1:] != -100]


def one_update_by_hand(folder: Path) -> dict[str, Any]:
    """SGD over three unequal micro-batches against plain torch on all of them: loss, weights, logged norms."""
    kinds = ["T1", "T1", "dMRI", "text", "dMRI", "rsfMRI"]
    trainer = trainer_of(
        folder,
        kinds,
        gradient_accumulation_steps=3,
        optim="sgd",
        learning_rate=0.5,
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    trainer.train()
    plain, samples = new_model(), samples_of(kinds)
    batches = [joined(COLLATOR(samples[first : first + 2])) for first in (0, 2, 4)]
    loss = torch.cat([token_losses(plain, batch, row) for batch in batches for row in (0, 1)]).mean()
    loss.backward()
    with torch.no_grad():
        errors = [
            (found - (p if p.grad is None else p - 0.5 * p.grad)).abs().max().item()
            for found, p in zip(trainer.model.parameters(), plain.parameters(), strict=True)
        ]
    log = logged(trainer)[0]
    names = {name.removesuffix(".weight"): p for name, p in plain.named_parameters() if not name.endswith("bias")}
    norms = {name: p.grad.norm().item() for name, p in names.items() if p.grad is not None}
    by_name = {name.split("/")[-1]: value for name, value in log.items() if name.startswith("grad/")}
    return {
        "losses": [log["loss"], loss.item()],
        "error": max(errors),
        "names_differ": sorted(norms.keys() ^ by_name.keys()),
        "norm_error": max(abs(by_name[name] - norm) / norm for name, norm in norms.items()),
        "log": log,
    }


class Fetches(TorchDispatchMode):
    """Counts how often the host waits for a number of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **named or {})


def fetches_of_a_log(folder: Path) -> dict[str, Any]:
    """Single numbers read, and whole tensors, while an update is measured and its values are fetched."""
    trainer = trainer_of(folder, ["T1"])
    trainer.train()
    trainer.compute_loss(trainer.model, COLLATOR(samples_of(["T1"]))).backward()
    lists, tolist = [], torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        lists.append(tensor.shape)
        return tolist(tensor)

    torch.Tensor.tolist = counted
    try:
        with Fetches() as fetches:
            absent = trainer.inactive.drop()
            trainer._drift.note(absent)
            found = trainer._fetch(_Measured(trainer._norms.measure(), absent))
    finally:
        torch.Tensor.tolist = tolist
    return {"single": fetches.count, "whole": len(lists), "values": len(found)}


def generation_is_harmless(folder: Path) -> dict[str, Any]:
    """The same training with and without answers; an error inside one."""
    runs = {}
    for name, samples in {"with": samples_of(["dMRI", "T1"]), "without": []}.items():
        settings = MultimodalSettings(generate_every=1, fixed_samples=samples)
        trainer = trainer_of(folder / name, ["T1", "dMRI"] * 3, settings)
        trainer.train()
        runs[name] = trainer
    answers = (folder / "with" / "generation_logs.jsonl").read_text().splitlines()
    broken = samples_of(["T1"])[0]
    object.__setattr__(broken, "images", (torch.zeros(1, 4, 4, 4),))
    trainer = trainer_of(folder / "broken", ["T1"] * 2, MultimodalSettings(generate_every=1, fixed_samples=[broken]))
    error = ""
    try:
        trainer.train()
    except ValueError as raised:
        error = str(raised)
    return {
        "equal": largest_difference(runs["with"].model, runs["without"].model) == 0.0,
        "training": runs["with"].model.training,
        "answers": [json.loads(line)["modality"] for line in answers],
        "nothing_without": (folder / "without" / "generation_logs.jsonl").exists(),
        "error": error,
        "training_after_error": trainer.model.training,
    }


def dummies(folder: Path) -> dict[str, Any]:
    """The scalar of _compute_dummy_gradient by policy, and by hand."""
    found: dict[str, Any] = {}
    for policy in ("skip", "tiny"):
        trainer = trainer_of(folder, ["T1"], MultimodalSettings(policy=policy))
        value = trainer._compute_dummy_gradient(trainer.model, "T1")
        one = trainer._compute_dummy_gradient(trainer.model, "T1", modalities=["T1", "dMRI"])
        sums = {n: sum(p.sum().item() for p in trainer.model.branches()[n]) for n in ALL}
        found[policy] = {
            "value": [value.item(), TINY * (sums["rsfMRI"] + sums["dMRI"])],
            "one": [one.item(), TINY * sums["dMRI"]],
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "device": str(value.device),
        }
    two = {name: layout for name, layout in LAYOUTS.items() if name != "dMRI"}
    trainer = trainer_of(folder, ["T1"], MultimodalSettings(policy="tiny"), new_model(layouts=two))
    only = trainer._compute_dummy_gradient(trainer.model, "T1").item()
    found["two enabled"] = [only, TINY * sum(p.sum().item() for p in trainer.model.branches()["rsfMRI"])]
    found["errors"] = []
    for wrong in (("PET",), ("dMRI",), ("T1", ["rsFMRI"])):
        try:
            trainer._compute_dummy_gradient(trainer.model, *wrong)
        except ValueError as raised:
            found["errors"].append(str(raised))
    return found


def nan_in_an_absent_branch(folder: Path) -> dict[str, Any]:
    trainer = trainer_of(folder, ["T1"] * 4, logging_nan_inf_filter=True)
    with torch.no_grad():
        trainer.model.branches()["dMRI"][0].flatten()[0] = math.nan
    trainer.train()
    return {"losses": [str(line["loss"]) for line in logged(trainer)]}


def epochs_of_logs(folder: Path) -> dict[str, Any]:
    """Logged once an epoch, from a data set by numbers; a model_init makes the model."""
    trainer = DummyLossTrainer(
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=12,
            num_train_epochs=2,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=COLLATOR,
        train_dataset=NumberedSamples(phantoms()),
        processing_class=TOKENIZER,
        model_init=lambda: new_model(),
    )
    trainer.train()
    return {"logs": logged(trainer), "config": trainer.model.config.to_dict()["width"]}


def tied_weights(folder: Path) -> dict[str, Any]:
    """A language model that reads and writes with one table."""
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=160)).save_pretrained(
        folder / "gpt2"
    )
    language = LanguageConfig(name=str(folder / "gpt2"))
    trainer = trainer_of(folder, ["T1"] * 2, model=new_model(language))
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    loaded = new_model(language)
    report = loaded.load_state_dict(load_file(folder / "saved" / "model.safetensors"))
    return {"equal": largest_difference(trainer.model, loaded) == 0.0, "missing": report.missing_keys}


def refusals(folder: Path) -> dict[str, Any]:
    """What is said to settings that this trainer would be wrong with."""
    found = {}
    unpooled = dataclasses.replace(LAYOUTS["T1"], pool=(1, 1, 1))
    try:
        trainer_of(folder, ["T1", "T1"], model=new_model(layouts=LAYOUTS | {"T1": unpooled})).train()
    except ValueError as raised:
        found["places"] = str(raised)
    for name, change in {
        "deepspeed": {"deepspeed": {"zero_optimization": {"stage": 2}}},
        "fsdp": {"fsdp": "full_shard"},
        "torch_compile": {"torch_compile": True},
        "data_parallel": {"_n_gpu": 2},
        "find_unused": {"ddp_find_unused_parameters": False},
        "dispatch": {"accelerator_config": AcceleratorConfig(dispatch_batches=True)},
        "alone": {},
    }.items():
        args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
        vars(args).update(change)
        if name == "alone":  # as torchrun leaves it where TrainingArguments finds no GPU
            torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            arguments_for(args, "find_unused" if name == "find_unused" else "skip")
        except ValueError as raised:
            found[name] = str(raised)
    torch.distributed.destroy_process_group()
    return found


def arguments_by_policy(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for policy in ("skip", "zero", "tiny", "find_unused"):
        given = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
        made = arguments_for(given, policy)
        found[policy] = made.ddp_find_unused_parameters
        found[f"{policy} untouched"] = given.ddp_find_unused_parameters is None and given.logging_nan_inf_filter
    return found


def norms_by_hand(folder: Path) -> dict[str, Any]:
    """The names, the ratio and the drift of a model of two weights."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1) for name in ("a", "b", "both")})
    branches = {"A": [*model["a"].parameters()], "B": [*model["b"].parameters()]}
    for name, value in {"a": 3.0, "b": 0.5, "both": 1.0}.items():
        model[name].weight.grad = torch.full((1, 2), value)
    norms, drift = BranchNorms(model, branches), Drift(branches)
    values = norms.measure().tolist()
    with torch.no_grad():
        drift.note({"B"})
        for parameter in branches["B"]:
            parameter.mul_(1.5)
        first = {name: value.item() for name, value in drift.measure().items()}
        drift.note({"A", "B"})  # B has been absent before: it counts from then
        for parameter in (*branches["A"], *branches["B"]):
            parameter.mul_(2)
        second = {name: value.item() for name, value in drift.measure().items()}
        drift.note({"A"})
        third = {name: value.item() for name, value in drift.measure().items()}
    return {
        "mixed": norms.named(values, {"B"}),
        "all": norms.named(values, set()),
        "still": norms.named([1.0, 0.0, 1.0], {"B"})["ratio/active_inactive"],
        "drift": [first, second, third],
    }


CASES = {
    "signatures": signatures,
    **{
        f"absent, {p}": lambda folder, p=p: absent_for_six_updates(folder, p)
        for p in ("skip", "zero", "tiny", "find_unused")
    },
    **{
        case.__name__: case
        for case in (
            present_then_absent,
            two_of_three_then_text,
            overfit,
            every_kind_of_evaluation,
            one_update_by_hand,
            fetches_of_a_log,
            generation_is_harmless,
            dummies,
            nan_in_an_absent_branch,
            epochs_of_logs,
            tied_weights,
            refusals,
            arguments_by_policy,
            norms_by_hand,
        )
    },
}


def main(folder: Path, output: Path) -> None:
    """Each case in a folder of its own."""
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        begin = time.perf_counter()
        found[name] = case(folder / str(number))
        print(f"{name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
