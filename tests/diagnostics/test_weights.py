"""Defects planted in small networks, each found; healthy ones of ten kinds, none accused."""

import copy

import pytest
import torch
from torch import nn

from oct_foundation.diagnostics.checkpoint_tensors import batchnorms, kind_of
from oct_foundation.diagnostics.weights import CheckpointTensors, Moments, examine, moments_by_name


def film_net(width: int = 24, codes: int = 40) -> nn.Module:
    """As the autoencoder's: Linear, BatchNorm, ReLU, twice; a plain output."""
    return nn.Sequential(
        nn.Linear(codes, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, 8),
    )  # fmt: skip


def trained(model: nn.Module, shape=(40,), *, updates: int = 60, rate: float = 3e-3, scale: float = 1.0, **adam):
    """The model after AdamW on noise, what it began with, and its moments by name."""
    torch.manual_seed(1)
    initial = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, **adam)
    for _ in range(updates):
        kind = next(model.parameters()).dtype
        inputs = (scale * torch.randn(32, *shape)).to(kind)
        optimizer.zero_grad()
        output = model(inputs)
        (
            output.float() - inputs.float().flatten(1)[:, :1].reshape(-1, *(1,) * (output.ndim - 1))
        ).square().mean().backward()
        optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    return model, initial, moments_by_name(optimizer.state_dict(), names)


def checkpoint_of(model, initial, moments, **facts) -> CheckpointTensors:
    whole = {
        "tensors": model.state_dict(),
        "parameters": [name for name, _ in model.named_parameters()],
        "moments": moments,
        "initial": initial,
        "updates": 60,
        "learning_rate": 3e-3,
    }
    return CheckpointTensors(**{**whole, **facts})


def found_in(checkpoint: CheckpointTensors) -> dict[str, str]:
    return {finding.name: finding.severity for finding in examine(checkpoint).findings}


@pytest.fixture(scope="module")
def healthy():
    torch.manual_seed(0)
    return trained(film_net())


def planted(healthy, change, **facts) -> dict[str, str]:
    """Findings after `change` of the tensors."""
    model, initial, moments = healthy
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(tensors)
    return found_in(checkpoint_of(model, initial, moments, tensors=tensors, **facts))


class Embedded(nn.Module):
    """Tokens with a padding row, positions that start at 0, a transformer layer, an output tied to nothing."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(1, 6, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        tokens = (x.abs() * 5).long().clamp(max=29)
        return self.head(self.layer(self.embedding(tokens) + self.positions, src_mask=self.mask)).mean(1)


def zero_head() -> nn.Module:
    model = film_net()
    nn.init.zeros_(model[6].weight)
    nn.init.zeros_(model[6].bias)
    return model


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def layer_norms() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 8)
    )


class ZeroGainResidual(nn.Module):
    """A block whose last gain starts at 0, as residual networks have it: at first it passes its input on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(40, 24)
        self.block = nn.Sequential(
            nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.BatchNorm1d(24)
        )
        self.head = nn.Linear(24, 8)
        nn.init.zeros_(self.block[4].weight)

    def forward(self, x):
        stem = self.stem(x)
        return self.head(stem + self.block(stem))


class Branches(nn.Module):
    """Two of one width: the first ends with a normalisation, right before the second in the file."""

    def __init__(self):
        super().__init__()
        self.video = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.audio = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.cat([self.video(x), self.audio(9 * x)], dim=1))


HEALTHY = {
    "as the autoencoder": lambda: trained(film_net()),
    "untrained": lambda: (*trained(film_net(), updates=0),),
    "layer norms": lambda: trained(layer_norms()),
    "convolutions on images of -1 to 1": lambda: trained(convolutions(), (1, 12, 12)),
    "tokens, padding, a mask": lambda: trained(Embedded(), (6,)),
    "a head that starts at 0": lambda: trained(zero_head()),
    "gains that start at 0": lambda: trained(ZeroGainResidual()),
    "a wide network": lambda: trained(film_net(width=200)),
    "branches of one width": lambda: trained(Branches(), (4,)),
    "large steps": lambda: trained(film_net(), rate=3e-2),
    "weight decay": lambda: trained(film_net(), weight_decay=0.1, updates=120),
}


@pytest.mark.parametrize("alone", [False, True], ids=["with optimizer", "file alone"])
@pytest.mark.parametrize("kind", HEALTHY)
def test_no_healthy_checkpoint_is_accused(kind, alone):
    torch.manual_seed(0)
    model, initial, moments = HEALTHY[kind]()
    updates = 0 if kind == "untrained" else 60
    if alone:
        assert found_in(CheckpointTensors(tensors=model.state_dict())) == {}
    else:
        assert found_in(checkpoint_of(model, initial, moments, updates=updates)) == {}


@pytest.mark.parametrize(("value", "place"), [("nan", "3.weight"), ("inf", "1.running_var"), ("-inf", "6.bias")])
def test_nan_and_inf_are_found_wherever_they_are(healthy, value, place):
    def change(tensors):
        tensors[place].view(-1)[3] = float(value)

    assert planted(healthy, change)["weights_not_finite"] == "alarm"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_broken_optimizer_is_found(healthy, value):
    model, initial, moments = healthy
    square = moments["3.weight"].exp_avg_sq.clone()
    square[0, 0] = value
    broken = Moments(exp_avg=moments["3.weight"].exp_avg, exp_avg_sq=square, updates=60)
    found = found_in(checkpoint_of(model, initial, {**moments, "3.weight": broken}))
    assert found == {"optimizer_not_finite": "alarm"}


@pytest.mark.parametrize("place", ["0.weight", "3.weight", "4.weight", "6.weight"])
def test_a_layer_of_zeros_is_dead(healthy, place):
    found = planted(healthy, lambda tensors: tensors[place].zero_())
    assert found["dead_layer"] == "alarm"


def test_a_bias_far_below_zero_is_silent_behind_a_relu(healthy):
    assert planted(healthy, lambda tensors: tensors["6.bias"].fill_(-1e4))["dead_layer"] == "alarm"
    assert planted(healthy, lambda tensors: tensors["6.bias"].fill_(-3.0)) == {}
    assert planted(healthy, lambda tensors: tensors["3.bias"].fill_(-1e2)) == {}  # a BatchNorm takes it off again
    assert planted(healthy, lambda tensors: tensors["4.bias"].fill_(-30.0))["below_every_relu"] == "warning"


def test_constant_activations_show_in_the_running_variance(healthy):
    def change(tensors):
        tensors["4.running_var"].fill_(1e-12)
        tensors["1.num_batches_tracked"].fill_(500)
        tensors["4.num_batches_tracked"].fill_(500)

    assert planted(healthy, change) == {"constant_activations": "alarm"}


def test_a_hidden_running_variance_beyond_what_weights_can_make_has_exploded(healthy):
    assert planted(healthy, lambda tensors: tensors["4.running_var"].mul_(1e6)) == {"batchnorm_exploded": "alarm"}
    assert planted(healthy, lambda tensors: tensors["4.running_var"].neg_())["batchnorm_impossible"] == "alarm"


def test_a_measured_variance_judges_any_batchnorm(healthy):
    truth = healthy[0].state_dict()["1.running_var"]
    assert planted(healthy, lambda tensors: None, norm_input_variance={"1": truth}) == {}
    found = planted(healthy, lambda tensors: tensors["1.running_var"].mul_(100), norm_input_variance={"1": truth})
    assert found == {"batchnorm_exploded": "alarm"}


def test_raw_codes_are_the_inputs_scale_and_not_the_weights():
    """As in report 002: codes of 0 to 1023 as numbers give 274,432 or so, and nothing has exploded."""
    torch.manual_seed(0)
    model, initial, moments = trained(film_net(), scale=300.0)
    assert float(model.state_dict()["1.running_var"].median()) > 1e4
    known = examine(checkpoint_of(model, initial, moments, input_variance={"0.weight": 9e4})).findings
    assert [(finding.name, finding.severity) for finding in known] == [("unscaled_inputs", "info")]
    unknown = examine(checkpoint_of(model, initial, moments)).findings
    assert [(finding.name, finding.severity) for finding in unknown] == [("unexplained_scale", "warning")]
    claimed = found_in(checkpoint_of(model, initial, moments, input_variance={"0.weight": 0.25}))
    assert claimed == {"batchnorm_exploded": "alarm"}  # frames of 0 to 1 do not give this


def test_weights_that_grew_are_told_from_inputs_that_are_large(healthy):
    def change(tensors):
        tensors["0.weight"].mul_(100)
        tensors["1.running_var"].mul_(1e4)

    assert planted(healthy, change, input_variance={"0.weight": 1.0}) == {"grown_weights": "warning"}
    assert planted(healthy, lambda tensors: tensors["6.weight"].mul_(1e5)) == {"large_weights": "warning"}


def test_counters_that_differ_are_named(healthy):
    model, initial, moments = healthy
    tensors = {**model.state_dict(), "4.num_batches_tracked": torch.tensor(120)}
    (finding,) = examine(checkpoint_of(model, initial, moments, tensors=tensors)).findings
    assert (finding.name, finding.severity) == ("counters_differ", "info")
    assert "60: 1; 120: 4" in finding.evidence


@pytest.mark.parametrize("given", ["initial values", "moments and rate", "moments alone"])
def test_weights_frozen_by_bf16_are_found(given):
    torch.manual_seed(0)
    model, initial, moments = trained(film_net().bfloat16(), rate=1e-5)
    facts = {"initial": initial} if given == "initial values" else {"initial": {}}
    facts["learning_rate"] = 1e-5 if given == "moments and rate" else None
    found = found_in(checkpoint_of(model, moments=moments, **{"initial": {}, **facts}))
    expected = "lost_to_rounding" if given == "moments and rate" else "still_at_the_start"
    assert found[expected] == "alarm"


def test_bf16_with_steps_that_it_can_store_is_not_frozen():
    torch.manual_seed(0)
    model, initial, moments = trained(layer_norms().bfloat16(), rate=0.05, updates=40)
    assert "still_at_the_start" not in found_in(checkpoint_of(model, initial, moments, learning_rate=0.05))


def test_the_law_of_rounding_is_what_bf16_does():
    """lr x |step| below |w| x 2^-9 never moves; half the last bit is 2^-9 to 2^-8 of a weight, so it misses some."""
    torch.manual_seed(0)
    weight, step = torch.randn(20_000).bfloat16(), torch.randn(20_000)
    moments = {"w": Moments(exp_avg=step * (1 - 0.9**50), exp_avg_sq=torch.full((20_000,), 1 - 0.999**50), updates=50)}
    checkpoint = CheckpointTensors(tensors={"w": weight}, moments=moments, learning_rate=4e-3)
    (finding,) = examine(checkpoint).findings
    said = float(finding.evidence.partition("the update of ")[2].partition("%")[0]) / 100
    stays = (weight.float() - 4e-3 * step).bfloat16() == weight
    assert 0.6 * float(stays.double().mean()) < said < float(stays.double().mean()) + 0.005


def test_a_teacher_that_is_its_student_is_found(healthy):
    model, *_ = healthy
    own = model.state_dict()
    tensors = {f"encoder.{name}": tensor for name, tensor in own.items()}
    tensors |= {f"teacher.{name}": tensor.clone() for name, tensor in own.items()}
    pairs = (("encoder.", "teacher."),)
    assert found_in(CheckpointTensors(tensors=tensors, teachers=pairs, updates=60)) == {"teacher_is_student": "warning"}
    tensors["teacher.0.weight"][0, 0] += 1e-6
    assert found_in(CheckpointTensors(tensors=tensors, teachers=pairs, updates=60)) == {}


def test_an_absent_branch_that_moved_is_found_with_its_drift(healthy):
    model, initial, _ = healthy
    found = examine(checkpoint_of(model, model.state_dict(), {}, absent={"dMRI": ["3.weight"]})).findings
    assert found == ()
    tensors = {**model.state_dict(), "3.weight": initial["3.weight"] * 1.02}
    (finding,) = examine(checkpoint_of(model, initial, {}, tensors=tensors, absent={"dMRI": ["3.weight"]})).findings
    assert finding.name == "absent_branch_moved"
    assert "dMRI by 2.00%" in finding.evidence


def test_an_absent_branch_of_zeros_is_not_dead():
    tensors = {"a.weight": torch.zeros(4, 4), "b.weight": torch.randn(4, 4)}
    assert found_in(CheckpointTensors(tensors=tensors, absent={"dMRI": ["a.weight"]})) == {}
    assert "dead_layer" in found_in(CheckpointTensors(tensors=tensors))


def test_facts_of_a_tensor_are_those_of_its_finite_values():
    values = torch.tensor([[1.0, -4.0, 0.0], [float("nan"), float("inf"), 3.0]])
    (fact,) = examine(CheckpointTensors(tensors={"w.weight": values})).tensors
    assert (fact.nan, fact.inf, fact.zeros, fact.low, fact.high, fact.abs_max) == (1, 1, 1, -4.0, 3.0, 4.0)
    assert fact.mean == pytest.approx(0.0)
    assert fact.std == pytest.approx((26 / 4) ** 0.5)


def test_kinds_are_never_mixed(healthy):
    model, initial, moments = healthy
    examined = examine(checkpoint_of(model, initial, moments))
    assert {fact.name for fact in examined.of_kind("counter")} == {"1.num_batches_tracked", "4.num_batches_tracked"}
    assert {fact.name for fact in examined.of_kind("weight")} == {"0.weight", "3.weight", "6.weight"}
    largest = [fact.abs_max for fact in examined.of_kind("running")]
    assert largest == sorted(largest, reverse=True)
    assert kind_of("grid", torch.zeros(2, 2), ["w"]) == "buffer"
    assert [norm.matrix for norm in batchnorms(checkpoint_of(*healthy))] == ["0.weight", "3.weight"]


def test_moments_get_the_names_of_their_parameters(healthy):
    _, _, moments = healthy
    assert moments["0.weight"].exp_avg.shape == (24, 40)
    assert moments["0.weight"].updates == 60
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    assert moments_by_name(optimizer.state_dict()) == {}  # no step, no moments
    optimizer.param_groups[0]["params"][0].grad = torch.full((3,), float("nan"))
    optimizer.step()
    unnamed = CheckpointTensors(tensors={}, moments=moments_by_name(optimizer.state_dict()))
    (finding,) = examine(unnamed).findings
    assert "optimizer state 0" in finding.evidence
    with pytest.raises(ValueError, match="2 names"):
        moments_by_name({"param_groups": [{"params": [0]}], "state": {}}, ["a", "b"])
