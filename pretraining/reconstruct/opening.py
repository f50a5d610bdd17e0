"""A saved autoencoder run -> the model of one checkpoint on the film that it was trained on, and why that checkpoint.

The configuration is the checkpoint's own. A film that is not the one of the training TRs is refused: its held-out TRs
could have been trained on, and every figure would flatter.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data_setup.neuro.film_data import Film
from data_setup.neuro.film_dataset import FilmDataset
from oct_foundation.checkpoints.catalog import State
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import Manifest
from oct_foundation.checkpoints.retention import CheckpointSettings, ranked
from oct_foundation.checkpoints.store import Corrupt, NotFound
from oct_foundation.film import CONTINUOUS
from oct_foundation.models.film_model import FilmModel
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import ConfigError, load_as
from pretraining.encoder_file import load_strictly
from pretraining.saved_run import SavedRun, open_run
from pretraining.tasks.autoencoder import AutoencoderTask

log = logging.getLogger("octfm")

_SAME = 1e-4  # of a mean's or variance's size: the same arithmetic on another machine differs in the 7th digit


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """model: in eval mode on the CPU. which: why this checkpoint, in words. folder: the run's, where it is here."""

    task: AutoencoderTask
    model: FilmModel
    name: str
    step: int
    which: str
    folder: Path | None


def open_autoencoder(source: str, data: Path | None = None, cache: Path | None = None) -> OpenedRun:
    """`source`: a run folder, its checkpoints, one of them, or gs://...; data: where its film lies now, if elsewhere;
    cache: where what is derived from it goes, if not where the run had it.

    Raises ValueError for another task's run, one without a checkpoint, and a film that is missing or another one.
    """
    run = open_run(source)
    state, manifest, which = _chosen(run, source)
    config = parse_config(manifest.facts.get("config", {}), source)
    config = _moved(config, data, cache)
    try:
        task = AutoencoderTask(config)
    except ConfigError as error:
        hint = "" if config.data.path is None else "; if the film has moved, say where to: --data DIR"
        raise ValueError(f"the film of {source} cannot be read: {error}{hint}") from None
    model = task.objective.build_model()
    assert isinstance(model, FilmModel)
    load_strictly(model, state.get("model", {}), source)
    check_same_film(model, task.film, source)
    if not str(manifest.facts.get("data", "")).endswith(FilmDataset(task.film, "train").fingerprint()):
        log.warning("the film of %s is not bit for bit that of the run; its statistics are", source)
    return OpenedRun(
        task=task, model=model.eval(), name=config.name, step=manifest.step, which=which, folder=run.folder
    )


def _chosen(run: SavedRun, source: str) -> tuple[State, Manifest, str]:
    """The checkpoint that is named; else the best one by the run's metric that is intact; else the newest intact."""
    manager = CheckpointManager(run.store, CheckpointSettings(), run_id="", may_quarantine=False)
    try:
        if run.name is not None:
            return *_found(manager.restore(run.name), source), "the one named"
        sound = [one.manifest for one in manager.survey(verify=False) if one.manifest and not one.trouble]
        settings = _settings(sound)
        for best in ranked(sound, settings):
            try:
                state, manifest = _found(manager.restore(best.name), source)
            except (Corrupt, NotFound) as error:
                log.warning("step %d, the best, is damaged (%s); the next is taken", best.step, error)
                continue
            value = manifest.metrics[str(settings.best_metric)]
            return state, manifest, f"the best of {len(sound)} by {settings.best_metric}: {value:.4g}"
        return *_found(manager.restore(), source), f"the newest of {len(sound)}; none is known to be the best"
    except (Corrupt, NotFound) as error:
        raise ValueError(str(error)) from error


def _found(restored: tuple[State, Manifest] | None, source: str) -> tuple[State, Manifest]:
    if restored is None:
        raise ValueError(
            f"{source} holds no checkpoint; the run has not saved one yet. Give a run folder, a checkpoint in it, or "
            "gs://bucket/prefix"
        )
    return restored


def _settings(manifests: list[Manifest]) -> CheckpointSettings:
    """By what the run chooses its best, as its newest checkpoint says."""
    own: Mapping[str, Any] = manifests[-1].facts.get("config", {}).get("checkpoint", {}) if manifests else {}
    return CheckpointSettings(**{name: own[name] for name in ("best_metric", "best_mode") if name in own})


def parse_config(values: Mapping[str, Any], source: str) -> AutoencoderRunConfig:
    """The configuration that a checkpoint holds; raises ValueError where it is of another task or version."""
    task = values.get("task", "vjepa")
    if task != "autoencoder":
        raise ValueError(
            f"{source} is a run of task {task}: it shows nothing again; octfm reconstruct is for task autoencoder, "
            "octfm report and octfm health are for every run"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"  # JSON is YAML
        path.write_text(json.dumps(values))
        try:
            return load_as(AutoencoderRunConfig, path)
        except ConfigError as error:
            said = str(error).replace(f"{path}: ", "")
            raise ValueError(f"{source}: its configuration is of another version of octfm: {said}") from None


def _moved(config: AutoencoderRunConfig, data: Path | None, cache: Path | None) -> AutoencoderRunConfig:
    if data is not None and config.data.source == "phantom":
        raise ValueError("--data names a folder, but the film of this run is generated; leave it out")
    film = config.data
    path, cache_dir = str(data) if data else film.path, str(cache) if cache else film.cache_dir
    return dataclasses.replace(config, data=dataclasses.replace(film, path=path, cache_dir=cache_dir))


def check_same_film(model: FilmModel, film: Film, source: str) -> None:
    """Raises ValueError where the film's training TRs are not those whose statistics are saved in the model."""
    trained, found = model.statistics, film.statistics
    pairs = {f"mean of {name}": (trained.mean[name], found.mean[name]) for name in CONTINUOUS}
    pairs["frequencies of codes"] = (trained.unigram, found.unigram)
    for row, name in enumerate(CONTINUOUS):  # the mean of a z-scored brain is 0 whoever's it is
        pairs[f"variance of {name}"] = (model.get_buffer("scales")[row, 0], torch.tensor(found.variance[name]))
    differing = [what for what, (one, other) in pairs.items() if not torch.allclose(one, other, _SAME, _SAME)]
    if differing:
        raise ValueError(
            f"the film is not the one that {source} was trained on: its training TRs have another "
            f"{', '.join(differing)}. Its held-out TRs may have been trained on; give the run's film with --data DIR"
        )
