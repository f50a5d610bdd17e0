"""What two gloo ranks do in the tests of absent branches: every case is compared with one process on the union batch.

Each rank computes both ranks' gradients on a plain copy of the model, so a case needs no second start.
"""

import copy
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oct_foundation.batch import ConversationBatch
from oct_foundation.losses.inactive import TINY, Inactive
from oct_foundation.models.language import LanguageConfig
from oct_foundation.models.vision_language import TokenIds, VisionLanguageConfig, VisionLanguageModel
from oct_foundation.models.volume_patches import PatchLayout

MODALITIES = ("T1", "rsfMRI", "dMRI")
T1, EPI, DWI = ({name} for name in MODALITIES)
NUM_STEPS = 4
# pattern -> of each rank, the modalities of its steps, over and over.
PATTERNS: dict[str, tuple[list[set[str]], list[set[str]]]] = {
    "same": ([T1], [T1]),
    "alternating": ([T1, EPI], [T1, EPI]),
    "alternating by rank": ([T1, EPI], [EPI, T1]),
    "one each": ([T1], [DWI]),  # branches of equal shapes: a mix-up of ranks is no error
    "two of three": ([T1 | EPI], [T1 | EPI]),
    "two of three, differing": ([T1 | EPI, EPI | DWI], [T1 | DWI, T1]),
    "text alone on a rank": ([set(), T1], [T1, set()]),
    "text alone everywhere": ([T1, set()], [T1, set()]),
}
# outside: the zero dummy added to what DDP returns, as the first UMBRELLA did.
POLICIES = ("skip", "zero", "tiny", "find_unused", "outside")
WRAPPINGS: dict[str, dict[str, bool]] = {
    "plain": {},
    "find_unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}


class Small(nn.Module):
    """Three branches, a trunk and a head: the loss of text alone does not reach the trunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.ModuleDict({name: nn.Linear(4, 6) for name in MODALITIES})
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = [self.shared(torch.tanh(self.embed[name](batch[name]))) for name in MODALITIES if name in batch]
        return self.head(torch.tanh(torch.cat([*tokens, batch["text"]]))).pow(2).mean()

    def branches(self) -> dict[str, list[nn.Parameter]]:
        return {name: list(self.embed[name].parameters()) for name in MODALITIES}

    def trunk(self) -> list[nn.Parameter]:
        return list(self.shared.parameters())


def small_batch(present: set[str], rank: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {
        name: torch.randn(2, 6 if name == "text" else 4, generator=generator)
        for name in (*MODALITIES, "text")
        if name in present or name == "text"
    }


def present_at(pattern: str, step: int) -> list[set[str]]:
    """Of each rank."""
    return [steps[step % len(steps)] for steps in PATTERNS[pattern]]


def over_ranks(activity: dict[str, float]) -> dict[str, float]:
    """Maximum, as a runtime's `max_over_ranks`."""
    values = torch.tensor(list(activity.values()))
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return dict(zip(activity, values.tolist(), strict=True))


def union_gradients(plain: nn.Module, losses: list[torch.Tensor]) -> None:
    """Gradient of the mean of all ranks' losses, which `plain` has given; None where none of them reaches."""
    plain.zero_grad(set_to_none=True)
    torch.stack(losses).mean().backward()


def largest_error(model: nn.Module, plain: nn.Module, missing: float | None = None) -> float:
    """Largest difference of gradients, relative to the largest gradient; infinite where one is None and one is not.

    missing: the value that takes the place of a None in `plain`.
    """
    scale = max(p.grad.abs().max().item() for p in plain.parameters() if p.grad is not None)
    worst = 0.0
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        expected = reference.grad
        if expected is None and missing is not None:
            expected = torch.full_like(reference, missing)
        if (expected is None) != (parameter.grad is None):
            return float("inf")
        if expected is not None:
            worst = max(worst, (parameter.grad - expected).abs().max().item() / scale)
    return worst


@dataclass(frozen=True)
class Case:
    policy: str
    pattern: str
    wrapping: str

    @property
    def name(self) -> str:
        return f"{self.policy} | {self.pattern} | {self.wrapping}"


CASES = [Case(*names) for names in itertools.product(POLICIES, PATTERNS, WRAPPINGS)]


@contextmanager
def own_group() -> Iterator[dist.ProcessGroup]:
    """A group of its own: what an error leaves behind must not reach the next case."""
    group = dist.new_group(timeout=timedelta(seconds=20))
    yield group
    dist.destroy_process_group(group)


def run_case(case: Case, rank: int) -> dict[str, object]:
    """`error`: of the gradients, over all steps; or `raised`: the step, and what DDP said."""
    with own_group() as group:
        model, plain = Small(), Small()
        replica = DistributedDataParallel(
            model, process_group=group, gradient_as_bucket_view=True, **WRAPPINGS[case.wrapping]
        )
        policy = "zero" if case.policy == "outside" else case.policy
        inactive = Inactive(model.branches(), policy, trunk=model.trunk())
        if case.policy != "outside":
            inactive.watch(model)
        errors = []
        for step in range(NUM_STEPS):
            sets = present_at(case.pattern, step)
            model.zero_grad(set_to_none=True)
            inactive.see(sets[rank])
            message = ""
            try:
                loss = replica(small_batch(sets[rank], rank, step))
                if case.policy == "outside":
                    loss = loss + inactive.dummy(sets[rank])
                loss.backward()
            except RuntimeError as error:
                message = str(error).split(".")[0]
            if over_ranks({"raised": float(bool(message))})["raised"]:  # one rank alone may have, the other may not
                return {"raised": step, "message": message}
            inactive.drop(over_ranks)
            union_gradients(plain, [plain(small_batch(sets[r], r, step)) for r in (0, 1)])
            errors.append(case_error(case, model, plain, sets))
        return {"error": max(errors)}


def case_error(case: Case, model: Small, plain: Small, sets: list[set[str]]) -> float:
    """Against what the policy promises: absent everywhere is None under skip and find_unused, 0 under zero."""
    if case.policy == "tiny":
        add_tiny(plain, sets)
    return largest_error(model, plain, missing=0.0 if case.policy in ("zero", "outside") else None)


def add_tiny(plain: Small, sets: list[set[str]]) -> None:
    """1e-7 from each rank that lacks the parameter, averaged over ranks."""
    groups = [(parameters, [name in present for present in sets]) for name, parameters in plain.branches().items()]
    for parameters, held in (*groups, (plain.trunk(), [bool(present) for present in sets])):
        for parameter in parameters:
            dummy = torch.full_like(parameter, TINY * held.count(False) / len(held))
            parameter.grad = dummy if parameter.grad is None else parameter.grad + dummy


def train_together(rank: int, micro_steps: int) -> dict[str, float]:
    """60 AdamW steps with decay and clip under skip, dMRI nowhere: movement of dMRI, distance from one process."""
    torch.manual_seed(0)
    model, plain = Small(), Small()
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    inactive = Inactive(model.branches(), trunk=model.trunk())
    inactive.watch(model)
    start = [parameter.detach().clone() for parameter in model.branches()["dMRI"]]
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1) for network in (model, plain)]
    sets = [[T1, T1 | EPI, set()], [EPI, T1, T1]]
    for step in range(60):
        for micro in range(micro_steps):
            present, number = sets[rank][(step + micro) % 3], 10 * step + micro
            inactive.see(present)
            with replica.no_sync() if micro < micro_steps - 1 else nullcontext():
                (replica(small_batch(present, rank, number)) / micro_steps).backward()
        inactive.drop(over_ranks)
        union_gradients(
            plain,
            [
                plain(small_batch(sets[r][(step + micro) % 3], r, 10 * step + micro))
                for r in (0, 1)
                for micro in range(micro_steps)
            ],
        )
        for network, optimizer in zip((model, plain), optimizers, strict=True):
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return {
        "absent moved": max(
            (p.detach() - q).abs().max().item() for p, q in zip(model.branches()["dMRI"], start, strict=True)
        ),
        "absent steps": float(sum(p in optimizers[0].state for p in model.branches()["dMRI"])),
        "error": max((p.detach() - q.detach()).abs().max().item() for p, q in pairs),
        "present moved": (next(iter(model.branches()["T1"])).detach() - start[0]).abs().max().item(),
    }


LAYOUT = PatchLayout(shape=(1, 4, 4, 4), patch_size=(2, 2, 2), pool=(2, 2, 2))
LAYOUTS = {"T1": LAYOUT, "rsfMRI": PatchLayout(shape=(1, 4, 4, 4, 2), patch_size=(4, 4, 4, 1)), "dMRI": LAYOUT}
TOKENS = TokenIds(vocabulary_size=12, image={"T1": 9, "rsfMRI": 10, "dMRI": 11}, end=1)


def brain_model() -> VisionLanguageModel:
    torch.manual_seed(0)
    language = LanguageConfig(width=16, depth=1, num_heads=2)
    return VisionLanguageModel(
        VisionLanguageConfig(modalities=LAYOUTS, language=language, width=12, depth=2, num_heads=2), TOKENS
    )


def brain_batch(present: set[str], rank: int, step: int) -> ConversationBatch:
    """One row of each modality, filled up with text to three rows of six tokens."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    names = [name for name in MODALITIES if name in present]
    ids = torch.randint(2, 9, (3, 6), generator=generator)
    for row, name in enumerate(names):
        ids[row, : LAYOUTS[name].num_image_tokens] = TOKENS.image[name]
    return ConversationBatch(
        images={name: torch.randn(1, *LAYOUTS[name].shape, generator=generator) for name in names},
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.where(torch.arange(6) > 3, ids, -100),
        rows={**dict.fromkeys(names, 1), **({"text": 3 - len(names)} if len(names) < 3 else {})},
    )


def brain_loss(model: nn.Module, batch: ConversationBatch) -> torch.Tensor:
    return model(batch.images, batch.input_ids, batch.attention_mask, batch.labels, batch.rows).loss


def brain_under_ddp(rank: int) -> dict[str, float]:
    """Error of the real model's gradients under skip, by pattern."""
    model, plain = brain_model(), brain_model()
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    inactive = Inactive(model.branches(), trunk=model.trunk())
    inactive.watch(model)
    errors = {}
    for pattern in PATTERNS:
        errors[pattern] = 0.0
        for step in range(2):
            sets = present_at(pattern, step)
            model.zero_grad(set_to_none=True)
            inactive.see(sets[rank])
            brain_loss(replica, brain_batch(sets[rank], rank, step)).backward()
            inactive.drop(over_ranks)
            union_gradients(plain, [brain_loss(plain, brain_batch(sets[r], r, step)) for r in (0, 1)])
            errors[pattern] = max(errors[pattern], largest_error(model, plain))
    return errors


def brain_under_fsdp(rank: int, runs_absent: bool, patterns: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Errors of loss and gradients with every branch and block sharded by itself, by pattern."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, plain, model = init_device_mesh("cpu", (2,)), brain_model(), brain_model()
    tower = model.vision_tower
    inside = (*(tower.embedding(name) for name in MODALITIES), *tower.blocks, model.language_model, model.projector)
    for part in (*inside, model):
        fully_shard(part, mesh=mesh)
    model.runs_absent = runs_absent
    inactive = Inactive(model.branches(), trunk=model.trunk(), anchored=False)
    inactive.watch(model)
    errors = {}
    for pattern in patterns:
        errors[pattern] = {"loss": 0.0, "gradient": 0.0}
        for step in range(2):
            sets = present_at(pattern, step)
            model.zero_grad(set_to_none=True)
            inactive.see(sets[rank])
            batch = brain_batch(sets[rank], rank, step)
            loss = brain_loss(model, batch)
            loss.backward()
            inactive.drop(over_ranks)
            alone = brain_loss(plain, batch).item()
            union_gradients(plain, [brain_loss(plain, brain_batch(sets[r], r, step)) for r in (0, 1)])
            whole = copy.deepcopy(plain)
            for parameter, share in zip(whole.parameters(), model.parameters(), strict=True):
                parameter.grad = None if share.grad is None else share.grad.full_tensor()
            found = {"loss": abs(loss.item() - alone), "gradient": largest_error(whole, plain)}
            errors[pattern] = {name: max(error, found[name]) for name, error in errors[pattern].items()}
    return errors


ALIGNED = ("alternating", "text alone everywhere")


def run_all(runtime, folder: Path) -> int:
    """Worker of each rank; rank by rank the findings go to `{rank}.json`."""
    rank = runtime.rank
    found = {
        "matrix": {case.name: run_case(case, rank) for case in CASES},
        "training": {str(number): train_together(rank, number) for number in (1, 3)},
        "brain, ddp": brain_under_ddp(rank),
        "brain, fsdp": brain_under_fsdp(rank, True, tuple(PATTERNS)),
        "brain, fsdp, aligned": brain_under_fsdp(rank, False, ALIGNED),
        "brain, fsdp, mixed up": brain_under_fsdp(rank, False, ("one each",)),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    return 0
