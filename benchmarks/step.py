"""A full training step of VJEPA3D against V-JEPA 2 of `transformers`: `python -m benchmarks.step [--quick]`.

A step is forward, backward, gradient norm and clip, fused AdamW and the moving average, on views in memory (no
loader). All contestants get the same views, masks, dtype, fused attention, optimizer and EMA; they take turns in one
process, in an order that rotates. `ours rotary` computes exactly what the peer computes, from the same weights;
`ours sincos` is our default, which adds its positions once. `compiled`: the peer's whole forward and loss through
torch.compile, ours block by block (`train.compile`), both with fixed shapes.
"""

import multiprocessing
import string
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch

from benchmarks.report import median, parse_arguments, peak_memory_mib, print_report
from benchmarks.vjepa2_peer import VJEPA2Peer, copy_weights
from oct_foundation.batch import JEPABatch
from oct_foundation.models.flops import step_flops
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups
from oct_foundation.runtime.base import Precision
from oct_foundation.runtime.native import NativeRuntime, cpu_has_bf16
from pretraining.step import train_step
from pretraining.tasks.vjepa_objective import VJEPAObjective
from pretraining.vjepa_config import VJEPARunConfig

COMPILED = " compiled"
NAMES = ("peer", f"peer{COMPILED}", "ours rotary", f"ours rotary{COMPILED}", "ours sincos", f"ours sincos{COMPILED}")
SAME = NAMES[:4]  # they compute the same, from the same weights
# Ratios above 1 are our lead in time; those of memory are our share of the peer's.
COMPARED = {
    "time": "step_s",
    "processor time": "processor_s",
    "memory": "peak_memory_mib",
    "memory above imports": "above_imports_mib",
}
NUM_COMPARED = 3  # first steps whose losses must agree
HIDDEN_SHARE = 0.6
MAX_NORM, LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 1.0, 1e-4, 0.05, 0.996


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape to time: voxels [D, H, W] and volumes per step; bf16 is autocast's, for all contestants alike."""

    image_size: tuple[int, int, int]
    batch_size: int
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{list(self.image_size)} x {self.batch_size} {self.precision}"

    @property
    def tolerance(self) -> float:
        """By what the losses of contestants may differ that compute the same."""
        return 1e-4 if self.precision == "fp32" else 1e-2

    def config(self, name: str) -> VJEPA3DConfig:
        """vit_small with the positions of that contestant; the layout that V-JEPA 2 has, where it is compared."""
        if name.startswith("ours sincos"):
            return VJEPA3DConfig(image_size=self.image_size)
        return VJEPA3DConfig(image_size=self.image_size, positions="rotary", rope_layout="vjepa2")

    def batch(self, device: torch.device) -> JEPABatch:
        """Random float views and masks: the same for every contestant."""
        generator = torch.Generator().manual_seed(0)
        num_tokens = self.config("peer").grid.num_patches
        num_targets = round(HIDDEN_SHARE * num_tokens)
        order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(self.batch_size)])
        views = torch.randn(2, self.batch_size, 1, *self.image_size, generator=generator)
        batch = JEPABatch(
            context_view=views[0],
            target_view=views[1],
            context_idx=order[:, num_targets:].sort(dim=1).values,
            target_idx=order[:, :num_targets].sort(dim=1).values,
        )
        return batch.to(device)


# A laptop with 4 GiB to spare takes the small batches; in the larger ones what a step costs whatever its batch
# (moments, clip and EMA of 29 M weights, the same on both sides) no longer hides the difference.
FP32_CASES = (
    Case(image_size=(16, 128, 128), batch_size=2),
    Case(image_size=(16, 128, 128), batch_size=8),
    Case(image_size=(32, 192, 192), batch_size=1),
    Case(image_size=(32, 192, 192), batch_size=4),
)
BF16_CASES = (replace(FP32_CASES[1], precision="bf16"), replace(FP32_CASES[3], precision="bf16"))
CUDA_CASES = (*BF16_CASES, Case(image_size=(64, 384, 384), batch_size=2, precision="bf16"))


def cases_of(device: torch.device) -> tuple[Case, ...]:
    """What is worth timing there: bf16 on a CPU that has instructions for it, nothing else on CUDA."""
    if device.type == "cuda":
        return CUDA_CASES
    return FP32_CASES + (BF16_CASES if cpu_has_bf16() else ())


def build(name: str, case: Case, device: torch.device) -> VJEPA3D | VJEPA2Peer:
    """The contestant with the weights of seed 0; the peer gets those of `ours rotary`."""
    torch.manual_seed(0)
    ours, compiled = VJEPA3D(case.config(name)), name.endswith(COMPILED)
    if not name.startswith("peer"):
        if compiled:
            ours.compile_blocks()
        return ours.to(device)
    peer = VJEPA2Peer(ours.config)
    copy_weights(ours, peer)
    if compiled:
        peer.compile(fullgraph=True, dynamic=False)
    return peer.to(device)


class Ours:
    """The project's own step, the one that every run makes, on the project's own model and optimizer."""

    def __init__(self, name: str, case: Case, device: torch.device) -> None:
        self.model = build(name, case, device).train()
        guard = GradientGuard(MAX_NORM, device)
        self.optimizer = AdamW(parameter_groups(self.model), guard=guard)
        self.objective = VJEPAObjective(VJEPARunConfig(model=case.config(name)))
        self.runtime = NativeRuntime("cuda" if device.type == "cuda" else "cpu")
        self.precision = case.precision

    def __call__(self, batch: JEPABatch) -> torch.Tensor:
        """One update on `batch`."""
        scalars = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "ema_momentum": MOMENTUM}
        model, optimizer, runtime = self.model, self.optimizer, self.runtime
        return train_step(self.objective, model, model, optimizer, runtime, [batch], scalars, self.precision)["loss"]


class Peer:
    """The same update as a user of torch would write it: clip, fused AdamW, foreach moving average."""

    def __init__(self, name: str, case: Case, device: torch.device) -> None:
        self.model = build(name, case, device).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=case.precision == "bf16")

    def __call__(self, batch: JEPABatch) -> torch.Tensor:
        """One update on `batch`."""
        with self.autocast:
            loss, _, _ = self.model(
                batch.context_view, batch.target_view, context_idx=batch.context_idx, target_idx=batch.target_idx
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        self.model.update_teacher(MOMENTUM)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def contestant_of(name: str, case: Case, device: torch.device) -> Ours | Peer:
    """By its name in NAMES."""
    return Peer(name, case, device) if name.startswith("peer") else Ours(name, case, device)


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall time of `call`, the device idle before and after it, and what the processor's cores spent on it together."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start, spent = time.perf_counter(), time.process_time()
    call()
    synchronize()
    return time.perf_counter() - start, time.process_time() - spent


def same_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raises ValueError when those of SAME do not lose the same in their first steps."""
    for name in SAME:
        for found, expected in zip(losses[name], losses["peer"], strict=True):
            if abs(found / expected - 1) > tolerance:
                raise ValueError(f"the contestants do not compute the same: first losses {losses}")


def time_case(
    case: Case, device: torch.device, *, num_warmup: int, num_steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds (wall, processor) of each timed step by contestant; raises ValueError where SAME are not the same."""
    batch = case.batch(device)
    contestants = {name: contestant_of(name, case, device) for name in NAMES}
    losses = {name: [float(call(batch)) for _ in range(NUM_COMPARED)] for name, call in contestants.items()}
    same_losses(losses, case.tolerance)
    durations: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for number in range(num_warmup + num_steps):
        shift = number % len(NAMES)
        for name in NAMES[shift:] + NAMES[:shift]:
            contestant = contestants[name]
            duration = seconds(lambda contestant=contestant: contestant(batch), device)
            if number >= num_warmup:
                durations[name].append(duration)
    return durations


def memory_of(name: str, case: Case, device_type: str) -> tuple[float, float] | None:
    """Peak MiB of two steps in a process of its own, and how much of it lies above what the imports took.

    Resident size on a CPU, allocated by torch on CUDA; None where the system does not tell.
    """
    device, imported = torch.device(device_type), peak_memory_mib()
    contestant, batch = contestant_of(name, case, device), case.batch(device)
    for _ in range(2):
        contestant(batch)
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() / 2**20,) * 2
    peak = peak_memory_mib()
    return None if peak is None or imported is None else (peak, peak - imported)


def peak_memory(name: str, case: Case, device: torch.device) -> dict[str, int]:
    """`memory_of` in a fresh process, since a process's peak never falls again; empty where nobody tells."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(memory_of, name, case, device.type).result()
    return {} if peak is None else {"peak_memory_mib": round(peak[0]), "above_imports_mib": round(peak[1])}


def volume_flops(config: VJEPA3DConfig) -> float:
    """Nominal operations of one volume's step: the same for all contestants."""
    num_tokens = config.grid.num_patches
    num_target = round(HIDDEN_SHARE * num_tokens)
    return step_flops(config, num_context=num_tokens - num_target, num_target=num_target)


def figures_of(name: str, case: Case, device: torch.device, durations: list[tuple[float, float]]) -> dict[str, float]:
    """What a contestant did in a case."""
    wall, spent = ([pair[index] for pair in durations] for index in (0, 1))
    rate = case.batch_size / median(wall)
    return {
        "volumes_per_s": float(f"{rate:.4g}"),
        "step_s": median(wall),
        "fastest_step_s": float(f"{min(wall):.4g}"),
        "slowest_step_s": float(f"{max(wall):.4g}"),
        "processor_s": median(spent),
        "gflop_per_s": round(rate * volume_flops(case.config(name)) / 1e9, 1),
        **peak_memory(name, case, device),
    }


def main() -> None:
    """Times every case, prints a table and then the report; a part is a case, in the order of `cases_of` from `a`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = cases_of(device)
    letters = string.ascii_lowercase[: len(cases)]
    arguments = parse_arguments(__doc__.splitlines()[0], parts=letters)
    num_warmup, num_steps = (0, 5) if arguments.quick else (2, 12)
    figures: dict[str, object] = {
        "steps": num_steps,
        "trainable_parameters": VJEPA3D(cases[0].config("ours sincos")).num_trainable_parameters,
    }
    ratios: dict[str, float] = {}
    for case in (cases[letters.index(letter)] for letter in arguments.part):
        durations = time_case(case, device, num_warmup=num_warmup, num_steps=num_steps)
        found = {name: figures_of(name, case, device, durations[name]) for name in NAMES}
        for name, figure in found.items():
            figures[f"{case.name}: {name}"] = figure
            print(f"{case.name:22} {name:21} {figure}", flush=True)
            for of, key in COMPARED.items():
                for peer in NAMES[:2] if name.startswith("ours") and key in figure else ():
                    share = figure[key] / found[peer][key]
                    ratios[f"{case.name}: {name}, {of} against {peer}"] = round(
                        share if key.endswith("_mib") else 1 / share, 3
                    )
    print_report("step", figures, ratios)


if __name__ == "__main__":
    main()
