"""What a film model says of TRs -> losses in units of what a constant scores: 1.0 is predict-the-mean, 0 is perfect.

Mean squares over the training variance (FVU), codes over the cross-entropy of their training frequencies. The divisors
are fixed for a run. MSE / std, the unit of the report, is there for comparison: it makes sound 99.7 % of the sum.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from oct_foundation.film import AUDIO, FILM_MODALITIES, FilmBatch, TargetStatistics

LossMode = Literal["normalized", "std"]
FMRILoss = Literal["mse", "mae", "correlation"]
# codes: logits over the codes of a book. scalar: the number of the code, as the report's model has it.
AudioOutput = Literal["codes", "scalar"]

# Below this part of its root mean square, a row's deviation from its mean is rounding.
_CONSTANT = 1e-6


class Predictions(Protocol):
    """What a model says of B TRs."""

    @property
    def predicted_fmri(self) -> torch.Tensor:
        """[B, voxels]."""
        ...

    @property
    def video_recon(self) -> torch.Tensor:
        """[B, frame_dim]."""
        ...

    @property
    def audio_recon(self) -> torch.Tensor:
        """[B, audio_dim], or of codes logits [B, audio_dim, num_codes]."""
        ...

    @property
    def text_recon(self) -> torch.Tensor:
        """[B, text_dim]."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilmLossSettings:
    """mode `normalized`: over the variance; `std`: over the standard deviation, whose result has the target's unit.

    fmri_loss: `mae` is over what the mean scores on Gaussian voxels; `correlation` is 1 - r over voxels, in any mode.
    A modality of weight 0 is neither trained nor measured. Raises ValueError.
    """

    mode: LossMode = "normalized"
    fmri_loss: FMRILoss = "mse"
    video_weight: float = 1.0
    audio_weight: float = 1.0
    text_weight: float = 1.0
    fmri_weight: float = 1.0

    def __post_init__(self) -> None:
        for key, allowed in (("mode", ("normalized", "std")), ("fmri_loss", ("mse", "mae", "correlation"))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"loss.{key} is {getattr(self, key)!r}; allowed: {', '.join(allowed)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_weight") and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"loss.{item.name} must be a number of at least 0; found {value}")
        if not self.weights:
            raise ValueError("every weight of loss is 0; give at least one of video, audio, text, fmri a weight")

    @property
    def weights(self) -> dict[str, float]:
        """Of the modalities that count, in the order of FILM_MODALITIES."""
        every = {name: float(getattr(self, f"{name}_weight")) for name in FILM_MODALITIES}
        return {name: weight for name, weight in every.items() if weight > 0}


class FilmLosses(NamedTuple):
    """Float32 0-d tensors. total: the weighted sum of losses; losses, raw: by modality, over their divisor and as they
    are; metrics: detached, under the names of the logs.
    """

    total: torch.Tensor
    losses: dict[str, torch.Tensor]
    raw: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class FilmLoss:
    """The losses of a run: `settings`, and the divisors that `statistics` of the training TRs give.

    divisors: by modality. Raises ValueError where a target that counts is constant over the training TRs.
    """

    def __init__(
        self, settings: FilmLossSettings, statistics: TargetStatistics, audio_output: AudioOutput = "codes"
    ) -> None:
        self.settings, self.audio_output = settings, audio_output
        self.divisors = {name: self._divisor(name, statistics) for name in settings.weights}
        for name, divisor in self.divisors.items():
            if not (math.isfinite(divisor) and divisor > 0):
                raise ValueError(
                    f"{name} is constant over the {statistics.num_trs} training TRs (divisor {divisor:g}): there is "
                    f"nothing to learn; check the data, or set loss.{name}_weight to 0"
                )

    def _divisor(self, name: str, statistics: TargetStatistics) -> float:
        """What the raw loss of a modality is measured in; codes have no unit that `std` could keep."""
        in_std = self.settings.mode == "std"
        if name == AUDIO:
            if self.audio_output == "codes":
                return unigram_cross_entropy(statistics.unigram)
            variance, std = code_spread(statistics.unigram)
            return std if in_std else variance
        variance, std = statistics.variance[name], statistics.std[name]
        if name != "fmri" or self.settings.fmri_loss == "mse":
            return std if in_std else variance
        if self.settings.fmri_loss == "correlation":
            return 1.0
        return std if in_std else math.sqrt(variance * 2 / math.pi)  # E|x| of a Gaussian

    def __call__(self, predictions: Predictions, batch: FilmBatch) -> FilmLosses:
        """Means over the TRs of a batch; raises ValueError where a prediction is not as large as its target."""
        weights = self.settings.weights
        raw = {name: errors.mean() for name, errors in self.of_each_tr(predictions, batch).items()}
        losses = {name: raw[name] / self.divisors[name] for name in weights}
        weighted = {name: weight * losses[name] for name, weight in weights.items()}
        total = torch.stack(list(weighted.values())).sum()
        metrics = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        metrics |= {f"{name}_loss_raw": loss.detach() for name, loss in raw.items()}
        film = [loss.detach() for name, loss in weighted.items() if name != "fmri"]
        if film:
            metrics["reconstruction_loss"] = torch.stack(film).sum()
        return FilmLosses(total, losses, raw, metrics | {"total_loss": total.detach()})

    def of_each_tr(self, predictions: Predictions, batch: FilmBatch) -> dict[str, torch.Tensor]:
        """By modality that counts: the raw loss of each TR, [B]."""
        errors = per_tr(predictions, batch, self.audio_output)
        match self.settings.fmri_loss:
            case "mae":
                errors["fmri"] = (at_least_float32(predictions.predicted_fmri) - batch.fmri).abs().mean(1)
            case "correlation":
                errors["fmri"] = 1 - compute_correlation_metric(predictions.predicted_fmri, batch.fmri)
        return {name: errors[name] for name in self.settings.weights}


def per_tr(predictions: Predictions, batch: FilmBatch, audio_output: AudioOutput = "codes") -> dict[str, torch.Tensor]:
    """By modality [B], whatever the settings of a run: mean squared error over the values of a TR; of codes the mean
    cross-entropy in nats. Sums over TRs, batches and ranks may be added. Raises ValueError where sizes differ.
    """
    codes, said = batch.audio, at_least_float32(predictions.audio_recon)
    return {
        "video": squared_error(predictions.video_recon, batch.video_target, "video_recon"),
        "audio": cross_entropy(said, codes) if audio_output == "codes" else squared_error(said, codes, "audio_recon"),
        "text": squared_error(predictions.text_recon, batch.text, "text_recon"),
        "fmri": squared_error(predictions.predicted_fmri, batch.fmri, "predicted_fmri"),
    }


def constant_costs(codes: torch.Tensor, unigram: torch.Tensor, audio_output: AudioOutput = "codes") -> torch.Tensor:
    """What codes [B, places] cost in each TR, [B], for one who knows only how frequent each is in its book."""
    return place_costs(constant_codes(codes, unigram, audio_output), codes, audio_output).mean(1)


def constant_codes(codes: torch.Tensor, unigram: torch.Tensor, audio_output: AudioOutput = "codes") -> torch.Tensor:
    """What such a one says of codes [B, places], in the form of a model's audio_recon."""
    per_book = codes.shape[1] // len(unigram)
    if audio_output == "scalar":
        return code_means(unigram).repeat_interleave(per_book).expand(codes.shape)
    return unigram.log().repeat_interleave(per_book, 0).expand(len(codes), -1, -1)


def squared_error(predicted: torch.Tensor, target: torch.Tensor, name: str) -> torch.Tensor:
    """[B, values] both -> [B], the mean over values. Raises ValueError where the shapes differ, never cuts."""
    _check(name, predicted, tuple(target.shape))
    return (at_least_float32(predicted) - target).square().mean(1)


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """[B, places, num_codes], int64 [B, places] -> [B], nats, the mean over places. Raises ValueError."""
    return place_costs(logits, codes).mean(1)


def place_costs(said: torch.Tensor, codes: torch.Tensor, audio_output: AudioOutput = "codes") -> torch.Tensor:
    """What each code costs, [B, places], int64 [B, places] -> [B, places]: nats of logits [B, places, num_codes], or
    the squared error of a number. Raises ValueError.
    """
    if audio_output == "scalar":
        _check("audio_recon", said, tuple(codes.shape))
        return (said - codes).square()
    _check("audio_recon", said, (*codes.shape, said.shape[-1]))
    return F.cross_entropy(said.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)


def unigram_cross_entropy(unigram: torch.Tensor) -> float:
    """Nats of a code for one who knows only how frequent each is: [codebooks, num_codes], the mean over books."""
    return -float(torch.xlogy(unigram.double(), unigram.double()).sum(1).mean())


def code_means(unigram: torch.Tensor) -> torch.Tensor:
    """Of codes taken as numbers, by book: frequencies [codebooks, num_codes] -> [codebooks]."""
    return unigram @ torch.arange(unigram.shape[1], dtype=unigram.dtype, device=unigram.device)


def code_spread(unigram: torch.Tensor) -> tuple[float, float]:
    """Of codes taken as numbers: their variance about the mean of their book, averaged over books, and the standard
    deviation of all together, every book having as many codes in a TR.
    """
    frequencies = unigram.double()
    codes, means = torch.arange(unigram.shape[1], dtype=torch.float64), code_means(frequencies)
    squares = frequencies @ codes.square()
    return float((squares - means.square()).mean()), math.sqrt(float(squares.mean() - means.mean().square()))


def compute_correlation_metric(predicted: torch.Tensor, target: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Pearson's r of [B, voxels] along `dim`: 1, over voxels, of each TR [B]; 0, over TRs, of each voxel [voxels].

    0, without a gradient, where either side is constant. Raises ValueError where the shapes differ.
    """
    _check("the prediction", predicted, tuple(target.shape))
    first, first_constant = _centred(at_least_float32(predicted), dim)
    second, second_constant = _centred(at_least_float32(target), dim)
    constant = first_constant | second_constant
    # 1 under the root where it would be 0: a `where` behind it would still let NaN into the gradient.
    squares = torch.where(constant, 1.0, first.square().sum(dim)) * torch.where(constant, 1.0, second.square().sum(dim))
    return torch.where(constant, 0.0, (first * second).sum(dim) * squares.rsqrt())


def compute_r2_score(predicted: torch.Tensor, target: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """1 - squared error / squares about the target's own mean along `dim`, as compute_correlation_metric has it.

    0 where the target is constant. The bar is the mean of that very TR, not the training mean: FVU says that.
    """
    _check("the prediction", predicted, tuple(target.shape))
    centred, constant = _centred(at_least_float32(target), dim)
    errors = (at_least_float32(predicted) - target).square().sum(dim)
    return torch.where(constant, 0.0, 1 - errors / torch.where(constant, 1.0, centred.square().sum(dim)))


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Losses are computed in float32, also of what autocast has left in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _centred(values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Less their mean along `dim`, and where nothing but rounding is left: bool, without `dim`."""
    centred = values - values.mean(dim, keepdim=True)
    squares = values.detach().square().sum(dim)
    return centred, centred.detach().square().sum(dim) <= _CONSTANT**2 * squares


def _check(name: str, predicted: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(predicted.shape) != expected:
        raise ValueError(f"{name} is {list(predicted.shape)}, its target needs {list(expected)}; nothing is cut to fit")
