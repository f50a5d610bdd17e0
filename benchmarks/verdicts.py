"""Are verdicts right?  python -m benchmarks.verdicts --json docs/figures/verdicts.json

Short CPU runs, healthy ones and ones broken in ten ways. What a run truly came to is said by probes of its teacher
against the same network at random, on eyes that it never saw; the verdict sees the readings only, and no label.
Thresholds are fitted on the runs of some seeds of networks, masks and order (`--first-seed`), and judged once on those
of others that nobody had seen; the eyes are the same. docs/diagnostics.md says which seeds were which.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from benchmarks.recipes import MILD, Breakage, Outcome, Recipe, run_recipe
from benchmarks.report import machine_facts, versions
from data_setup.index import PreparedSet
from data_setup.phantom_benchmark import BenchmarkSettings, PhantomBenchmark, write_benchmark
from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ProbeRow, ProbeSettings, probe
from oct_foundation.diagnostics.readings import Reading
from oct_foundation.diagnostics.verdicts import Judgement, judge

SIZE = (16, 64, 64)
NUM_TRAIN, NUM_VAL, NUM_JUDGED, WARMUP = 480, 96, 480, 50
LABELS = ("thickness_um", "drusen_load", "fluid", "vessel_density", "laterality", "fovea_x_mm")
BROKEN: tuple[Breakage, ...] = get_args(Breakage)


def recipes(first: int) -> list[Recipe]:
    """Ten healthy and ten broken runs, with seeds from `first` on."""
    ema_0, too_fast = ("optim.ema_momentum=0", "optim.final_ema_momentum=0"), ("optim.base_lr=5e-2",)
    healthy = {
        "base": (),
        "base, seed 2": (),
        "base, seed 3": (),
        "tube masks": ("mask.strategy=tube",),
        "multi-block masks": ("mask.strategy=multiblock",),
        "mse": ("model.loss=mse",),
        "l1": ("model.loss=l1",),
        "learning rate 5e-4": ("optim.base_lr=5e-4",),
        "EMA .99": ("optim.ema_momentum=0.99",),
        "intensity augmentation": ("data.views.intensity_prob=0.5", "data.views.noise_prob=0.2"),
    }
    found = [Recipe(name=name, settings=them, seed=first + n) for n, (name, them) in enumerate(healthy.items())]
    found.append(Recipe(name="EMA 0", settings=ema_0, seed=first))
    found.append(Recipe(name="learning rate x 100", settings=too_fast, seed=first + 1))
    found += [Recipe(name=kind, breakage=kind, seed=first + 2 + n) for n, kind in enumerate(BROKEN)]
    return found


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One run: what it was, what its readings said, what probes say. gain: mean score over that of the random network,
    with its 95 % interval; learned: the interval lies above 0.
    """

    name: str
    seed: int
    broken: bool
    loss: float
    verdict: str
    findings: list[str]
    reasons: list[str]
    readings: list[dict[str, Any]]
    score: float
    gain: float
    gain_low: float
    gain_high: float
    learned: bool
    right: bool
    seconds: float


def run_one(recipe: Recipe, folder: Path, steps: int) -> Judged:
    """Trains, judges, probes; in a process of its own."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    prepared = PreparedSet.load(folder / "train")
    outcome = run_recipe(recipe, prepared, folder, steps=steps, every_steps=steps // 5)
    rows = probe_outcome(outcome)
    gains = [row.differences["random_init"] for row in rows]
    gain = float(np.mean([one.value for one in gains]))
    # Half the width of the mean of the labels' intervals, as if they were independent.
    half = float(np.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in gains)) / len(gains))
    said = judge(outcome.readings, warmup_steps=WARMUP)
    learned = gain - half > 0
    return Judged(
        name=recipe.name,
        seed=recipe.seed,
        broken=recipe.breakage is not None or recipe.name in ("EMA 0", "learning rate x 100"),
        loss=outcome.loss,
        readings=[{"step": reading.step, **reading.values} for reading in outcome.readings],
        score=float(np.mean([row.score for row in rows])),
        gain=gain,
        gain_low=gain - half,
        gain_high=gain + half,
        learned=learned,
        seconds=time.perf_counter() - start,
        **verdict_of(said, learned=learned),
    )


def probe_outcome(outcome: Outcome) -> list[ProbeRow]:
    """Linear probes of the teacher at the end and at the start, on other eyes: a row per label."""
    benchmark = PhantomBenchmark(BenchmarkSettings(num_volumes=NUM_JUDGED, image_size=SIZE, ranges=MILD))
    volumes = torch.from_numpy(np.stack([benchmark[number] for number in range(len(benchmark))]))[:, None]
    features = {name: Contestant(pooled=pooled(network, volumes)) for name, network in _networks(outcome).items()}
    labels = {name: benchmark.labels[name] for name in LABELS}
    rows = probe(features, labels, benchmark.ids, ProbeSettings(probes=("ridge", "logistic"), resamples=400))
    return [row for row in rows if row.contestant == "encoder" and row.metric in ("r2", "auroc")]


def _networks(outcome: Outcome) -> dict[str, nn.Module]:
    return {"encoder": outcome.last, "random_init": outcome.first}


@torch.inference_mode()
def pooled(encoder: nn.Module, volumes: torch.Tensor) -> np.ndarray:
    """Mean over the patches: float64 [M, E]."""
    tokens = torch.cat([encoder(volumes[start : start + 32]).float() for start in range(0, len(volumes), 32)])
    return tokens.mean(dim=1).double().numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row per run and writes all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--first-seed", type=int, default=1, help="healthy runs take ten seeds from here on, broken ones the same"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="recipes whose name holds this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rejudge", action="store_true", help="judge the runs of --json again; nothing is trained")
    parser.add_argument(
        "--markdown", action="store_true", help="the runs of --json as the table of docs/diagnostics.md"
    )
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        print(markdown(arguments.json))
        return
    if arguments.rejudge:
        report(rejudged(arguments.json))
        return
    chosen = [recipe for recipe in recipes(arguments.first_seed) if (arguments.only or "") in recipe.name]
    found: list[Judged] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = BenchmarkSettings(num_volumes=NUM_TRAIN + NUM_VAL, image_size=SIZE, seed=1, ranges=MILD)
        write_benchmark(folder / "train", settings, num_train=NUM_TRAIN, num_val=NUM_VAL)
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(run_one, recipe, folder, arguments.steps) for recipe in chosen]
            for job in as_completed(jobs):
                found.append(job.result())
                print(line(found[-1]), flush=True)
                if arguments.json:
                    write(arguments.json, found, arguments.first_seed, arguments.steps)
    report(found)


def report(found: Sequence[Judged]) -> None:
    """How many verdicts are right."""
    right = sum(one.right for one in found)
    false_alarms = [one.name for one in found if one.verdict == "COLLAPSED" and one.learned]
    print(f"{right} of {len(found)} verdicts right; called collapsed though they learned: {false_alarms or 'none'}")


def rejudged(path: Path) -> list[Judged]:
    """The runs of a file, judged by the thresholds of today, and written back."""
    facts = json.loads(path.read_text())
    found = []
    for run in facts["runs"]:
        readings = [
            Reading(step=values["step"], values={name: value for name, value in values.items() if name != "step"})
            for values in run["readings"]
        ]
        said = judge(readings, warmup_steps=WARMUP)
        one = Judged(**{**run, **verdict_of(said, learned=run["learned"])})
        found.append(one)
        print(line(one))
    path.write_text(json.dumps({**facts, "runs": [asdict(one) for one in found]}, indent=1) + "\n")
    return found


def markdown(path: Path) -> str:
    """A row per run, healthy recipes first, as they are listed above."""
    facts = json.loads(path.read_text())
    order = [recipe.name for recipe in recipes(facts["first_seed"])]
    rows = [
        "| recipe | seed | loss | error / average scan | centred cosine | spread | gain of probes | learned | said |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in sorted(facts["runs"], key=lambda run: order.index(run["name"])):
        first, last = run["readings"][0], run["readings"][-1]
        interval = f"{run['gain']:+.3f} [{run['gain_low']:+.3f}, {run['gain_high']:+.3f}]"
        cells = [
            run["name"].replace("_", " "), run["seed"], f"{run['loss']:.4f}", f"{last['pos_ratio']:.2f}",
            f"{last['centred_cos']:.2f}", f"{last['pooled_std'] / first['pooled_std']:.2f}", interval,
            "yes" if run["learned"] else "no", run["verdict"] + ("" if run["right"] else " **(wrong)**"),
        ]  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def verdict_of(said: Judgement, *, learned: bool) -> dict[str, Any]:
    """What is kept of a judgement, and whether it is right: CANNOT TELL never is."""
    return {
        "verdict": said.verdict,
        "findings": [f"{finding.severity}: {finding.name}" for finding in said.findings],
        "reasons": list(said.reasons),
        "right": (said.verdict == "LEARNING") == learned and said.verdict != "CANNOT TELL",
    }


def write(path: Path, found: Sequence[Judged], first_seed: int, steps: int) -> None:
    """All runs so far, with the machine."""
    facts = {"machine": machine_facts(), "versions": versions(), "steps": steps, "first_seed": first_seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "runs": [asdict(one) for one in found]}, indent=1) + "\n")


def line(one: Judged) -> str:
    """One run as a row."""
    last = one.readings[-1]
    spread = last["pooled_std"] / one.readings[0]["pooled_std"]
    return (
        f"{one.name:24} {one.seed:4} loss {one.loss:.5f} pos {last['pos_ratio']:8.3f} spread {spread:6.3f} "
        f"gain {one.gain:+.3f} [{one.gain_low:+.3f}, {one.gain_high:+.3f}] "
        f"{'learned' if one.learned else 'not'}: {one.verdict:12} {'ok' if one.right else 'WRONG'} {one.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
