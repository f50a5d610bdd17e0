"""Losses in units of what a constant scores: hand values, the constant itself, and what report 002 got wrong."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.metrics import r2_score
from torch.nn import functional as F

from oct_foundation.film import FilmBatch, TargetStatistics
from oct_foundation.losses.normalized import (
    FilmLoss,
    FilmLossSettings,
    code_spread,
    compute_correlation_metric,
    compute_r2_score,
    constant_costs,
    per_tr,
    unigram_cross_entropy,
)

BOOKS, PER_BOOK, CODES = 2, 3, 5


class Said(NamedTuple):
    predicted_fmri: torch.Tensor
    video_recon: torch.Tensor
    audio_recon: torch.Tensor
    text_recon: torch.Tensor


def film(num_trs: int = 64, seed: int = 0) -> FilmBatch:
    """Pictures darker at the left, codes of which small ones are commoner in book 0, text far from 0."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(num_trs, 12, generator=generator) * torch.linspace(0.1, 1, 12)
    commonness = torch.tensor([[8.0, 4, 2, 1, 1], [1.0, 1, 1, 1, 4]])
    codes = [torch.multinomial(row, num_trs * PER_BOOK, True, generator=generator) for row in commonness]
    return FilmBatch(
        video=pictures.repeat(1, 2),
        video_target=pictures,
        audio=torch.cat([book.view(num_trs, PER_BOOK) for book in codes], 1),
        text=3 + 0.018 * torch.randn(num_trs, 7, generator=generator),
        fmri=torch.randn(num_trs, 40, generator=generator),
    )


def statistics_of(batch: FilmBatch) -> TargetStatistics:
    """By the words of TargetStatistics, with numpy's own functions in float64."""
    targets = {"video": batch.video_target.numpy(), "text": batch.text.numpy(), "fmri": batch.fmri.numpy()}
    books = batch.audio.view(-1, BOOKS, PER_BOOK).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(book, minlength=CODES) for book in books]).float()
    assert (counts > 0).all()
    return TargetStatistics(
        mean={name: torch.from_numpy(value.mean(0)) for name, value in targets.items()},
        variance={name: float(value.astype(float).var(0).mean()) for name, value in targets.items()},
        std={name: float(value.astype(float).std()) for name, value in targets.items()},
        unigram=counts / counts.sum(1, keepdim=True),
        num_trs=batch.num_samples,
    )


TRAIN = film()
KNOWN = statistics_of(TRAIN)


def constant(audio_output: str, batch: FilmBatch = TRAIN, known: TargetStatistics = KNOWN) -> Said:
    """What one says who knows the training statistics only."""
    number = batch.num_samples
    if audio_output == "codes":
        audio = known.unigram.log().repeat_interleave(PER_BOOK, 0).expand(number, -1, -1)
    else:
        audio = (known.unigram @ torch.arange(5.0).to(known.unigram)).repeat_interleave(PER_BOOK).expand(number, -1)
    means = {name: mean.expand(number, -1) for name, mean in known.mean.items()}
    return Said(means["fmri"], means["video"], audio, means["text"])


def perfect(audio_output: str) -> Said:
    logits = 50.0 * F.one_hot(TRAIN.audio, CODES)
    return Said(TRAIN.fmri, TRAIN.video_target, logits if audio_output == "codes" else TRAIN.audio.float(), TRAIN.text)


def noisy(audio_output: str = "codes", seed: int = 3) -> Said:
    generator = torch.Generator().manual_seed(seed)
    return Said(*(value + torch.randn(value.shape, generator=generator) for value in constant(audio_output)))


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
def test_a_constant_scores_one_in_every_modality_and_the_truth_scores_zero(audio_output):
    measure = FilmLoss(FilmLossSettings(), KNOWN, audio_output)
    found = measure(constant(audio_output), TRAIN)
    assert {name: loss.item() for name, loss in found.losses.items()} == pytest.approx(
        dict.fromkeys(("video", "audio", "text", "fmri"), 1.0), abs=2e-4
    )  # text: a variance of 3e-4 about a mean of 3, in float32
    assert found.total.item() == pytest.approx(4, abs=1e-3)
    assert measure(perfect(audio_output), TRAIN).total.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
def test_in_float64_the_one_of_a_constant_is_exact(audio_output):
    exact = FilmBatch(**{n: v.double() if v.is_floating_point() else v for n, v in vars(TRAIN).items()})
    known = statistics_of(exact)
    books = TRAIN.audio.view(-1, BOOKS, PER_BOOK).transpose(0, 1).flatten(1)
    frequencies = torch.stack([torch.bincount(book, minlength=CODES) / book.numel() for book in books]).double()
    known = replace(known, unigram=frequencies / frequencies.sum(1, keepdim=True))
    errors = per_tr(constant(audio_output, exact, known), exact, audio_output)
    measure = FilmLoss(FilmLossSettings(), known, audio_output)
    for name, values in errors.items():
        assert values.mean().item() / measure.divisors[name] == pytest.approx(1, abs=1e-7), name


def test_the_divisors_are_the_training_set_s_whatever_the_batch_holds():
    measure = FilmLoss(FilmLossSettings(), KNOWN)
    loud = replace(film(8, seed=5), fmri=10 * torch.randn(8, 40, generator=torch.Generator().manual_seed(1)))
    found = measure(constant("codes", loud), loud)
    expected = ((loud.fmri - KNOWN.mean["fmri"]) ** 2).mean() / KNOWN.variance["fmri"]
    assert found.losses["fmri"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 50


def test_the_unit_of_the_report_gives_sound_nearly_all_of_the_loss_and_variance_gives_it_a_quarter():
    """Report 002: stds .25 video, 295 codes, .018 text, .5 fMRI: predict-the-mean scores the std, not 1."""
    stds = {"video": 0.25, "text": 0.018, "fmri": 0.5}
    uniform = torch.full((8, 1024), 1 / 1024)
    known = TargetStatistics(
        mean={name: torch.zeros(4) for name in stds},
        variance={name: std**2 for name, std in stds.items()},
        std=stds,
        unigram=uniform,
        num_trs=756,
    )
    codes = torch.arange(1024).repeat(8, 1).T.contiguous()
    half = torch.tensor([1.0, -1, 1, -1]).expand(1024, -1)
    batch = FilmBatch(
        video=half, video_target=0.25 * half, audio=codes, text=0.018 * half, fmri=0.5 * half
    )  # mean 0, exactly these stds
    said = Said(torch.zeros(1024, 4), torch.zeros(1024, 4), torch.full((1024, 8), 511.5), torch.zeros(1024, 4))
    original = FilmLoss(FilmLossSettings(mode="std"), known, "scalar")(said, batch)
    code_std = math.sqrt((1024**2 - 1) / 12)
    assert {name: loss.item() for name, loss in original.losses.items()} == pytest.approx(
        {**stds, "audio": code_std}, rel=1e-5
    )
    assert original.losses["audio"] / original.total > 0.997
    assert original.losses["fmri"] / original.total < 0.0017
    ours = FilmLoss(FilmLossSettings(), known, "scalar")(said, batch)
    assert ours.losses["audio"] / ours.total == pytest.approx(0.25, abs=1e-5)


def test_codes_are_measured_against_their_training_frequencies_by_book():
    expected = sum(-(row[row > 0] * row[row > 0].log()).sum().item() for row in KNOWN.unigram.double()) / BOOKS
    assert unigram_cross_entropy(KNOWN.unigram) == pytest.approx(expected)
    uniform = torch.full((BOOKS, CODES), 1 / CODES)
    assert unigram_cross_entropy(uniform) == pytest.approx(math.log(CODES))
    blind = constant("codes")._replace(audio_recon=torch.zeros(64, BOOKS * PER_BOOK, CODES))
    found = FilmLoss(FilmLossSettings(), KNOWN)(blind, TRAIN)
    assert found.losses["audio"].item() == pytest.approx(math.log(CODES) / expected, rel=1e-5)
    assert found.losses["audio"] > 1, "who does not even know the frequencies is worse than a constant"


def test_codes_as_numbers_have_the_spread_of_the_codes_themselves():
    books = TRAIN.audio.view(-1, BOOKS, PER_BOOK).transpose(0, 1).flatten(1).double().numpy()
    variance, std = code_spread(KNOWN.unigram)
    assert variance == pytest.approx(books.var(1).mean(), rel=1e-6)
    assert std == pytest.approx(books.std(), rel=1e-6)


def test_padded_books_are_worth_a_constant_so_the_report_s_best_is_worse_than_one():
    """Half of the 8 books were zeros: the best constant per place then scores about 132 in MSE / std."""
    half = torch.zeros(8, 1024)
    half[:4], half[4:, 0] = 1 / 1024, 1.0
    variance, std = code_spread(half)
    assert variance / std == pytest.approx(132, abs=1)
    assert variance / std < 167.15


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [("mse", "normalized", 1.0), ("mse", "std", 1.0), ("mae", "normalized", 1.0), ("mae", "std", 0.798)],
)
def test_the_mean_of_gaussian_voxels_scores(kind, mode, expected):
    voxels = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    batch = FilmBatch(**{**vars(film(2000)), "fmri": voxels})
    known = replace(KNOWN, variance={**KNOWN.variance, "fmri": 1.0}, std={**KNOWN.std, "fmri": 1.0})
    said = constant("codes", batch)._replace(predicted_fmri=torch.zeros(2000, 40))
    found = FilmLoss(FilmLossSettings(mode=mode, fmri_loss=kind), known)(said, batch)
    assert found.losses["fmri"].item() == pytest.approx(expected, abs=0.01)


def test_the_correlation_loss_is_one_for_a_constant_zero_for_the_truth_and_two_for_its_opposite():
    measure = FilmLoss(FilmLossSettings(fmri_loss="correlation"), KNOWN)
    for prediction, expected in ((torch.ones(64, 40), 1.0), (3 * TRAIN.fmri + 2, 0.0), (-TRAIN.fmri, 2.0)):
        found = measure(constant("codes")._replace(predicted_fmri=prediction), TRAIN)
        assert found.losses["fmri"].item() == pytest.approx(expected, abs=1e-5)


def test_names_of_the_metrics_and_their_weighted_sums():
    settings = FilmLossSettings(video_weight=2.0, text_weight=0.5, fmri_weight=3.0)
    found = FilmLoss(settings, KNOWN)(noisy(), TRAIN)
    loss = {name: value.item() for name, value in found.losses.items()}
    film_part = 2 * loss["video"] + loss["audio"] + 0.5 * loss["text"]
    assert found.metrics["reconstruction_loss"].item() == pytest.approx(film_part, rel=1e-5)
    assert found.metrics["total_loss"].item() == pytest.approx(film_part + 3 * loss["fmri"], rel=1e-5)
    assert found.metrics["fmri_loss"].item() == loss["fmri"]
    assert found.metrics["fmri_loss_raw"].item() == pytest.approx(loss["fmri"] * KNOWN.variance["fmri"], rel=1e-5)
    names = {f"{name}_{kind}" for name in loss for kind in ("loss", "loss_raw")}
    assert set(found.metrics) == names | {"reconstruction_loss", "total_loss"}
    assert not any(value.requires_grad or value.ndim for value in found.metrics.values())


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
def test_values_of_trs_add_up_to_the_losses_in_any_split(audio_output):
    said = noisy(audio_output)
    whole = per_tr(said, TRAIN, audio_output)
    assert all(value.shape == (64,) for value in whole.values())
    pieces = []
    for rows in (slice(0, 10), slice(10, 64)):
        part = FilmBatch(**{name: value[rows] for name, value in vars(TRAIN).items()})
        pieces.append(per_tr(Said(*(value[rows] for value in said)), part, audio_output))
    losses = FilmLoss(FilmLossSettings(), KNOWN, audio_output)(said, TRAIN)
    for name, values in whole.items():
        torch.testing.assert_close(torch.cat([piece[name] for piece in pieces]), values)
        assert values.mean().item() == pytest.approx(losses.raw[name].item(), rel=1e-6)


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
def test_what_codes_cost_the_constant_are_the_costs_of_its_predictions(audio_output):
    held_out = film(20, seed=9)
    expected = per_tr(constant(audio_output, held_out), held_out, audio_output)["audio"]
    torch.testing.assert_close(constant_costs(held_out.audio, KNOWN.unigram, audio_output), expected)


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
@pytest.mark.parametrize("kind", ["mse", "correlation"])
def test_gradients_are_those_of_finite_differences(audio_output, kind):
    rows = 3
    batch = FilmBatch(**{name: value[:rows] for name, value in vars(TRAIN).items()})
    said = [value[:rows].double().requires_grad_() for value in noisy(audio_output)]
    measure = FilmLoss(FilmLossSettings(fmri_loss=kind), KNOWN, audio_output)
    assert torch.autograd.gradcheck(lambda *values: measure(Said(*values), batch).total, said)


def test_predictions_of_bfloat16_are_compared_in_float32():
    said = Said(*(value.bfloat16() for value in noisy()))
    found = FilmLoss(FilmLossSettings(), KNOWN)(said, TRAIN)
    assert all(value.dtype == torch.float32 for value in (found.total, *found.losses.values(), *found.metrics.values()))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("predicted_fmri", torch.zeros(64, 39)),
        ("predicted_fmri", torch.zeros(63, 40)),
        ("video_recon", torch.zeros(64, 24)),  # all pictures of a TR where one is to be shown
        ("text_recon", torch.zeros(64, 1)),  # would broadcast
        ("audio_recon", torch.zeros(64, BOOKS * PER_BOOK)),  # numbers where logits belong
        ("audio_recon", torch.zeros(64, PER_BOOK, CODES)),
    ],
)
def test_a_size_that_differs_is_an_error_and_never_a_slice(name, wrong):
    with pytest.raises(ValueError, match=rf"{name} is \[6.*nothing is cut to fit"):
        FilmLoss(FilmLossSettings(), KNOWN)(noisy()._replace(**{name: wrong}), TRAIN)


def test_a_constant_target_is_refused_by_name_until_its_weight_is_zero():
    silent = replace(KNOWN, variance={**KNOWN.variance, "text": 0.0})
    with pytest.raises(ValueError, match=r"text is constant over the 64 training TRs.*loss\.text_weight to 0"):
        FilmLoss(FilmLossSettings(), silent)
    found = FilmLoss(FilmLossSettings(text_weight=0), silent)(noisy(), TRAIN)
    assert "text" not in found.losses
    assert "text_loss" not in found.metrics
    assert found.total.isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "snr"}, r"loss\.mode is 'snr'; allowed: normalized, std"),
        ({"fmri_loss": "cosine"}, r"loss\.fmri_loss is 'cosine'; allowed: mse, mae, correlation"),
        ({"audio_weight": -1.0}, r"loss\.audio_weight must be a number of at least 0; found -1"),
        ({"audio_weight": math.nan}, "found nan"),
        (dict.fromkeys([f"{name}_weight" for name in ("video", "audio", "text", "fmri")], 0.0), "every weight"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FilmLossSettings(**settings)


def test_correlations_are_scipy_s_over_voxels_and_over_time():
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(9, 30, generator=generator, dtype=torch.float64)
    second = 0.4 * first + torch.randn(9, 30, generator=generator, dtype=torch.float64) + 7
    by_tr = [scipy_stats.pearsonr(a, b).statistic for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    by_voxel = [scipy_stats.pearsonr(a, b).statistic for a, b in zip(first.T.numpy(), second.T.numpy(), strict=True)]
    assert compute_correlation_metric(first, second).tolist() == pytest.approx(by_tr)
    assert compute_correlation_metric(first, second, dim=0).tolist() == pytest.approx(by_voxel)


def test_r2_is_sklearn_s():
    generator = torch.Generator().manual_seed(4)
    truth = torch.randn(6, 30, generator=generator, dtype=torch.float64) + 2
    said = truth + 0.5 * torch.randn(6, 30, generator=generator, dtype=torch.float64)
    expected = [r2_score(a, b) for a, b in zip(truth.numpy(), said.numpy(), strict=True)]
    assert compute_r2_score(said, truth).tolist() == pytest.approx(expected)
    assert compute_r2_score(truth.mean(1, keepdim=True).expand(-1, 30), truth).abs().max() < 1e-12


@pytest.mark.parametrize("level", [0.0, 0.1, 1000.1])
def test_constant_rows_correlate_with_nothing_and_send_no_nan_back(level):
    said = torch.full((2, 100), level)
    said[1] = torch.linspace(-1, 1, 100)
    said.requires_grad_()
    truth = torch.linspace(-1, 1, 100).repeat(2, 1)
    found = compute_correlation_metric(said, truth)
    assert found.tolist() == pytest.approx([0, 1], abs=1e-6)
    found.sum().backward()
    assert said.grad.isfinite().all()
    assert compute_r2_score(truth, torch.full((2, 100), level)).tolist() == [0, 0]


def test_a_nan_in_a_prediction_is_not_hidden():
    said = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    said[0, 3] = math.nan
    found = compute_correlation_metric(said, torch.arange(20.0).view(2, 10))
    assert found.isnan().tolist() == [True, False]
