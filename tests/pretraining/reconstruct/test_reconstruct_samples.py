"""What a model says of every TR, held against the losses of training, and scores of perfect and constant models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_setup.neuro.film_dataset import FilmDataset
from oct_foundation.film import CONTINUOUS
from oct_foundation.losses.normalized import constant_costs, per_tr, unigram_cross_entropy
from pretraining.reconstruct.overview import wholes
from pretraining.reconstruct.samples import book_scores, cosine, predict, r_over_time, scores, spread_over
from pretraining.tasks.autoencoder import AutoencoderTask
from tests.pretraining.reconstruct.film_runs import constant, perfect, small_config


@pytest.mark.parametrize("audio_output", ["codes", "scalar"])
def test_errors_and_costs_are_those_of_the_training_losses(audio_output):
    task = AutoencoderTask(small_config(audio_output=audio_output))
    model = task.objective.build_model().eval()
    data = FilmDataset(task.film, "val")
    found = predict(model, data, batch_size=7, device="cpu", bf16=False)
    batch = data.batch(range(len(data)))
    with torch.no_grad():
        output = model.network(batch.video, batch.audio, batch.text, batch.fmri)
    errors = per_tr(output, batch, audio_output)
    statistics, targets = task.film.statistics, {"video": batch.video_target, "text": batch.text, "fmri": batch.fmri}
    for name in CONTINUOUS:
        variance, of_mean = statistics.variance[name], (targets[name] - statistics.mean[name]).square().mean(1)
        np.testing.assert_allclose(found.fvu(name) * variance, errors[name], rtol=1e-4)
        np.testing.assert_allclose(found.mean_fvu(name) * variance, of_mean, rtol=1e-4)
    np.testing.assert_allclose(found.code_costs.mean(1), errors["audio"], rtol=1e-4)
    by_frequency = constant_costs(batch.audio, statistics.unigram, audio_output)
    np.testing.assert_allclose(found.constant_costs.mean(1), by_frequency, rtol=1e-4)
    quarter = len(data) // 4
    moved = replace(batch, audio=batch.audio[np.roll(np.arange(len(data)), -quarter)])
    np.testing.assert_allclose(found.shifted_costs, per_tr(output, moved, audio_output)["audio"], rtol=1e-4)


def test_on_the_training_trs_the_constant_has_an_fvu_of_one_and_codes_cost_their_entropy():
    task = AutoencoderTask(small_config(mode="per_subject"))
    found = predict(
        task.objective.build_model(), FilmDataset(task.film, "train"), batch_size=64, device="cpu", bf16=False
    )
    for name in CONTINUOUS:
        assert found.mean_fvu(name).mean() == pytest.approx(1, rel=1e-4)
    entropy = unigram_cross_entropy(task.film.statistics.unigram)
    assert found.constant_costs.mean() == pytest.approx(entropy, rel=0.02)  # frequencies are smoothed


def test_the_order_is_that_of_the_data_whatever_the_batch(held_out, film_run):
    task = AutoencoderTask(small_config())
    data = FilmDataset(task.film, "val")
    assert list(held_out.trs) == task.film.val.tolist()
    assert held_out.names[0] == f"TR {task.film.val[0]}"
    np.testing.assert_array_equal(held_out.truth["fmri"], task.film.fmri[task.film.val])
    assert len(held_out) == len(data)


def test_a_perfect_model_scores_nothing_wrong_and_the_constant_scores_as_the_constant(held_out):
    for found in (scores(perfect(held_out), 3), scores(perfect(held_out), 0)):
        values = {(name, score.what): score.model for name, group in found.items() for score in group}
        assert values == pytest.approx(
            {("video", "FVU"): 0, ("text", "FVU"): 0, ("text", "cosine"): 1, ("fmri", "FVU"): 0,
             ("fmri", "r over voxels"): 1, ("audio", "right codes"): 1, ("audio", "cross-entropy"): 0}
        )  # fmt: skip
    for group in scores(constant(held_out), 3).values():
        for score in group:
            assert score.model == pytest.approx(score.constant, abs=1e-9)


def test_scores_of_books_average_to_the_score_of_the_sound(held_out):
    books = [book_scores(held_out, 2, book) for book in range(held_out.shape.codebooks)]
    for whole, parts in zip(scores(held_out, 2)["audio"], zip(*books, strict=True), strict=True):
        assert np.mean([part.model for part in parts]) == pytest.approx(whole.model)
        assert np.mean([part.constant for part in parts]) == pytest.approx(whole.constant)


def test_the_skill_of_the_constant_is_none_and_that_of_a_perfect_model_is_all_there_is(held_out):
    for whole in wholes(constant(held_out)):
        assert whole.skill == pytest.approx(0, abs=1e-6)
    for whole in wholes(perfect(held_out)):
        assert (whole.model, whole.skill) == (0, whole.constant)
    assert [whole.name for whole in wholes(held_out)] == ["video", "audio", "text", "fmri"]


def test_samples_come_from_the_middles_of_equal_stretches_and_subjects_take_turns(held_out):
    one = FilmDataset(AutoencoderTask(small_config()).film, "val")
    trs = [one.place(number).tr - one.place(0).tr for number in spread_over(one, 4)]
    assert trs == [(2 * i + 1) * len(one) // 8 for i in range(4)]
    assert spread_over(one, len(one)) == list(range(len(one)))
    each = FilmDataset(AutoencoderTask(small_config(mode="per_subject")).film, "val")
    places = [each.place(number) for number in spread_over(each, 4)]
    assert [place.subject for place in places] == [0, 1, 2, 0]
    assert [place.tr - each.place(0).tr for place in places] == trs
    for number in (0, len(one) + 1):
        with pytest.raises(ValueError, match=rf"1 to {len(one)} are allowed"):
            spread_over(one, number)


def test_r_over_time_is_numpys_and_unknown_where_the_truth_stands_still():
    rng = np.random.default_rng(0)
    truth, said = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    truth[:, 2], said[:, 3] = 7.0, 7.0
    found = r_over_time(truth, said)
    for voxel in (0, 1):
        assert found[voxel] == pytest.approx(np.corrcoef(truth[:, voxel], said[:, voxel])[0, 1])
    assert np.isnan(found[2])
    assert found[3] == 0


def test_a_vector_without_direction_has_no_cosine():
    assert cosine(np.zeros(3), np.ones(3)) == 0
    assert cosine(np.array([1, 0]), np.array([-2, 0])) == -1
