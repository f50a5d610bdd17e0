"""Every value against a slow loop over its formula, dead and live states built by hand, and laws of the measures."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oct_foundation.diagnostics.collapse import RATIO_LIMIT, domain_slug, measure
from oct_foundation.diagnostics.observation import Observation
from oct_foundation.diagnostics.rank import lidar, rankme

M, P, E, Q = 12, 6, 8, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit_rms(features):
    return F.layer_norm(features, features.shape[-1:])


def observe(targets, predictions, scale=1.0, domains=("Zeiss", "Topcon & Co."), seed=0):
    """An observation whose pooled features are means of the targets, `scale` times as large."""
    m, p, e = targets.shape
    hidden = normal(m, p, seed=seed + 1) > -0.5
    foreground = normal(m, p, seed=seed + 2) > -0.2
    foreground[0] = False
    foreground[:, 0] = torch.arange(m) == 4  # in this position no other volume has any
    hidden[4 % m, 0] = True
    pooled = targets.mean(1) * scale
    return Observation(
        pooled=pooled,
        pooled_online=pooled * 1.5,
        pooled_foreground=pooled + 0.1 * scale * normal(m, e, seed=seed + 3),
        targets=targets,
        predictions=torch.where(hidden[..., None], predictions, math.nan),
        hidden=hidden,
        foreground=foreground,
        losses=normal(m, seed=seed + 4).abs(),
        views=pooled[:, None] + 0.1 * scale * normal(m, Q, e, seed=seed + 5),
        domains=tuple(domains[index % len(domains)] for index in range(m)),
    )


def alive(error=0.3):
    """Volumes differ in each position, and the predictor knows most of it."""
    targets = unit_rms(normal(M, 1, E, seed=10) + normal(1, P, E, seed=11) + 0.5 * normal(M, P, E, seed=12))
    return observe(targets, targets + error * normal(M, P, E, seed=13))


def dead(noise=0.02, error=0.03):
    """All features are one vector and a little noise, which the predictor cannot know."""
    targets = unit_rms(normal(1, 1, E, seed=10) + noise * normal(M, P, E, seed=12))
    return observe(targets, targets + error * normal(M, P, E, seed=13), scale=0.2)


def take(observation, volumes):
    """The observation of these volumes, which all have views."""
    parts = {f.name: getattr(observation, f.name) for f in fields(observation) if f.name != "domains"}
    domains = tuple(observation.domains[index] for index in volumes)
    return Observation(**{name: tensor[volumes] for name, tensor in parts.items()}, domains=domains)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_loops(observation, counted, loss):
    """The formulas of the prediction, one token at a time, over the hidden tokens that `counted` holds."""
    u, z = observation.targets.double().numpy(), observation.predictions.double().numpy()
    hidden = (observation.hidden & counted).numpy()
    rows = []
    for m in range(len(u)):
        for n in range(u.shape[1]):
            others = [k for k in range(len(u)) if k != m and counted[k, n]]
            if hidden[m, n] and others:
                rows.append((z[m, n], u[m, n], np.mean([u[k, n] for k in others], axis=0), m))
    z, t, mu = (np.stack([row[index] for row in rows]) for index in range(3))
    everywhere = np.stack([np.mean([u[k] for k in range(len(u)) if k != m], axis=(0, 1)) for *_, m in rows])
    return {
        "loss": loss(z, t),
        "loss_pos": loss(mu, t),
        "pos_ratio": loss(z, t) / loss(mu, t),
        "ev_pos": 1 - ((z - t) ** 2).sum() / ((mu - t) ** 2).sum(),
        "centred_cos": np.mean([cosine(a - c, b - c) for a, b, c, _ in rows]),
        "loss_zero": loss(np.zeros_like(t), t),
        "zero_ratio": loss(z, t) / loss(np.zeros_like(t), t),
        "loss_global": loss(everywhere, t),
    }


def pair_cosines(vectors):
    return [cosine(a, b) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]


LOSSES = {
    "mse": (F.mse_loss, lambda z, t: float(((z - t) ** 2).mean())),
    "l1": (F.l1_loss, lambda z, t: float(np.abs(z - t).mean())),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("state", [alive, dead])
def test_prediction_and_its_baselines_equal_loops_over_their_formulas(kind, state):
    loss, by_numpy = LOSSES[kind]
    observation = state()
    found = measure(observation, loss)
    expected = by_loops(observation, torch.ones_like(observation.hidden), by_numpy)
    expected["loss"] = observation.losses.double().mean().item()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", LOSSES)
def test_foreground_values_equal_loops_over_foreground_alone(kind):
    loss, by_numpy = LOSSES[kind]
    observation = alive()
    found = measure(observation, loss)
    expected = by_loops(observation, observation.foreground, by_numpy)
    for name in ("loss", "loss_pos", "pos_ratio", "ev_pos", "centred_cos"):
        assert found[f"foreground_{name}"] == pytest.approx(expected[name], rel=1e-4), name
    u, foreground = observation.targets.double().numpy(), observation.foreground.numpy()
    pairs = [value for m in range(M) for value in pair_cosines(u[m][foreground[m]])]
    assert found["foreground_token_cosine"] == pytest.approx(np.mean(pairs), rel=1e-6)
    spread = observation.pooled_foreground.double().numpy().std(0, ddof=1).mean()
    assert found["foreground_pooled_std"] == pytest.approx(spread, rel=1e-6)
    assert found["foreground_share"] == pytest.approx(foreground.mean())


def test_spread_and_likeness_equal_loops_over_their_formulas():
    observation = alive()
    found = measure(observation, F.mse_loss)
    u, p = observation.targets.double().numpy(), observation.pooled.double().numpy()
    online = observation.pooled_online.double().numpy()
    expected = {
        "num_volumes": M,
        "pooled_std": np.mean([p[:, j].std(ddof=1) for j in range(E)]),
        "pooled_std_online": np.mean([online[:, j].std(ddof=1) for j in range(E)]),
        "pooled_std_relative": np.mean([p[:, j].std(ddof=1) / np.sqrt((p[:, j] ** 2).mean()) for j in range(E)]),
        "pooled_cosine": np.mean(pair_cosines(p)),
        "token_std": np.mean([u[m, :, j].std(ddof=1) for m in range(M) for j in range(E)]),
        "token_cosine": np.mean([value for m in range(M) for value in pair_cosines(u[m])]),
        "rankme_pooled": rankme(observation.pooled),
        "rankme_tokens": rankme(observation.targets.reshape(M * P, E)),
        "rankme_centred": rankme((observation.targets - observation.targets.mean(0)).reshape(M * P, E)),
        "lidar": lidar(observation.views),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_leaving_the_judged_volume_out_is_exact():
    """A volume that changes alone must not move its own baseline: L(mu, t) then grows as if mu were fixed."""
    observation = alive()
    only_first = torch.zeros_like(observation.hidden)
    only_first[0] = True
    only_first[1, 0] = True  # a second judged volume, else nothing is measured
    judged = replace(observation, hidden=only_first)
    mu = observation.targets[1:].double().mean(0)
    away = replace(judged, targets=observation.targets.clone(), predictions=observation.predictions.nan_to_num())
    away.targets[0] = mu + 100.0
    first = (100.0**2) * P
    other = float((away.targets[1, 0].double() - away.targets[[0, *range(2, M)], 0].double().mean(0)).square().mean())
    assert measure(away, F.mse_loss)["loss_pos"] == pytest.approx((first + other) / (P + 1), rel=1e-5)


def test_a_dead_state_looks_dead_and_a_live_one_alive_although_the_dead_has_the_smaller_loss():
    living, killed = measure(alive(), F.mse_loss), measure(dead(), F.mse_loss)
    assert killed["zero_ratio"] < 0.1 * living["zero_ratio"]
    assert living["pos_ratio"] < 0.5
    assert killed["pos_ratio"] > 1.0
    assert living["ev_pos"] > 0.5 > 0 > killed["ev_pos"]
    assert living["centred_cos"] > 0.8
    assert killed["loss_pos"] < 0.01 * living["loss_pos"]
    assert killed["pooled_std"] < 0.1 * living["pooled_std"]
    assert killed["token_cosine"] > 0.98 > living["token_cosine"]
    assert killed["rankme_centred"] > 0.9 * living["rankme_centred"], "RankMe is blind here, as in jepa.md"


def test_a_predictor_of_the_position_alone_has_ratio_1():
    targets = alive().targets
    others = (targets.double().sum(0) - targets.double()) / (M - 1)
    found = measure(observe(targets, others.float()), F.mse_loss)
    assert found["pos_ratio"] == pytest.approx(1.0, rel=1e-6)
    assert found["ev_pos"] == pytest.approx(0.0, abs=1e-6)
    assert found["centred_cos"] == pytest.approx(0.0, abs=1e-3)


def test_the_order_of_the_volumes_does_not_matter():
    observation = alive()
    order = torch.randperm(M, generator=torch.Generator().manual_seed(5)).tolist()
    found, expected = measure(take(observation, order), F.mse_loss), measure(observation, F.mse_loss)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_two_ranks_together_measure_what_one_would():
    observation = alive()
    parts = [take(observation, list(range(5))), take(observation, list(range(5, M)))]
    assert measure(Observation.concatenate(parts), F.mse_loss) == measure(observation, F.mse_loss)


def test_spread_follows_the_scale_of_the_features_and_its_relative_form_does_not():
    observation = alive()
    shrunk = replace(observation, pooled=observation.pooled / 5)
    before, after = measure(observation, F.mse_loss), measure(shrunk, F.mse_loss)
    assert after["pooled_std"] == pytest.approx(before["pooled_std"] / 5, rel=1e-5)
    for name in ("pooled_std_relative", "pooled_cosine", "rankme_pooled"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


def exactly_dead(prediction_error):
    targets = torch.ones(M, P, E)
    targets[..., ::2] = -1
    return observe(targets, targets + prediction_error, scale=0.0)


@pytest.mark.parametrize(("error", "expected"), [(0.0, 1.0), (0.5, RATIO_LIMIT)])
def test_a_state_without_any_difference_stays_in_numbers(error, expected):
    found = measure(exactly_dead(error), F.mse_loss)
    json.dumps(found, allow_nan=False)
    assert found["pos_ratio"] == expected
    assert found["ev_pos"] == 1 - expected
    assert found["token_cosine"] == pytest.approx(1.0)
    assert found["pooled_std"] == found["rankme_pooled"] == found["rankme_tokens"] == found["lidar"] == 0.0
    assert "pooled_cosine" not in found, "vectors of length 0 have no direction"


def test_no_features_at_all_stay_in_numbers():
    found = measure(observe(torch.zeros(M, P, E), torch.zeros(M, P, E)), F.mse_loss)
    json.dumps(found, allow_nan=False)
    assert "token_cosine" not in found


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_measured_as_such(bad):
    observation = alive()
    observation.targets[2, 1, 3] = bad
    observation.pooled[2, 3] = bad
    observation.losses[2] = bad
    found = measure(observation, F.mse_loss)
    assert all(isinstance(value, float) for value in found.values())
    assert not any(math.isfinite(found[name]) for name in ("loss", "pooled_std", "rankme_pooled", "rankme_tokens"))


def test_one_volume_or_one_position_leaves_out_what_needs_more():
    one_volume = measure(take(alive(), [3]), F.mse_loss)
    assert {"num_volumes", "loss", "token_cosine"} <= one_volume.keys()
    assert not {"pos_ratio", "loss_zero", "pooled_std", "rankme_tokens", "lidar"} & one_volume.keys()
    json.dumps(one_volume, allow_nan=False)
    one_position = alive()
    narrow = {name: getattr(one_position, name)[:, :1] for name in ("targets", "predictions", "hidden", "foreground")}
    values = measure(replace(one_position, **narrow), F.mse_loss)
    assert not {"token_cosine", "token_std"} & values.keys()
    assert "pos_ratio" in values


@pytest.mark.parametrize("with_foreground", [[4], [4, 5]])
def test_foreground_is_left_out_where_one_volume_alone_has_some_hidden(with_foreground):
    observation = alive()
    foreground = torch.zeros_like(observation.foreground)
    foreground[with_foreground] = True
    hidden = observation.hidden.clone()
    hidden[5] = False
    found = measure(replace(observation, foreground=foreground, hidden=hidden), F.mse_loss)
    assert [name for name in found if name.startswith("foreground_")] == ["foreground_share"]


@pytest.mark.parametrize(("num_volumes", "present"), [(4, False), (5, True)])
def test_lidar_needs_more_views_than_the_features_are_wide(num_volumes, present):
    """Mv (q - 1) > E with q = 3 and E = 8: 4 volumes give 8, 5 give 10."""
    observation = alive()
    viewed = replace(observation, views=observation.views[:num_volumes])
    assert ("lidar" in measure(viewed, F.mse_loss)) is present


def test_the_loss_is_split_by_maker_where_there_are_two():
    observation = alive()
    found = measure(observation, F.mse_loss)
    losses = observation.losses
    assert found["domain_loss/zeiss"] == pytest.approx(losses[0::2].mean().item(), rel=1e-6)
    assert found["domain_loss/topcon_co"] == pytest.approx(losses[1::2].mean().item(), rel=1e-6)
    alone = measure(replace(observation, domains=("Zeiss",) * M), F.mse_loss)
    assert not [name for name in alone if name.startswith("domain_loss/")]


@pytest.mark.parametrize(
    ("domain", "slug"),
    [("Carl Zeiss Meditec", "carl_zeiss_meditec"), ("Heidelberg-Eng. ", "heidelberg_eng"), ("---", "unknown")],
)
def test_makers_become_parts_of_names(domain, slug):
    assert domain_slug(domain) == slug
