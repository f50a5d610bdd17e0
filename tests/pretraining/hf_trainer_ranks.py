"""Updates that ranks see differently; started plainly or by torchrun: ... <folder> <rows of a rank> <policy>.

Rows are dealt out so that two ranks with two rows and one process with four hold the same rows in every update.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import EvalPrediction

from pretraining.branch_norms import BranchNorms, Drift
from pretraining.hf_trainer import DummyLossTrainer, MultimodalSettings
from tests.pretraining.hf_trainer_cases import logged
from tests.pretraining.hf_trainer_setup import Listed, new_model, samples_of, trainer_of

# Four rows a micro-batch: the first two are rank 0's, the others rank 1's. Two micro-batches make an update.
ROWS = [
    *("T1", "T1", "dMRI", "dMRI"),  # ranks differ
    *("dMRI", "dMRI", "T1", "text"),  # and change over
    *("T1", "T1", "T1", "T1"),  # dMRI is nowhere
    *("text", "text", "T1", "text"),  # text alone on a rank
    *("dMRI", "T1", "text", "text"),
    *("dMRI", "dMRI", "dMRI", "dMRI"),
    *("text",) * 8,  # no tower at all
]


def steps_of(trainer: DummyLossTrainer, parameters: Sequence[torch.nn.Parameter]) -> list[float]:
    """How many updates AdamW has made to them; without a state: 0."""
    return sorted({float(trainer.optimizer.state.get(parameter, {"step": 0})["step"]) for parameter in parameters})


def count_answers(prediction: EvalPrediction) -> dict[str, float]:
    """Of all ranks, padding of the last batch left out."""
    return {"answers": len(prediction.predictions), "labels": len(prediction.label_ids)}


def norms_of_shares() -> dict[str, list[float]]:
    """Gradient norms and drift of a plain model, and of one whose weights the ranks share."""
    found = {}
    for name in ("plain", "shared"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3))
        if name == "shared":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        branches = {"A": list(model[0].parameters())}
        norms, drift = BranchNorms(model, branches), Drift(branches)
        drift.note({"A"})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = parameter.detach() * 2
                parameter += 0.25 * parameter * parameter
        found[name] = [*norms.measure().tolist(), *(value.item() for value in drift.measure().values())]
    return found


def main(folder: Path, rows_per_rank: int, policy: str) -> None:
    """Writes the weights, and what each rank says of itself."""
    settings = MultimodalSettings(
        policy=policy, generate_every=2, fixed_samples=samples_of(["T1", "dMRI"]), max_new_tokens=4
    )
    trainer = trainer_of(
        folder,
        ROWS,
        settings,
        more={"eval_dataset": Listed(samples_of([*ROWS[:8], "rsfMRI"])), "compute_metrics": count_answers},
        per_device_train_batch_size=rows_per_rank,
        per_device_eval_batch_size=rows_per_rank,
        gradient_accumulation_steps=2,
    )
    start = new_model().branches()["rsfMRI"]
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    branches = trainer.inactive.branches
    finding = {
        "rank": trainer.args.process_index,
        "world": trainer.args.world_size,
        "rsfMRI moved": max((p - q).abs().max().item() for p, q in zip(branches["rsfMRI"], start, strict=True)),
        "updates": {name: steps_of(trainer, parameters) for name, parameters in branches.items()},
        "updates of the trunk": steps_of(trainer, trainer.model.trunk()),
        "weights": sum(p.detach().double().sum().item() for p in trainer.model.parameters()),
        "logs": logged(trainer),
        "training": trainer.model.training,
        "evaluation": trainer.evaluate(),
    }
    if torch.distributed.is_initialized():
        finding["sharded"] = norms_of_shares()
    (folder / f"rank{finding['rank']}.json").write_text(json.dumps(finding))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
