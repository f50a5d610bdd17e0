"""A small film and network, and predictions of models that know everything or nothing."""

from dataclasses import replace

import numpy as np

from data_setup.neuro.film_phantom import FilmPhantomSettings
from oct_foundation.film import CONTINUOUS
from pretraining.autoencoder_config import AutoencoderRunConfig, AutoencoderSection, FilmSection
from pretraining.reconstruct.samples import Predictions
from pretraining.sections import CheckpointSection


def small_config(
    *, mode: str = "cross_subject", audio_output: str | None = None, **checkpoint: object
) -> AutoencoderRunConfig:
    film = FilmPhantomSettings(num_trs=160, num_subjects=3, voxels=10, height=4, width=6, text_dim=8)
    known: dict = {"best_metric": "diag/score", "best_mode": "max"} | checkpoint
    return AutoencoderRunConfig(
        name="films",
        data=FilmSection(phantom=film, gap_trs=5, mode=mode),  # type: ignore[arg-type]
        model=AutoencoderSection(preset="tiny", audio_output=audio_output),  # type: ignore[arg-type]
        checkpoint=CheckpointSection(**known),
    )


def perfect(predictions: Predictions) -> Predictions:
    return replace(
        predictions,
        prediction=predictions.truth,
        said_codes=predictions.codes,
        code_costs=np.zeros_like(predictions.code_costs),
    )


def constant(predictions: Predictions) -> Predictions:
    said = {name: np.broadcast_to(predictions.mean[name], predictions.truth[name].shape) for name in CONTINUOUS}
    codes = np.broadcast_to(predictions.common_codes, predictions.codes.shape)
    return replace(predictions, prediction=said, said_codes=codes, code_costs=predictions.constant_costs)
