from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data_setup.arrays import write_prepared
from data_setup.datasets import PreparedVolumes
from data_setup.index import IndexRow
from data_setup.masking import MaskGenerator, MaskSettings
from oct_foundation.batch import JEPABatch
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups
from oct_foundation.runtime.native import NativeRuntime
from oct_foundation.runtime.select import launch
from oct_foundation.runtime.sharded import units
from oct_foundation.shares import is_split, share
from pretraining.held_out import HeldOut
from pretraining.observe import VJEPAObserver, movements
from pretraining.state import TrainState
from pretraining.step import train_step
from pretraining.tasks.task import Objective
from tests.integration.conftest import assert_states_equal

MODEL = VJEPA3DConfig(image_size=(8, 32, 32), patch_size=(4, 8, 16), preset="vit_tiny")
CLIP_NORM = 0.5
STEPS, MICRO_STEPS, POISONED = 4, 2, 2  # of steps 0 to 3, step 2 has a NaN in rank 1's part
SCALARS = {"learning_rate": 1e-3, "weight_decay": 0.04, "ema_momentum": 0.9}
# Sums over two ranks are rounded otherwise than sums over one batch; in fp32, over 4 steps, that is below 1e-6 here.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


class Latent(Objective):
    """V-JEPA's objective without its configuration, whose imports (MONAI) cost each process 10 s."""

    def loss(self, model, batch):
        views = batch.context_view, batch.target_view
        return model(*views, context_idx=batch.context_idx, target_idx=batch.target_idx)[0], {}

    def after_update(self, model, scalars):
        model.update_teacher(scalars["ema_momentum"])


class Scaled(nn.Module):
    """A model that owns a parameter itself, of fewer rows than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        return self.scale * self.child(x)


def batches_of_step(step: int) -> Iterator[JEPABatch]:
    """Micro-batches of four volumes, of which each of two ranks takes two."""
    generator = torch.Generator().manual_seed(step)
    for number in range(MICRO_STEPS):
        view = torch.randn(4, 1, *MODEL.image_size, generator=generator)
        if step == POISONED and number == 0:
            view[3] = torch.nan
        order = torch.stack([torch.randperm(MODEL.grid.num_patches, generator=generator) for _ in range(4)])
        yield JEPABatch(context_view=view, target_view=view.flip(-1), context_idx=order[:, :6], target_idx=order[:, 6:])


def part_of(batch: JEPABatch, runtime) -> JEPABatch:
    size = batch.num_samples // runtime.world_size
    mine = slice(runtime.rank * size, (runtime.rank + 1) * size)
    return JEPABatch(**{name: tensor[mine] for name, tensor in batch.tensors().items()})


def build_state(runtime, start: int) -> TrainState:
    """As `pretraining.assemble` does it, from weights that are others for every `start`.

    Two ranks compute every second block again in the backward, one process none: the gradient is the same.
    """
    torch.manual_seed(start)
    model = VJEPA3D(MODEL)
    model.recompute("alternate" if runtime.world_size > 1 else "none")
    model = runtime.place(model)
    optimizer = AdamW(parameter_groups(model), guard=GradientGuard(CLIP_NORM, runtime.device))
    return TrainState(model=model, replica=runtime.replicate(model, optimizer), optimizer=optimizer)


def take_step(state, runtime, step: int) -> dict[str, float]:
    parts = [part_of(batch, runtime) for batch in batches_of_step(step)]
    metrics = train_step(Latent(), state.model, state.replica, state.optimizer, runtime, parts, SCALARS, "fp32")
    state.step += 1
    found = runtime.fetch(metrics | {"finite": state.optimizer.guard.finite})
    return found | runtime.mean_over_ranks({"loss": found["loss"]})


def held_out_volumes(folder: Path) -> HeldOut:
    rng = np.random.default_rng(0)
    volumes = [rng.integers(0, 255, MODEL.image_size, dtype=np.uint8) for _ in range(4)]
    rows = [IndexRow(id=f"v{n}", status="accepted", vendor=f"maker {n % 2}", split="val") for n in range(4)]
    prepared = write_prepared(folder, rows, volumes)
    return HeldOut(PreparedVolumes(prepared, "val"), MaskGenerator(MODEL.grid, MaskSettings()), num_volumes=4, seed=0)


def a_run(runtime, folder: Path) -> dict:
    """What both sides do: a child is called before its model, steps, readings, the state at the end."""
    state = build_state(runtime, start=runtime.rank)  # the ranks' weights differ, and rank 0's must count
    with torch.no_grad():
        features = state.model.target_encoder(next(batches_of_step(0)).target_view)
    steps = [take_step(state, runtime, step) for step in range(STEPS)]
    observer = VJEPAObserver(held_out_volumes(folder / f"set-{runtime.rank}"), runtime, batch_size=2, precision="fp32")
    observation, _ = observer.observe(state.model)
    return {
        "state": state,
        "features": features,
        "steps": steps,
        "moved": runtime.fetch(movements(state.model, state.optimizer)),
        "gradients": observer.gradient_norms(state.model),
        "left_gradients": sum(parameter.grad is not None for parameter in state.model.parameters()),
        "pooled": observation.pooled,
        "whole": runtime.whole(state.capture(runtime)),
    }


def in_two_shares(runtime, folder: Path) -> int:
    """Worker of each of two processes; leaves what it saw in `folder`."""
    seen = a_run(runtime, folder)
    state = seen.pop("state")
    held = [*state.model.parameters(), *(m for s in state.optimizer.state.values() for m in s.values() if m.ndim)]
    seen["share_of_bytes"] = sum(share(t).nbytes for t in held) / sum(t.numel() * t.element_size() for t in held)
    seen["all_split"] = all(is_split(tensor) for tensor in held)
    with runtime.accumulation(state.replica):
        Latent().loss(state.replica, next(batches_of_step(0)))[0].backward()
    seen["exchanged_early"] = sum(parameter.grad is not None for parameter in state.model.parameters())
    Latent().loss(state.replica, next(batches_of_step(0)))[0].backward()
    seen["exchanged_last"] = sum(parameter.grad is not None for parameter in state.model.parameters())
    state.optimizer.zero_grad(set_to_none=True)

    state.restore(torch.load(folder / "unsharded.pt"), runtime)
    seen["restored"] = runtime.whole(state.capture(runtime))
    take_step(state, runtime, STEPS)
    seen["gone_on"] = runtime.whole(state.capture(runtime))

    torch.manual_seed(runtime.rank)
    model = runtime.place(Scaled())
    child_first = model.child(torch.ones(1, 3))
    model(torch.full((1, 3), float(runtime.rank))).sum().backward()
    grads = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    seen["scaled"] = {"child_first": child_first.detach(), "grads": grads, "weights": runtime.whole(model.state_dict())}
    torch.save(seen, folder / f"{runtime.rank}.pt")
    return 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`one`: this process on whole batches; `ranks`: what two processes with shares have seen."""
    folder = tmp_path_factory.mktemp("shares")
    one = a_run(NativeRuntime("cpu"), folder / "one")
    torch.save(one["whole"], folder / "unsharded.pt")
    assert launch("cpu", in_two_shares, folder, num_processes=2, sharding="full") == 0
    return SimpleNamespace(one=one, ranks=[torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)])


def test_two_ranks_with_shares_learn_what_one_process_learns_from_the_union_of_their_batches(runs):
    for name in ("model", "optimizer", "skipped"):
        assert_states_equal(runs.ranks[0]["whole"][name], runs.one["whole"][name], **CLOSE, where=name)
    for rank in runs.ranks:
        for step, (found, expected) in enumerate(zip(rank["steps"], runs.one["steps"], strict=True)):
            assert found == pytest.approx(expected, rel=1e-5, nan_ok=True), f"step {step}"
    norms = [step["grad_norm"] for step in runs.one["steps"]]
    assert norms[0] > CLIP_NORM, "the clip has been at work"


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(runs):
    for rank in runs.ranks:
        assert [step["finite"] for step in rank["steps"]] == [1.0, 1.0, 0.0, 1.0]
        assert rank["steps"][-1]["skipped_updates"] == 1.0
    assert runs.ranks[0]["whole"]["optimizer"]["state"][0]["step"] == STEPS - 1


def test_a_rank_holds_its_half_of_weights_and_moments(runs):
    for rank in runs.ranks:
        assert rank["all_split"]
        assert rank["share_of_bytes"] == pytest.approx(0.5, abs=0.002)


def test_rank_0s_weights_count_and_children_can_be_called_before_their_model(runs):
    for rank in runs.ranks:
        torch.testing.assert_close(rank["features"], runs.one["features"])


def test_a_model_with_a_parameter_of_its_own_is_split_too_and_its_children_can_be_called_first(runs):
    torch.manual_seed(0)
    alone = Scaled()
    expected_first = alone.child(torch.ones(1, 3)).detach()
    sum(alone(torch.full((1, 3), float(rank))).sum() / 2 for rank in (0, 1)).backward()
    for rank in runs.ranks:
        torch.testing.assert_close(rank["scaled"]["child_first"], expected_first)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(rank["scaled"]["grads"][name], parameter.grad)
    assert_states_equal(runs.ranks[0]["scaled"]["weights"], dict(alone.state_dict()))


def test_gradients_travel_in_the_last_micro_step_only(runs):
    for rank in runs.ranks:
        assert rank["exchanged_early"] == 0
        assert rank["exchanged_last"] == len(runs.one["state"].model.trainable_parameters())


def test_readings_of_shares_are_readings_of_the_whole(runs):
    for rank in runs.ranks:
        assert rank["moved"] == pytest.approx(runs.one["moved"], rel=1e-4)
        assert rank["gradients"] == pytest.approx(runs.one["gradients"], rel=1e-4)
        assert rank["left_gradients"] == 0
        torch.testing.assert_close(rank["pooled"], runs.one["pooled"], rtol=1e-4, atol=1e-5)
    assert len(runs.one["moved"]) > 4
    assert set(runs.one["gradients"]) == {"maker 0", "maker 1"}


def test_only_rank_0_keeps_the_whole_state(runs):
    weights = runs.ranks[0]["whole"]["model"]
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in weights.values())
    assert set(runs.ranks[1]["whole"]["model"].values()) == {None}
    assert runs.ranks[1]["whole"]["step"] == STEPS


def test_a_whole_state_is_taken_up_by_shares_bit_for_bit_and_goes_on_alike(runs):
    for name in ("model", "optimizer", "skipped"):
        assert_states_equal(runs.ranks[0]["restored"][name], runs.one["whole"][name], where=name)
    runtime = NativeRuntime("cpu")
    state = build_state(runtime, start=1)
    state.restore(runs.ranks[0]["whole"], runtime)
    for name in ("model", "optimizer", "skipped"):
        assert_states_equal(state.capture(runtime)[name], runs.ranks[0]["whole"][name], where=name)
    take_step(state, runtime, STEPS)
    gone_on = state.capture(runtime)
    for name in ("model", "optimizer"):
        assert_states_equal(runs.ranks[0]["gone_on"][name], gone_on[name], **CLOSE, where=name)


def names_of_units(model: nn.Module) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(unit)] for unit in units(model)]


def test_units_are_blocks_then_children_then_the_model_where_something_is_left():
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
    model.heads = nn.ModuleList([nn.Linear(2, 2)])  # a container is never called itself
    model.activation = nn.GELU()
    found = names_of_units(model)
    assert sorted(found) == ["encoder", "encoder.blocks.0", "encoder.blocks.1", "heads.0"]
    assert found.index("encoder") > max(found.index("encoder.blocks.0"), found.index("encoder.blocks.1"))
    model.scale = nn.Parameter(torch.ones(1))
    assert names_of_units(model) == [*found, ""]


def kind_of_runtime(runtime, folder: Path) -> int:
    (folder / "kind").write_text(type(runtime).__name__)
    return 0


def test_one_process_has_nothing_to_shard_over_and_says_so(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert launch("cpu", kind_of_runtime, tmp_path, sharding="full") == 0
    assert (tmp_path / "kind").read_text() == "NativeRuntime"
    assert "nothing to shard over" in caplog.text
