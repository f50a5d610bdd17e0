"""Which settings make good features?  python -m benchmarks.study --json docs/figures/study.json

V-JEPA under one changed setting at a time, a masked autoencoder of equal FLOPs and a supervised encoder, each from the
same seeds, on generated eyes; judged by probes on eyes that none has seen, never by a loss. Hours on two cores: runs
that are in the JSON file already are not run again.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.baselines import (
    MaskedAutoencoder,
    MaskedAutoencoderObjective,
    Supervised,
    SupervisedObjective,
    flops_per_step,
)
from benchmarks.recipes import MILD, SMOKE
from benchmarks.report import machine_facts, versions
from benchmarks.short_run import start, train
from data_setup.index import PreparedSet
from data_setup.masking import MaskGenerator
from data_setup.phantom_benchmark import BenchmarkSettings, PhantomBenchmark, write_benchmark
from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeSettings, probe
from oct_foundation.diagnostics.voxel_controls import voxel_controls
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D, VJEPA3DConfig
from pretraining.config import load_as
from pretraining.tasks.vjepa import VJEPATask
from pretraining.vjepa_config import VJEPARunConfig

NUM_TRAIN, NUM_VAL, NUM_JUDGED = 1600, 32, 480
TRAINING_EYES_SEED = 1
# One thing is changed at a time; the first is what a configuration without these keys has.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "vjepa": (),
    "vjepa, tube masks": ("mask.strategy=tube",),
    "vjepa, multi-block masks": ("mask.strategy=multiblock",),
    "vjepa, smooth-L1": ("model.loss=smooth_l1",),
    "vjepa, L1": ("model.loss=l1",),
    "vjepa, EMA .99 to 1": ("optim.ema_momentum=0.99",),
    "vjepa, tube masks, EMA .99 to 1": ("mask.strategy=tube", "optim.ema_momentum=0.99"),
    "mae": (),
    "supervised": (),
}


def configuration(condition: str, seed: int, steps: int, root: Path) -> VJEPARunConfig:
    """The run's, by load_config, as a user's file would give it."""
    settings = [
        "model.preset=vit_tiny", "model.image_size=[16,96,96]", "data.source=prepared", f"data.root={root}",
        "data.max_samples=null", "batch.global_batch_size=16", "batch.per_core_batch_size=16", "optim.base_lr=1e-3",
        "optim.schedule=cosine", "optim.final_lr=1e-5", "optim.warmup_steps=100", "optim.ema_momentum=0.996",
        "optim.final_ema_momentum=1.0", "train.epochs=100000", f"train.max_steps={steps}", "train.precision=fp32",
        "data.views.flip_prob=0", "data.views.affine_prob=0", "data.views.intensity_prob=0", "data.views.noise_prob=0",
        "data.views.blur_prob=0",
        f"seed={seed}", *CONDITIONS[condition],
    ]  # fmt: skip
    return load_as(VJEPARunConfig, SMOKE, settings)


def run_one(condition: str, seed: int, steps: int, root: Path, attentive: bool) -> dict[str, Any]:
    """Trains and probes one encoder, in a process of its own: its rows of scores, and what it took."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    prepared = PreparedSet.load(root)
    config = configuration(condition, seed, steps, root)
    kind = condition.split(",")[0]
    masks = MaskGenerator(config.grid, config.mask)
    cost = {name: flops_per_step(config, name, masks.num_context, masks.num_target) for name in ("vjepa", kind)}
    own_steps = round(steps * cost["vjepa"] / cost[kind])
    task = _task(kind, config, prepared)
    state = start(task, config)
    _, eyes = judged_eyes()
    first = features(_encoder(state.model), eyes)
    train(task, config, state, own_steps)
    trained_s = time.perf_counter() - began
    rows = scores({"encoder": features(_encoder(state.model), eyes), "random_init": first}, attentive=attentive)
    facts = {"condition": condition, "seed": seed, "steps": own_steps, "flops": cost[kind] * 16 * own_steps}
    return {**facts, "train_s": round(trained_s), "seconds": round(time.perf_counter() - began), "rows": rows}


def _task(kind: str, config: VJEPARunConfig, prepared: PreparedSet) -> VJEPATask:
    match kind:
        case "vjepa":
            return VJEPATask(config, prepared)
        case "mae":
            return VJEPATask(config, prepared, MaskedAutoencoderObjective(config))
        case _:
            return VJEPATask(config, prepared, SupervisedObjective(config, prepared, _training_targets()))


def _training_targets() -> np.ndarray:
    """Labels of the training eyes, standardised; the side as a number: float32 [train volumes, labels]."""
    settings = BenchmarkSettings(num_volumes=NUM_TRAIN + NUM_VAL, seed=TRAINING_EYES_SEED, ranges=MILD)
    columns = []
    for name, column in PhantomBenchmark(settings).labels.items():
        if name != "vendor":
            numbers = (column == "R").astype(float) if name == "laterality" else column
            columns.append((numbers - numbers.mean()) / numbers.std())
    return np.stack(columns, axis=1)[:NUM_TRAIN].astype(np.float32)


def _encoder(model: nn.Module) -> nn.Module:
    """What is probed."""
    match model:
        case VJEPA3D():
            return model.target_encoder
        case MaskedAutoencoder() | Supervised():
            return model.encoder
        case _:
            raise TypeError(type(model).__name__)


def judged_eyes() -> tuple[PhantomBenchmark, torch.Tensor]:
    """Eyes that no encoder was trained on: uint8 [M, 1, D, H, W]."""
    benchmark = PhantomBenchmark(BenchmarkSettings(num_volumes=NUM_JUDGED, ranges=MILD))
    return benchmark, torch.from_numpy(np.stack([benchmark[number] for number in range(len(benchmark))]))[:, None]


@torch.inference_mode()
def features(encoder: nn.Module, volumes: torch.Tensor) -> Contestant:
    """Mean and deviation of each feature over the patches: what is rare in a scan shows in the second."""
    tokens = torch.cat([encoder(volumes[at : at + 32]).float() for at in range(0, len(volumes), 32)]).numpy()
    return Contestant(pooled=np.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=1), tokens=tokens)


def scores(contestants: Mapping[str, Contestant], *, attentive: bool) -> list[dict[str, Any]]:
    """A row per label, probe and contestant."""
    benchmark, _ = judged_eyes()
    probes = ("ridge", "logistic", "attentive") if attentive else ("ridge", "logistic")
    rows = probe(contestants, benchmark.labels, benchmark.ids, ProbeSettings(probes=probes))
    return [asdict(row) for row in rows]


def voxels() -> list[dict[str, Any]]:
    """The controls that need no network."""
    benchmark, volumes = judged_eyes()
    model = VJEPA3DConfig(image_size=volumes.shape[2:], preset="vit_tiny")
    width = PRESETS["vit_tiny"].width
    return scores(voxel_controls(volumes[:, 0].numpy(), range(len(benchmark)), model.grid, width), attentive=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="of V-JEPA; others take as many FLOPs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="conditions whose name begins with this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--attentive", action="store_true", help="the attentive probe, too: minutes for each run")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args(argv)
    done: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"runs": []}
    have = {(run["condition"], run["seed"]) for run in done["runs"]}
    names = [name for name in CONDITIONS if name.startswith(arguments.only)]
    jobs = [(name, seed) for seed in range(1, arguments.seeds + 1) for name in names if (name, seed) not in have]
    done |= {"machine": machine_facts(), "versions": versions(), "steps": arguments.steps}
    done.setdefault("voxels", voxels())
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        settings = BenchmarkSettings(num_volumes=NUM_TRAIN + NUM_VAL, seed=TRAINING_EYES_SEED, ranges=MILD)
        write_benchmark(root, settings, num_train=NUM_TRAIN, num_val=NUM_VAL)
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            for job in as_completed(
                [pool.submit(run_one, *job, arguments.steps, root, arguments.attentive) for job in jobs]
            ):
                run = job.result()
                done["runs"].append(run)
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(done, indent=1) + "\n")
                print(f"{run['condition']:32} seed {run['seed']} {run['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
