"""Patch tokens -> a label, by one learned query: for what sits in a few patches and vanishes in their mean.

V-JEPA's features lose much when they are averaged (arXiv 2404.08471, table 3: 56.7 against 73.7). Cross-attention by a
single query needs no key matrix, (q K) x = (K^T q) x is one vector, and its value matrix merges with the linear layer
behind it. That layer is solved exactly in every step (ridge, in its dual form) and only the query is learned by
gradient: trained by gradient as well, 200 volumes taught it less than the mean did. Before the first step this is ridge
on the mean; how many steps and how much ridge are good is read off held-out patients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from oct_foundation.diagnostics.folds import Split
from oct_foundation.diagnostics.labels import Label

_STEPS, _CHECK_EVERY, _LEARNING_RATE = 40, 4, 0.1
_START = 0.1  # deviation of the query's entries at the start: all tokens count about alike
_ALPHAS = torch.logspace(-4, 3, 15)  # beside a kernel whose diagonal is 1 on average


@dataclass(frozen=True)
class _Part:
    """Some volumes: standardised tokens [K1, N, E] and targets [K1, T]."""

    tokens: torch.Tensor
    targets: torch.Tensor

    def of(self, rows: np.ndarray) -> "_Part":
        """The volumes at positions `rows`."""
        chosen = torch.from_numpy(rows)
        return _Part(self.tokens[chosen], self.targets[chosen])

    def pool(self, query: torch.Tensor) -> torch.Tensor:
        """Float [K1, 2E]: the mean of the tokens, and their mean weighted by the attention that `query` [E] pays."""
        scores = self.tokens @ query / query.shape[0] ** 0.5
        attended = (scores.softmax(dim=1)[:, None, :] @ self.tokens)[:, 0]
        return torch.cat([self.tokens.mean(dim=1), attended], dim=1)


@dataclass(frozen=True)
class _Kernel:
    """Inner products of the training part's standardised features [K1, F], divided by F: float [K1, K1]."""

    mean: torch.Tensor
    deviation: torch.Tensor
    features: torch.Tensor
    inner: torch.Tensor

    @classmethod
    def of(cls, pooled: torch.Tensor) -> "_Kernel":
        deviation, mean = torch.std_mean(pooled, dim=0)
        deviation = deviation.clamp_min(1e-6)
        features = (pooled - mean) / deviation
        return cls(mean, deviation, features, features @ features.T / features.shape[1])

    def with_others(self, pooled: torch.Tensor) -> torch.Tensor:
        """Inner products of other volumes [K2, F] with the training part: float [K2, K1]."""
        return (pooled - self.mean) / self.deviation @ self.features.T / self.features.shape[1]


def attentive_predictions(
    tokens: np.ndarray, label: Label, fold: Split, inner: Sequence[Split], seed: int
) -> np.ndarray:
    """What the probe says of `fold.test` after learning from `fold.train`: values [K2], or shares [K2, classes], which
    are least-squares probabilities and may leave [0, 1].

    tokens: float [K, N, E] of the label's K known volumes; inner: splits of the training part. Equal inputs and seeds
    give equal predictions.
    """
    targets = label.onehot() if label.kind == "classes" else label.targets[:, None]
    centre, scale = targets[fold.train].mean(axis=0), targets[fold.train].std() or 1.0
    whole = _Part(_standardise(tokens, fold.train), torch.from_numpy((targets - centre) / scale).float())
    train, test = whole.of(fold.train), whole.of(fold.test)
    start = _START * torch.randn(tokens.shape[2], generator=torch.Generator().manual_seed(seed))
    errors = torch.stack([_held_out_errors(train.of(part.train), train.of(part.test), start) for part in inner])
    steps, strength = np.unravel_index(int(errors.sum(dim=0).argmin()), errors.shape[1:])
    *_, query = _learn(train, start, int(steps) * _CHECK_EVERY)
    said = _predict(train, test, query, _ALPHAS[int(strength)])[0].numpy() * scale + centre
    return said if label.kind == "classes" else said[:, 0]


def _standardise(tokens: np.ndarray, train: np.ndarray) -> torch.Tensor:
    """float32 [K, N, E]: each channel has mean 0 and deviation 1 over the tokens of the volumes `train` [K1]."""
    found = torch.from_numpy(np.asarray(tokens, dtype=np.float32))
    deviation, mean = torch.std_mean(found[torch.from_numpy(train)], dim=(0, 1), correction=0)
    return (found - mean) / deviation.clamp_min(1e-6)


def _held_out_errors(train: _Part, held_out: _Part, start: torch.Tensor) -> torch.Tensor:
    """Sum of squared errors on the held-out volumes: float [checks, alphas]."""
    found = []
    for step, query in enumerate(_learn(train, start, _STEPS)):
        if step % _CHECK_EVERY == 0:
            said = _predict(train, held_out, query, _ALPHAS)
            found.append((said - held_out.targets).square().sum(dim=(1, 2)))
    return torch.stack(found)


@torch.no_grad()
def _predict(train: _Part, others: _Part, query: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Ridge on the pooled features at each strength: float [alphas, K2, T]. One decomposition serves them all."""
    kernel = _Kernel.of(train.pool(query))
    values, vectors = torch.linalg.eigh(kernel.inner)
    mean = train.targets.mean(dim=0)
    seen = vectors.T @ (train.targets - mean)  # [K1, T]
    dual = seen / (values.clamp_min(0)[:, None] + alphas.reshape(-1, 1, 1))  # [alphas, K1, T]
    return kernel.with_others(others.pool(query)) @ vectors @ dual + mean


def _learn(train: _Part, start: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """The query after 0, 1, ... `steps` updates by Adam, [E] each.

    The loss is ridge's squared leave-one-out error, residual over 1 - leverage: the plain one is near 0 from the start
    where there are more features than volumes. The strength is learned beside the query.
    """
    query, log_alpha = start.clone().requires_grad_(), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([query, log_alpha], lr=_LEARNING_RATE)
    centred = train.targets - train.targets.mean(dim=0)
    yield query.detach().clone()
    for _ in range(steps):
        inner = _Kernel.of(train.pool(query)).inner
        inverse = torch.linalg.inv(inner + log_alpha.exp() * torch.eye(len(inner)))
        left_out = inverse @ centred / inverse.diagonal()[:, None]
        optimizer.zero_grad()
        left_out.square().mean().backward()
        optimizer.step()
        yield query.detach().clone()
