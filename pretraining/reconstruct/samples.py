"""A model and a split of its film -> what it says of every TR, with the truth and a constant; and scores of one TR.

The constants know the training TRs only: their mean picture, mean embedding and mean brain, and how frequent each code
is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from data_setup.neuro.film_dataset import FilmDataset
from oct_foundation.film import AUDIO, CONTINUOUS, FilmBatch, FilmShape
from oct_foundation.losses.normalized import AudioOutput, constant_codes, place_costs
from oct_foundation.models.film_model import FilmModel

_LEAST_NORM = 1e-12  # of a vector that has a direction


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """n TRs, as the data set has them. By modality of CONTINUOUS: truth, prediction float32 [n, values]; mean [values]
    and variance, of the training TRs. codes, said_codes: int64 [n, audio_dim]; code_costs, constant_costs: float32
    [n, audio_dim], nats (audio_output `scalar`: squared errors) of each place for the model and for the frequencies of
    the training codes; shifted_costs: [n], the model's for codes of another quarter of the film. common_codes:
    int64 [audio_dim], the commonest of each book.
    """

    shape: FilmShape
    audio_output: AudioOutput
    names: tuple[str, ...]
    trs: np.ndarray
    runs: np.ndarray
    truth: Mapping[str, np.ndarray]
    prediction: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    variance: Mapping[str, float]
    codes: np.ndarray
    said_codes: np.ndarray
    code_costs: np.ndarray
    constant_costs: np.ndarray
    shifted_costs: np.ndarray
    common_codes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def fvu(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Of each TR, float64 [n]: squared error in units of the training variance."""
        return _squares(self.truth[name][rows] - self.prediction[name][rows]) / self.variance[name]

    def mean_fvu(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """The same of the training mean."""
        return _squares(self.truth[name][rows] - self.mean[name]) / self.variance[name]


@torch.no_grad()
def predict(model: FilmModel, data: FilmDataset, *, batch_size: int, device: str, bf16: bool) -> Predictions:
    """Every TR of `data` once, in its order; bf16: as the run computed."""
    model = model.to(device).eval()
    count, parts = len(data), []
    for start in range(0, count, batch_size):
        numbers = list(range(start, min(start + batch_size, count)))
        batch = data.batch(numbers)
        other = data.batch([data.moved(number) for number in numbers]).audio
        parts.append(_said(model, batch, other, device, bf16))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    truth = data.batch(range(count))
    places = [data.place(number) for number in range(count)]
    statistics, shape = model.statistics, model.network.config.shape
    kind, unigram = model.film_loss.audio_output, statistics.unigram.cpu()
    return Predictions(
        shape=shape,
        audio_output=kind,
        names=tuple(data.name(number) for number in range(count)),
        trs=np.array([place.tr for place in places]),
        runs=np.array([place.subject or 0 for place in places]),
        truth={"video": truth.video_target.numpy(), "text": truth.text.numpy(), "fmri": truth.fmri.numpy()},
        prediction={name: joined[name] for name in CONTINUOUS},
        mean={name: mean.cpu().numpy() for name, mean in statistics.mean.items()},
        variance=dict(statistics.variance),
        codes=truth.audio.numpy(),
        said_codes=joined["codes"],
        code_costs=joined["costs"],
        constant_costs=place_costs(constant_codes(truth.audio, unigram, kind), truth.audio, kind).numpy(),
        shifted_costs=joined["shifted"],
        common_codes=unigram.argmax(1).repeat_interleave(shape.codes_per_tr).numpy(),
    )


def _said(
    model: FilmModel, batch: FilmBatch, other_codes: torch.Tensor, device: str, bf16: bool
) -> dict[str, np.ndarray]:
    """What the model makes of a batch on the host."""
    there = batch.to(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        output = model.network(there.video, there.audio, there.text, there.fmri)
    kind, audio = model.film_loss.audio_output, output.audio_recon.float().cpu()
    return {
        "video": output.video_recon.float().cpu().numpy(),
        "text": output.text_recon.float().cpu().numpy(),
        "fmri": output.predicted_fmri.float().cpu().numpy(),
        "codes": (audio.argmax(-1) if kind == "codes" else audio.round().long()).numpy(),
        "costs": place_costs(audio, batch.audio, kind).numpy(),
        "shifted": place_costs(audio, other_codes, kind).mean(1).numpy(),
    }


def spread_over(data: FilmDataset, num_samples: int) -> list[int]:
    """Numbers of samples from the middles of as many equal stretches of the film, subjects taking turns.

    Raises ValueError where there are not so many TRs.
    """
    num_trs = len(data.trs)
    if not 1 <= num_samples <= num_trs:
        raise ValueError(f"--num-samples is {num_samples}; the split has {num_trs} TRs: 1 to {num_trs} are allowed")
    subjects = len(data) // num_trs
    return [(i % subjects) * num_trs + (2 * i + 1) * num_trs // (2 * num_samples) for i in range(num_samples)]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of one TR: of the model, and of the constant on the same TR."""

    what: str
    model: float
    constant: float


def scores(predictions: Predictions, index: int) -> dict[str, tuple[Score, ...]]:
    """By modality, of TR number `index`."""
    found: dict[str, tuple[Score, ...]] = {}
    for name in CONTINUOUS:
        row = slice(index, index + 1)
        [model], [constant] = predictions.fvu(name, row), predictions.mean_fvu(name, row)
        found[name] = (Score(what="FVU", model=float(model), constant=float(constant)),)
    truth, said = predictions.truth["text"][index], predictions.prediction["text"][index]
    alike = Score(what="cosine", model=cosine(truth, said), constant=cosine(truth, predictions.mean["text"]))
    found["text"] += (alike,)
    mean = predictions.mean["fmri"]
    r = correlation(predictions.truth["fmri"][index] - mean, predictions.prediction["fmri"][index] - mean)
    found["fmri"] += (Score(what="r over voxels", model=r, constant=0.0),)
    return {**found, AUDIO: _code_scores(predictions, index, slice(None))}


def book_scores(predictions: Predictions, index: int, book: int) -> tuple[Score, ...]:
    """As `scores` has them for audio, of one codebook."""
    size = predictions.shape.codes_per_tr
    return _code_scores(predictions, index, slice(book * size, (book + 1) * size))


def _code_scores(predictions: Predictions, index: int, places: slice) -> tuple[Score, ...]:
    codes = predictions.codes[index, places]
    right, common = predictions.said_codes[index, places] == codes, predictions.common_codes[places] == codes
    costs, constant = predictions.code_costs[index, places], predictions.constant_costs[index, places]
    cost = "cross-entropy" if predictions.audio_output == "codes" else "squared error"
    return (
        Score(what="right codes", model=float(right.mean()), constant=float(common.mean())),
        Score(what=cost, model=float(costs.mean()), constant=float(constant.mean())),
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors; 0 where one has no direction."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm > _LEAST_NORM else 0.0


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r of two vectors; 0 where one is constant."""
    return cosine(one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64))


def r_over_time(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Pearson's r of each voxel: float [n, V] twice -> [V]; NaN where the truth does not change, 0 where `said` does
    not.
    """
    one, other = (values - values.mean(axis=0, dtype=np.float64) for values in (truth, said))
    deviations = np.sqrt((one**2).sum(axis=0)), np.sqrt((other**2).sum(axis=0))
    product = deviations[0] * deviations[1]
    r = np.divide((one * other).sum(axis=0), product, out=np.zeros_like(product), where=product > _LEAST_NORM)
    return np.where(deviations[0] > _LEAST_NORM**0.5, r, np.nan)


def _squares(difference: np.ndarray) -> np.ndarray:
    return (difference.astype(np.float64) ** 2).mean(axis=1)
