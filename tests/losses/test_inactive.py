"""The policies for absent branches in one process; what ranks do is in tests/integration/test_inactive_ranks.py."""

import math
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

from oct_foundation.losses.inactive import (
    TINY,
    Inactive,
    check_disjoint,
    drift_warning,
    predicted_drift,
    unowned,
)

MODALITIES = ("T1", "rsfMRI", "dMRI")


class Small(nn.Module):
    """Three branches, what they share, and a head that text alone reaches; names that would fool substrings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.ModuleDict({name: nn.Linear(4, 6) for name in MODALITIES})
        self.after_T1_T1w_merge = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = [self.after_T1_T1w_merge(self.embed[name](batch[name])) for name in MODALITIES if name in batch]
        text = self.head(batch["text"]) if "text" in batch else torch.zeros(1, 1)
        return sum((self.head(torch.tanh(part)).pow(2).mean() for part in hidden), text.pow(2).mean())

    def branches(self) -> dict[str, list[nn.Parameter]]:
        return {name: list(self.embed[name].parameters()) for name in MODALITIES}

    def trunk(self) -> list[nn.Parameter]:
        return list(self.after_T1_T1w_merge.parameters())


def batch_of(*names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 6 if name == "text" else 4, generator=generator) for name in names}


def watched(policy, **more) -> tuple[Small, Inactive]:
    model = Small()
    inactive = Inactive(model.branches(), policy, trunk=model.trunk(), **more)
    inactive.watch(model)
    return model, inactive


def train(model, inactive, optimizer, steps, max_norm=0.5):
    """steps: for each optimizer step the modalities of its micro-batches."""
    for number, micro_batches in enumerate(steps):
        for names in micro_batches:
            inactive.see(set(names) & set(MODALITIES))
            model(batch_of(*names, seed=number)).backward()
        inactive.drop()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()


def copies(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def movement(before, parameters) -> float:
    return max((new.detach() - old).abs().max().item() for old, new in zip(before, parameters, strict=True))


@pytest.mark.parametrize("anchored", [True, False])
def test_under_skip_an_absent_branch_with_a_history_does_not_move_nor_count_steps(anchored):
    model, inactive = watched("skip", anchored=anchored)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, inactive, optimizer, [[MODALITIES]] * 20)
    absent = [p for name in ("rsfMRI", "dMRI") for p in model.branches()[name]]
    weights, moments = copies(absent), copies([optimizer.state[p]["exp_avg"] for p in absent])
    present = copies(model.branches()["T1"])
    train(model, inactive, optimizer, [[("T1",)]] * 60)
    assert movement(weights, absent) == 0.0
    assert movement(moments, [optimizer.state[p]["exp_avg"] for p in absent]) == 0.0
    assert {optimizer.state[p]["step"].item() for p in absent} == {20}
    assert {optimizer.state[p]["step"].item() for p in model.branches()["T1"]} == {80}
    assert movement(present, model.branches()["T1"]) > 1e-2


def test_zero_lets_momentum_and_decay_move_what_skip_keeps():
    model, inactive = watched("zero")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, inactive, optimizer, [[MODALITIES]] * 20)
    before = copies(model.branches()["dMRI"])
    train(model, inactive, optimizer, [[("T1",)]] * 60)
    assert movement(before, model.branches()["dMRI"]) > 1e-2


def test_an_absent_branch_restarts_as_if_the_absence_had_not_been():
    """Weights, moments and count stay, so the next real step is the one it would have made: not 2.5 lr."""
    runs = []
    for absent_steps in (0, 50):
        model, inactive = watched("skip")
        optimizer = torch.optim.AdamW(model.branches()["dMRI"], lr=1e-2, weight_decay=0.1)  # the rest stays fixed
        train(model, inactive, optimizer, [[("dMRI",)]] * 5 + [[("T1",)]] * absent_steps, max_norm=1e9)
        inactive.see({"dMRI"})
        model(batch_of("dMRI", seed=99)).backward()
        inactive.drop()
        optimizer.step()
        runs.append(copies(model.branches()["dMRI"]))
    assert movement(*runs) == 0.0


def test_micro_batches_of_other_modalities_count_together():
    model, inactive = watched("skip")
    for names in (("T1",), ("dMRI",)):
        inactive.see(names)
        model(batch_of(*names)).backward()
    assert inactive.drop() == {"rsfMRI"}
    assert all(parameter.grad.any() for name in ("T1", "dMRI") for parameter in model.branches()[name])
    assert all(parameter.grad is None for parameter in model.branches()["rsfMRI"])


def test_a_branch_that_another_rank_holds_keeps_the_gradient_that_ddp_has_put_there():
    model, inactive = watched("skip")
    inactive.see({"T1"})
    model(batch_of("T1")).backward()
    for parameter in (*model.branches()["rsfMRI"], *model.branches()["dMRI"]):
        parameter.grad = torch.ones_like(parameter)
    asked = []
    assert inactive.drop(lambda activity: asked.append(dict(activity)) or {**activity, "dMRI": 1.0}) == {"rsfMRI"}
    assert asked == [{"T1": 1.0, "rsfMRI": 0.0, "dMRI": 0.0}]
    assert all(parameter.grad is not None for parameter in model.branches()["dMRI"])
    assert all(parameter.grad is None for parameter in model.branches()["rsfMRI"])


def test_text_alone_leaves_the_trunk_where_it_is():
    model, inactive = watched("skip")
    absent = [*model.trunk(), *(p for branch in model.branches().values() for p in branch)]
    ready: list[int] = []
    nodes = [parameter.expand_as(parameter).grad_fn.next_functions[0][0] for parameter in absent]  # as DDP finds them
    for number, node in enumerate(nodes):
        node.register_hook(lambda *_, number=number: ready.append(number))
    inactive.see(())
    model(batch_of("text")).backward()
    assert sorted(ready) == list(range(len(absent))), "DDP waits for each of them once"
    assert all(parameter.grad is None for parameter in absent), "and a gradient of zeros would cost memory and time"
    assert inactive.drop() == set(MODALITIES)
    assert all(parameter.grad is not None for parameter in model.head.parameters())


@pytest.mark.parametrize(("policy", "gradient"), [("zero", 0.0), ("tiny", TINY)])
def test_the_dummy_has_the_promised_gradient_in_every_element_of_absent_branches(policy, gradient):
    model, inactive = watched(policy)
    plain = Small()
    inactive.see({"T1"})
    for network in (model, plain):
        network(batch_of("T1")).backward()
    for name, parameters in model.branches().items():
        for parameter, reference in zip(parameters, plain.branches()[name], strict=True):
            expected = reference.grad if name == "T1" else torch.full_like(parameter, gradient)
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=0)


def test_the_norm_of_the_original_dummy_is_1e_7_times_the_root_of_its_size():
    branches = {"T1": [nn.Parameter(torch.zeros(1))], "dMRI": [nn.Parameter(torch.zeros(768, 10, 10, 10))]}
    Inactive(branches, "tiny").dummy({"T1"}).backward()
    norm = branches["dMRI"][0].grad.norm().item()
    assert norm == pytest.approx(8.8e-5, rel=0.01), "not the 4.2e-9 of the reports"


def test_two_of_three_have_a_dummy_too():
    model, inactive = watched("zero")
    inactive.see({"T1", "rsfMRI"})
    model(batch_of("T1", "rsfMRI")).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_dummy_is_a_float32_scalar_and_zero_has_a_gradient_path():
    inactive = Inactive(
        {"T1": [nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], "dMRI": [nn.Parameter(torch.ones(2))]}
    )
    for present in ((), ("T1",), ("T1", "dMRI")):
        value = inactive.dummy(present)
        assert (value.dtype, value.shape, value.item()) == (torch.float32, torch.Size([]), 0.0)
        assert value.requires_grad == (present != ("T1", "dMRI"))


def test_infinity_in_an_absent_branch_is_not_hidden():
    model, inactive = watched("skip")
    model.branches()["dMRI"][0].data[0, 0] = math.inf
    inactive.see({"T1"})
    assert model(batch_of("T1")).isnan()


def test_evaluation_adds_nothing():
    model, inactive = watched("tiny")
    with torch.no_grad():
        assert model(batch_of("T1")).item() == Small()(batch_of("T1")).item()
    assert inactive.dummy_loss is None


class Output(NamedTuple):
    loss: torch.Tensor
    note: str


@pytest.mark.parametrize(
    "wrap", [lambda loss: loss, lambda loss: Output(loss, "kept"), lambda loss: OrderedDict(loss=loss)]
)
def test_a_loss_is_found_bare_in_a_tuple_and_in_a_mapping(wrap):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.absent = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

        def forward(self):
            return wrap(self.used.sum())

    model = Wrapped()
    inactive = Inactive({"T1": [model.used], "dMRI": [model.absent]}, "tiny")
    inactive.watch(model)
    inactive.see({"T1"})
    output = model()
    loss = output if isinstance(output, torch.Tensor) else output["loss"] if isinstance(output, dict) else output.loss
    assert loss.item() == pytest.approx(2 + 3 * TINY)
    assert inactive.dummy_loss.item() == pytest.approx(3 * TINY)


def test_overlapping_empty_and_repeated_lists_are_refused():
    first, second = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    check_disjoint({"T1": [first], "dMRI": [second]})
    with pytest.raises(ValueError, match=r"shape \[2, 3\] is in the branches T1 and dMRI"):
        Inactive({"T1": [first], "dMRI": [second, first]})
    with pytest.raises(ValueError, match="branches T1 and trunk"):
        Inactive({"T1": [first]}, trunk=[first])
    with pytest.raises(ValueError, match="branch dMRI has no parameters"):
        Inactive({"T1": [first], "dMRI": []})
    with pytest.raises(ValueError, match="T1 lists a parameter twice"):
        Inactive({"T1": [first, first]})


def test_unknown_policies_and_modalities_are_refused():
    branches = {"T1": [nn.Parameter(torch.ones(2))]}
    with pytest.raises(ValueError, match="'none'; allowed: skip, zero, tiny, find_unused"):
        Inactive(branches, "none")
    with pytest.raises(ValueError, match="no branch to watch"):
        Inactive({})
    with pytest.raises(ValueError, match="holds dMRI, the model has branches for T1 only"):
        Inactive(branches).see({"dMRI", "T1"})


def test_ownership_is_by_object_so_a_shared_layer_with_T1_in_its_name_is_shared():
    model = Small()
    batches = {name: batch_of(name) for name in (*MODALITIES, "text")}
    assert unowned(model, model, batches, model.branches()) == {}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_that_no_list_holds_is_named():
    model = Small()
    branches = model.branches()
    branches["dMRI"] = branches["dMRI"][:1]
    batches = {name: batch_of(name) for name in MODALITIES}
    assert unowned(model, model, batches, branches) == {"dMRI": ["embed.dMRI.bias"]}


def test_a_branch_that_another_modality_reaches_is_refused():
    model = Small()
    branches = {**model.branches(), "T1": [*model.branches()["T1"], *model.trunk()]}
    with pytest.raises(ValueError, match=r"T1 lists after_T1_T1w_merge\.weight, .*which a batch of rsfMRI reaches"):
        unowned(model, model, {name: batch_of(name) for name in MODALITIES}, branches)


@pytest.mark.parametrize(("policy", "decay"), [("tiny", 0.0), ("tiny", 0.1), ("zero", 0.1), ("skip", 0.1)])
def test_the_predicted_drift_is_the_measured_one(policy, decay):
    rate, steps = 1e-3, 200
    torch.manual_seed(0)
    branches = {"T1": [nn.Parameter(torch.zeros(1))], "dMRI": [nn.Parameter(0.02 * torch.randn(20_000))]}
    inactive = Inactive(branches, policy, anchored=False)
    (absent,) = branches["dMRI"]
    before, optimizer = absent.detach().clone(), torch.optim.AdamW([absent], lr=rate, weight_decay=decay)
    for _ in range(steps):
        inactive.see({"T1"})
        if policy != "skip":
            inactive.dummy({"T1"}).backward()
        inactive.drop()
        optimizer.step()
        optimizer.zero_grad()
    measured = ((absent.detach() - before).norm() / before.norm()).item()
    predicted = predicted_drift(policy, learning_rate=rate, weight_decay=decay, num_steps=steps)
    assert measured == pytest.approx(predicted, rel=0.01, abs=1e-9)


def test_the_warning_names_the_step_and_the_movement_of_the_document():
    assert "moves 9.09e-05 a step" in drift_warning("tiny", learning_rate=1e-4)
    assert "4.55 times its norm" in drift_warning("tiny", learning_rate=1e-4)
    assert "0.1 %" in drift_warning("zero", learning_rate=1e-4, weight_decay=0.01)
    assert drift_warning("skip", learning_rate=1e-4, weight_decay=0.01) == ""
