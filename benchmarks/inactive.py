"""How far do absent branches move, and what does `skip` cost?  python -m benchmarks.inactive [--part do] [--quick]

d: drift under torch's AdamW at lr 1e-4, by policy: small embeddings with the statistics of real ones (std 0.02, and
gradients of the sizes named), absent for 1,000 and for 30,000 steps, beside the prediction.
o: the overhead of `skip` on a real step of a vision-language model: alternated with steps without it, and by its parts.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from benchmarks.report import median, parse_arguments, print_report
from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import Inactive, Policy, predicted_drift
from oct_foundation.models.language import LanguageConfig
from oct_foundation.models.vision_language import TokenIds, VisionLanguageConfig, VisionLanguageModel
from oct_foundation.models.volume_patches import PatchLayout
from oct_foundation.runtime.base import Runtime
from oct_foundation.runtime.select import launch

LEARNING_RATE, WEIGHT_STD, NUM_WEIGHTS = 1e-4, 0.02, 4096
HISTORY_STEPS = 500
REPORT_AT = (1_000, 5_000, 10_000, 20_000, 30_000)


@dataclass(frozen=True, kw_only=True)
class History:
    """A branch that goes absent: mean absolute gradient of the 500 steps before (0: never trained), and its decay."""

    gradient: float = 0.0
    decay: float = 0.0

    @property
    def name(self) -> str:
        """As it stands in the report."""
        before = f"{HISTORY_STEPS} steps, |gradient| {self.gradient:g}" if self.gradient else "never trained"
        return f"{before}, decay {self.decay:g}"


SHORT = tuple(History(gradient=gradient, decay=decay) for gradient in (0.0, 0.066) for decay in (0.0, 0.01, 0.1))
LONG = tuple(History(gradient=gradient) for gradient in (0.0, 1e-4, 1e-3))


class Embeddings(nn.Module):
    """One present weight, and a branch per history; the loss reaches the present one alone."""

    def __init__(self, histories: Sequence[History]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.present = nn.Parameter(torch.randn(8))
        self.absent = nn.ParameterList(WEIGHT_STD * torch.randn(NUM_WEIGHTS) for _ in histories)

    def forward(self) -> torch.Tensor:
        """The loss."""
        return self.present.pow(2).sum()

    def branches(self) -> dict[str, list[nn.Parameter]]:
        """`present`, then the absent ones by number."""
        return {"present": [self.present], **{str(number): [p] for number, p in enumerate(self.absent)}}


def drift(policy: Policy, histories: Sequence[History], num_steps: int) -> dict[str, dict[int, dict[str, float]]]:
    """Movement of each branch since it went absent, by history and step."""
    model = Embeddings(histories)
    inactive = Inactive(model.branches(), policy)
    pairs = list(zip(model.absent, histories, strict=True))
    groups: list[dict[str, Any]] = [
        {"params": [p for p, history in pairs if history.decay == decay], "weight_decay": decay}
        for decay in sorted({history.decay for history in histories})
    ]
    groups[0]["params"].append(model.present)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    for _ in range(HISTORY_STEPS):  # normal gradients: mean |g| is 0.798 of their std
        for parameter, history in pairs:
            parameter.grad = torch.randn_like(parameter) * history.gradient / 0.798 if history.gradient else None
        optimizer.step()
    optimizer.zero_grad()
    start = [parameter.detach().clone() for parameter in model.absent]
    inactive.watch(model)
    found: dict[str, dict[int, dict[str, float]]] = {history.name: {} for history in histories}
    for step in range(1, num_steps + 1):
        inactive.see({"present"})
        model().backward()
        inactive.drop()
        optimizer.step()
        optimizer.zero_grad()
        if step in REPORT_AT:
            for history, parameter, before in zip(histories, model.absent, start, strict=True):
                found[history.name][step] = movement(parameter.detach() - before, before)
    return found


def movement(moved: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    """Mean with sign, mean size and largest of the weights' movement, and its norm relative to the weights' norm."""
    figures = {
        "mean": moved.mean(),
        "mean_abs": moved.abs().mean(),
        "max_abs": moved.abs().max(),
        "relative": moved.norm() / before.norm(),
    }
    return {name: float(f"{value.item():.3g}") for name, value in figures.items()}


def measure_drift(quick: bool) -> dict[str, object]:
    """Both tables, for every policy."""
    figures: dict[str, object] = {}
    for policy in get_args(Policy):
        for title, histories, num_steps in (("short", SHORT, 1_000), ("long", LONG, 1_000 if quick else 30_000)):
            begin = time.perf_counter()
            table = drift(policy, histories, num_steps)
            figures[f"drift, {title}: {policy}"] = table
            print(f"{policy}, {num_steps:,} steps, {time.perf_counter() - begin:.0f} s", flush=True)
            for name, steps in table.items():
                print(f"  {name:45}", {step: (row["mean_abs"], row["relative"]) for step, row in steps.items()})
        figures[f"predicted relative drift of 1,000 steps: {policy}"] = {
            f"decay {decay:g}": float(
                f"{predicted_drift(policy, learning_rate=LEARNING_RATE, weight_decay=decay, weight_std=WEIGHT_STD):.3g}"
            )
            for decay in (0.0, 0.01, 0.1)
        }
    return figures


VOLUME = PatchLayout(shape=(1, 128, 128, 128), patch_size=(16, 16, 16), pool=(2, 2, 2))
FRAMES = PatchLayout(shape=(1, 96, 96, 96, 20), patch_size=(16, 16, 16, 5), pool=(2, 2, 2, 4))
NAMES = ("T1", "rsfMRI", "dMRI")
BATCH, LENGTH, VOCABULARY = 2, 96, 512


def brain_model() -> VisionLanguageModel:
    """Volumes and patches of the original; a tower and a language model that a CPU can train."""
    torch.manual_seed(0)
    tokens = TokenIds(vocabulary_size=VOCABULARY, image={name: 500 + n for n, name in enumerate(NAMES)}, end=1)
    config = VisionLanguageConfig(
        modalities={"T1": VOLUME, "rsfMRI": FRAMES, "dMRI": VOLUME},
        language=LanguageConfig(width=384, depth=6, num_heads=6),
        width=384,
        depth=12,
        num_heads=6,
    )
    return VisionLanguageModel(config, tokens)


def t1_batch() -> ConversationBatch:
    """T1 alone: rsfMRI, by far the largest embedding, and dMRI are absent."""
    ids = torch.randint(2, 500, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, : VOLUME.num_image_tokens] = 500
    return ConversationBatch(
        images={"T1": torch.randn(BATCH, *VOLUME.shape)},
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.where(torch.arange(LENGTH) >= LENGTH - 4, ids, -100),
        rows={"T1": BATCH},
    )


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Of this process's processor, so that others beside it do not count; or of another clock."""
    begin = clock()
    call()
    return clock() - begin


class Stepper:
    """A training step of the model with or without `skip`: forward, backward, clip, fused AdamW."""

    def __init__(self) -> None:
        self.model, self.batch = brain_model().train(), t1_batch()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        self.inactive = Inactive(self.model.branches(), trunk=self.model.trunk())
        absent = [p for name in ("rsfMRI", "dMRI") for p in self.model.branches()[name]]
        self.bucket = torch.ones(sum(parameter.numel() for parameter in absent))

    def step(self, skip: bool) -> None:
        """One update."""
        batch, inactive = self.batch, self.inactive
        handle = inactive.watch(self.model) if skip else None
        if skip:
            inactive.see({"T1"})
        self.model(batch.images, batch.input_ids, batch.attention_mask, batch.labels, batch.rows).loss.backward()
        if skip:
            inactive.drop(lambda activity: activity)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if handle is not None:
            handle.remove()

    def parts(self) -> dict[str, float]:
        """Seconds of the anchor's forward and backward, of the zeros that DDP then writes into its bucket, and of the
        end of the step.
        """
        values: list[torch.Tensor] = []
        self.inactive.see({"T1"})
        found = {"anchor_forward": seconds(lambda: values.append(self.inactive.dummy({"T1"})))}
        found["anchor_backward"] = seconds(values[0].backward)
        found["bucket_zeroed"] = seconds(self.bucket.zero_)
        found["drop"] = seconds(self.inactive.drop)
        return found


def time_reduction(runtime: Runtime, folder: Path) -> int:
    """Worker of two gloo ranks: the median wall time in which they learn what anyone holds, written down."""
    activity, durations = dict.fromkeys(NAMES, 1.0), []
    for _ in range(200):
        runtime.barrier()
        durations.append(seconds(lambda: runtime.max_over_ranks(activity), time.perf_counter))
    if runtime.rank == 0:
        (folder / "seconds").write_text(str(median(durations)))
    return 0


def measure_overhead(quick: bool) -> dict[str, object]:
    """Medians of steps in turns, of the parts (processor seconds), and of the reduction over two ranks (wall)."""
    with tempfile.TemporaryDirectory() as temporary:
        if launch("cpu", time_reduction, Path(temporary), num_processes=2):
            raise RuntimeError("the two ranks that time the reduction have failed; their reason stands above")
        reduction = float((Path(temporary) / "seconds").read_text())
    stepper = Stepper()
    durations: dict[bool, list[float]] = {False: [], True: []}
    parts: dict[str, list[float]] = {}
    for number in range(4 if quick else 11):
        for skip in (False, True) if number % 2 else (True, False):
            duration = seconds(lambda skip=skip: stepper.step(skip))  # type: ignore[misc]
            durations[skip] += [duration] if number else []  # the first pair warms up
        for name, value in stepper.parts().items():
            parts.setdefault(name, []).append(value)
    step = median(durations[False])
    by_part = {**{name: median(values) for name, values in parts.items()}, "reduction_2_gloo_ranks": reduction}
    pairs = [with_skip / without - 1 for without, with_skip in zip(durations[False], durations[True], strict=True)]
    return {
        "model": "tower 384 x 12, Llama 384 x 6, volumes and patches of the original, batch of 2 T1, fp32",
        "parameters": sum(p.numel() for p in stepper.parameters),
        "absent_parameters": stepper.bucket.numel(),
        "step_without_s": step,
        "step_with_skip_s": median(durations[True]),
        "overhead_of_pairs_percent": round(100 * median(pairs), 2),
        "parts_s": by_part,
        "overhead_by_parts_percent": round(100 * sum(by_part.values()) / step, 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints both tables and the report."""
    arguments = parse_arguments(__doc__.splitlines()[0], argv, parts="do")
    figures: dict[str, object] = {"learning_rate": LEARNING_RATE, "weights": NUM_WEIGHTS, "weight_std": WEIGHT_STD}
    ratios = {}
    if "d" in arguments.part:
        figures |= measure_drift(arguments.quick)
    if "o" in arguments.part:
        overhead = measure_overhead(arguments.quick)
        figures["overhead of skip"] = overhead
        print(overhead, flush=True)
        percent = overhead["overhead_by_parts_percent"]
        assert isinstance(percent, float)
        ratios["overhead of skip over the 1 % allowed"] = percent
    print_report("inactive", figures, ratios)


if __name__ == "__main__":
    main()
