"""One observation -> the numbers that tell a live encoder from a dead one whose loss is as small (jepa.md, section 4).

Every mean over volumes leaves the judged volume out: with it, M volumes flatter the baseline by (1 - 1/M)^2. No value
becomes nan or inf while the features are finite: a value without meaning is left out, a ratio ends at `RATIO_LIMIT`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from oct_foundation.diagnostics.observation import Observation
from oct_foundation.diagnostics.rank import lidar, rankme

_MOST_TOKENS = 4096  # in a singular value decomposition: of width 384 they take 0.2 s of one core
Loss = Callable[[Tensor, Tensor], Tensor]

# JSON knows no infinity, and beyond this the baseline is exact and how far the predictor misses it says nothing.
RATIO_LIMIT = 1e6


def measure(observation: Observation, loss: Loss) -> dict[str, float]:
    """Value by name, without a prefix; `loss` is L, the training's own mean over (prediction, target), [n, E] both.

    Besides what the functions below return: num_volumes = M; loss = mean over m of the losses on whole masks;
    foreground_share = share of foreground among the M P positions; foreground_... = the same value over foreground
    alone, left out where fewer than two volumes have hidden foreground. Not finite features give values that are nan.
    """
    return {
        "num_volumes": float(observation.num_volumes),
        "loss": observation.losses.double().mean().item(),
        "foreground_share": observation.foreground.double().mean().item(),
        **_prediction(observation, loss),
        **_tokens(observation),
        **_pooled(observation),
        **_ranks(observation),
        **_foreground(observation, loss),
        **_domains(observation),
    }


def domain_slug(domain: str) -> str:
    """A maker's name as part of a value's name: lower case, runs of other characters than a-z and 0-9 become _."""
    return re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_") or "unknown"


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """n hidden tokens, each beside what the other volumes show in its position.

    prediction z, target t, average mu: float32 [n, E]; volume: int64 [n], the volume that each belongs to.
    """

    prediction: Tensor
    target: Tensor
    average: Tensor
    volume: Tensor


def _judged(observation: Observation, counted: Tensor) -> _Judged | None:
    """The hidden tokens among `counted` (bool [M, P]) whose position is counted in another volume too.

    average = mean over m' != m of the counted u[m', n]. None where fewer than two volumes have such tokens.
    """
    u = observation.targets.double()
    sums = torch.einsum("mpe,mp->pe", u, counted.double())
    numbers = counted.sum(0)
    volume, position = torch.nonzero(observation.hidden & counted & (numbers > 1), as_tuple=True)
    if len(volume.unique()) < 2:
        return None
    average = (sums[position] - u[volume, position]) / (numbers[position] - 1)[:, None]
    return _Judged(
        prediction=observation.predictions[volume, position],
        target=observation.targets[volume, position],
        average=average.float(),
        volume=volume,
    )


def _against_average(judged: _Judged, loss: Loss) -> dict[str, float]:
    """The predictor against "what other volumes show in this position", over the same hidden tokens.

    loss_pos = L(mu, t); pos_ratio = L(z, t) / L(mu, t), 1 where the predictor knows the position and nothing of the
    volume; ev_pos = 1 - sum (z - t)^2 / sum (mu - t)^2; centred_cos = mean cos(z - mu, t - mu), a vector of length 0
    counting as cosine 0. Where the average is exact, an exact predictor has pos_ratio 1, any other `RATIO_LIMIT`.
    """
    z, t, mu = judged.prediction.double(), judged.target.double(), judged.average.double()
    loss_pos = loss(judged.average, judged.target).item()
    return {
        "loss_pos": loss_pos,
        "pos_ratio": _ratio(loss(judged.prediction, judged.target).item(), loss_pos),
        "ev_pos": 1 - _ratio((z - t).square().sum().item(), (mu - t).square().sum().item()),
        "centred_cos": F.cosine_similarity(z - mu, t - mu, dim=-1).mean().item(),
    }


def _prediction(observation: Observation, loss: Loss) -> dict[str, float]:
    """Over all hidden tokens: `_against_average`, and the two baselines that know even less.

    loss_zero = L(0, t); zero_ratio = L(z, t) / L(0, t); loss_global = L(g, t), g = mean over m' != m and n of
    u[m', n], one vector for all positions. Left out for fewer than two volumes.
    """
    judged = _judged(observation, torch.ones_like(observation.hidden))
    if judged is None:
        return {}
    of_volume = observation.targets.double().mean(1)
    of_others = (of_volume.sum(0) - of_volume) / (len(of_volume) - 1)
    loss_zero = loss(torch.zeros_like(judged.target), judged.target).item()
    return {
        **_against_average(judged, loss),
        "loss_zero": loss_zero,
        "zero_ratio": _ratio(loss(judged.prediction, judged.target).item(), loss_zero),
        "loss_global": loss(of_others.float()[judged.volume], judged.target).item(),
    }


def _tokens(observation: Observation) -> dict[str, float]:
    """How much the tokens of one volume differ; left out for fewer than two positions.

    token_std = mean over m, j of std over n of u[m, n, j]; token_cosine = mean over m and n != n' of
    cos(u[m, n], u[m, n']), near 1 where every position holds the same vector.
    """
    u = observation.targets.double()
    if u.shape[1] < 2:
        return {}
    everywhere = torch.ones_like(observation.hidden)
    return {"token_std": u.std(1).mean().item(), **_named("token_cosine", _mean_pair_cosine(u, everywhere))}


def _pooled(observation: Observation) -> dict[str, float]:
    """How much whole volumes differ, p = pooled, s_j = std over m of p[:, j]; left out for fewer than two volumes.

    pooled_std = mean_j s_j, pooled_std_online the same of the student; pooled_std_relative = mean_j s_j / rms over m of
    p[:, j]; pooled_cosine = mean over m != m' of cos(p_m, p_m').
    """
    p = observation.pooled.double()
    if len(p) < 2:
        return {}
    rms = p.square().mean(0).sqrt().clamp_min(torch.finfo(p.dtype).tiny)
    alike = _mean_pair_cosine(p[None], torch.ones(1, len(p), dtype=torch.bool))
    return {
        "pooled_std": _spread(p),
        "pooled_std_online": _spread(observation.pooled_online),
        "pooled_std_relative": (p.std(0) / rms).mean().item(),
        **_named("pooled_cosine", alike),
    }


def _ranks(observation: Observation) -> dict[str, float]:
    """Directions in use: rankme_pooled of p; rankme_tokens of all u [M P, E]; rankme_centred of u less the mean of its
    position, both over fewer positions where tokens are many; lidar of the masked views, left out unless
    Mv (q - 1) > E.
    Left out for fewer than two volumes.
    """
    if observation.num_volumes < 2:
        return {}
    stride = math.ceil(observation.targets.shape[0] * observation.targets.shape[1] / _MOST_TOKENS)
    u = observation.targets[:, ::stride].double()
    values = {
        "rankme_pooled": rankme(observation.pooled),
        "rankme_tokens": rankme(u.flatten(0, 1)),
        # Leaving the judged volume out would scale all rows by M / (M - 1), which RankMe does not see.
        "rankme_centred": rankme((u - u.mean(0)).flatten(0, 1)),
    }
    num_volumes, num_views, width = observation.views.shape
    if num_volumes > 1 and num_volumes * (num_views - 1) > width:
        values["lidar"] = lidar(observation.views)
    return values


def _foreground(observation: Observation, loss: Loss) -> dict[str, float]:
    """`_against_average`, loss = L(z, t), token_cosine and pooled_std; mu is the mean of the others' foreground.

    Most patches of a scan are background, which is alike in all of them and makes every mean look better.
    """
    judged = _judged(observation, observation.foreground)
    if judged is None:
        return {}
    values = {
        **_against_average(judged, loss),
        "loss": loss(judged.prediction, judged.target).item(),
        "pooled_std": _spread(observation.pooled_foreground),
        **_named("token_cosine", _mean_pair_cosine(observation.targets.double(), observation.foreground)),
    }
    return {f"foreground_{name}": value for name, value in values.items()}


def _domains(observation: Observation) -> dict[str, float]:
    """domain_loss/<maker> = mean loss of that maker's volumes; left out where there is one maker only."""
    slugs = [domain_slug(domain) for domain in observation.domains]
    makers = sorted(set(slugs))
    if len(makers) < 2:
        return {}
    losses = observation.losses.double()
    return {
        f"domain_loss/{maker}": losses[[slug == maker for slug in slugs]].mean().item()  # a mask over volumes
        for maker in makers
    }


def _spread(pooled: Tensor) -> float:
    """mean_j std over m of pooled[:, j]: float [M, E], M >= 2."""
    return pooled.double().std(0).mean().item()


def _mean_pair_cosine(vectors: Tensor, counted: Tensor) -> float | None:
    """Mean cosine of all pairs of different counted vectors of a group: vectors [G, n, E], counted bool [G, n].

    Over a group's unit vectors a, the sum over pairs is |sum a|^2 - sum |a|^2: no [n, n] matrix is needed. A vector of
    length 0 has no direction and does not count. None where no group has a pair.
    """
    lengths = vectors.norm(dim=-1)
    counted = counted & (lengths != 0)
    units = torch.where(counted[..., None], vectors / lengths[..., None], 0.0)
    numbers = counted.sum(1)
    pairs = int((numbers * (numbers - 1)).sum())
    if not pairs:
        return None
    return ((units.sum(1).square().sum() - units.square().sum()) / pairs).item()


def _ratio(numerator: float, denominator: float) -> float:
    """Their quotient, `RATIO_LIMIT` at most; 1.0 for 0 / 0: as good as a baseline that leaves nothing to explain."""
    if numerator == denominator == 0:
        return 1.0
    quotient = numerator / denominator if denominator else numerator * math.inf
    return min(quotient, RATIO_LIMIT)  # min keeps a nan that comes first


def _named(name: str, value: float | None) -> dict[str, float]:
    """An entry for a value that has a meaning, none for None."""
    return {} if value is None else {name: value}
