import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_setup.arrays import write_prepared
from data_setup.datasets import PreparedVolumes
from data_setup.index import IndexRow
from data_setup.masking import MaskGenerator, MaskSettings
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig
from oct_foundation.optim.adamw import AdamW
from oct_foundation.optim.clipping import GradientGuard
from oct_foundation.optim.groups import parameter_groups
from oct_foundation.runtime.native import NativeRuntime
from pretraining.held_out import NUM_VIEWS, HeldOut
from pretraining.observe import VJEPAObserver, input_statistics, movements

NUM = 6


@pytest.fixture(scope="module")
def model() -> VJEPA3D:
    torch.manual_seed(0)
    found = VJEPA3D(VJEPA3DConfig(image_size=(8, 32, 32), patch_size=(4, 8, 16), preset="vit_tiny", loss="smooth_l1"))
    with torch.no_grad():
        for weight in found.target_encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # else student and teacher could be swapped unseen
    return found


@pytest.fixture(scope="module")
def held_out(model, tmp_path_factory) -> HeldOut:
    rng = np.random.default_rng(0)
    volumes = [rng.integers(0, 255, model.grid.image_size, dtype=np.uint8) for _ in range(NUM)]
    rows = [IndexRow(id=f"v{n}", status="accepted", vendor=f"maker {n % 2}", split="val") for n in range(NUM)]
    prepared = write_prepared(tmp_path_factory.mktemp("set"), rows, volumes)
    masks = MaskGenerator(model.grid, MaskSettings())
    return HeldOut(PreparedVolumes(prepared, "val"), masks, num_volumes=NUM, seed=3)


def observer(held_out, batch_size=2) -> VJEPAObserver:
    return VJEPAObserver(held_out, NativeRuntime("cpu"), batch_size=batch_size, precision="fp32")


@torch.no_grad()
def test_an_observation_is_what_the_networks_say_one_volume_at_a_time(model, held_out):
    found, _ = observer(held_out).observe(model)
    for number in range(NUM):
        volume, hidden = held_out.volumes([number]), held_out.hidden(number)
        context, target = (torch.from_numpy(np.flatnonzero(side))[None] for side in (~hidden, hidden))
        features = model.target_encoder(volume)[0]
        normed = F.layer_norm(features, features.shape[-1:])
        predictions = model.predictor(model.context_encoder(volume, context), context, target)[0]
        by_position = dict(zip(target[0].tolist(), predictions, strict=True))
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found.pooled[number], features.mean(dim=0), **close)
        torch.testing.assert_close(found.pooled_online[number], model.context_encoder(volume)[0].mean(dim=0), **close)
        tissue = torch.from_numpy(held_out.foreground(number))
        torch.testing.assert_close(found.pooled_foreground[number], features[tissue].mean(dim=0), **close)
        torch.testing.assert_close(found.losses[number], F.smooth_l1_loss(predictions, normed[target[0]]), **close)
        for place, position in enumerate(held_out.compared.tolist()):
            torch.testing.assert_close(found.targets[number, place], normed[position], **close)
            assert bool(found.hidden[number, place]) == bool(hidden[position])
            if hidden[position]:
                torch.testing.assert_close(found.predictions[number, place], by_position[position], **close)
    assert found.domains == tuple(f"maker {n % 2}" for n in range(NUM))
    assert found.views.shape == (NUM, NUM_VIEWS, model.embed_dim)


@pytest.mark.parametrize("batch_size", [4, 8])
def test_every_volume_counts_once_whatever_the_batch(model, held_out, batch_size):
    whole, _ = observer(held_out, batch_size=3).observe(model)
    found, _ = observer(held_out, batch_size=batch_size).observe(model)  # the last batch is filled up by repetition
    assert found.num_volumes == whole.num_volumes == NUM
    torch.testing.assert_close(found.pooled, whole.pooled)
    torch.testing.assert_close(found.views, whole.views)


def test_the_gradient_of_a_maker_is_that_of_its_volumes(model, held_out):
    norms = observer(held_out, batch_size=3).gradient_norms(model)
    assert sorted(norms) == ["maker 0", "maker 1"]
    look = held_out.look([1, 3, 5])
    loss, _, _ = model(look.volume, look.volume, context_idx=look.context_idx, target_idx=look.target_idx)
    loss.backward()
    flat = torch.cat([weight.grad.flatten() for weight in model.trainable_parameters()])
    assert norms["maker 1"] == pytest.approx(flat.double().norm().item(), rel=1e-4)
    model.zero_grad(set_to_none=True)


def optimizer_of(model: VJEPA3D) -> AdamW:
    return AdamW(parameter_groups(model), guard=GradientGuard(1.0, torch.device("cpu")))


def test_the_size_of_the_last_update_is_read_off_the_moments(held_out):
    torch.manual_seed(1)
    model = VJEPA3D(VJEPA3DConfig(image_size=(8, 32, 32), patch_size=(4, 8, 16), preset="vit_tiny"))
    optimizer = optimizer_of(model)
    for _ in range(3):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        look = held_out.look([0, 1])
        loss, _, _ = model(look.volume, look.volume, context_idx=look.context_idx, target_idx=look.target_idx)
        loss.backward()
        optimizer.set_scalars(1e-3, 0.04)
        optimizer.step()
        optimizer.zero_grad()
    moved = movements(model, optimizer)
    for name, network in (("encoder", "context_encoder."), ("predictor", "predictor.")):
        theirs = {key: weight.detach() for key, weight in model.named_parameters() if key.startswith(network)}
        change = torch.cat([(weight - before[key]).flatten() for key, weight in theirs.items()]).norm()
        size = torch.cat([weight.flatten() for weight in theirs.values()]).norm()
        assert moved[f"update_ratio/{name}"].item() == pytest.approx((change / size).item(), rel=1e-3)


def test_nothing_has_moved_before_the_first_step_and_after_a_skipped_one(held_out):
    torch.manual_seed(1)
    model = VJEPA3D(VJEPA3DConfig(image_size=(8, 32, 32), patch_size=(4, 8, 16), preset="vit_tiny"))
    optimizer = optimizer_of(model)
    assert movements(model, optimizer)["update_ratio/encoder"].item() == 0
    assert movements(model, optimizer)["ema_gap/blocks"].item() == 0
    for weight in model.trainable_parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.set_scalars(1e-3, 0.04)
    optimizer.step()
    assert movements(model, optimizer)["update_ratio/encoder"].item() == 0


def test_the_gap_to_the_teacher_is_relative_to_the_student(model):
    found = movements(model, optimizer_of(model))["ema_gap/blocks"].item()
    pairs = zip(model.context_encoder.blocks.parameters(), model.target_encoder.blocks.parameters(), strict=True)
    student, gap = zip(
        *((a.detach().flatten().double(), (a - b).detach().flatten().double()) for a, b in pairs), strict=True
    )
    assert found == pytest.approx((torch.cat(gap).norm() / torch.cat(student).norm()).item(), rel=1e-5)


def test_input_statistics_notice_equal_volumes():
    rng = np.random.default_rng(0)
    views = torch.from_numpy(rng.integers(0, 255, (4, 1, 2, 8, 8), dtype=np.uint8))
    found = input_statistics(views, NativeRuntime("cpu"))
    assert found["input_distinct"] == 1
    assert found["input_mean"] == pytest.approx(views.float().mean().item() / 255, rel=1e-5)
    views[2] = views[0]
    assert input_statistics(views, NativeRuntime("cpu"))["input_distinct"] == 0.5
    assert "input_distinct" not in input_statistics(views[:1], NativeRuntime("cpu"))
