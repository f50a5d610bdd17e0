"""What is known of an encoder -> the README.md of its Hugging Face folder: data, duties, limits, evidence, how to load.

Nothing that names a place or a person goes in: no paths, no buckets, no machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined

from oct_foundation.models.encoder import VOXEL_MEAN, VOXEL_STD
from oct_foundation.models.vjepa2_weights import obstacles
from oct_foundation.models.vjepa3d import PRESETS
from pretraining.encoder_file import PREDICTOR, SavedWeights
from pretraining.label_table import PHANTOMS
from pretraining.report.facts import facts_of
from pretraining.report.gather import RunRecord, gather
from pretraining.report.probe_files import newest_of_each
from pretraining.report.probe_table import ProbeGroup, groups_of
from pretraining.report.verdict import judgement_of

_TEMPLATE = "model_card.md.jinja"
# What a reader can do something with, of the dozens that a checkpoint holds.
_METRICS = {
    "train/loss": "training loss; says nothing by itself",
    "val/loss": "loss on held-out volumes; says nothing by itself",
    "diag/pos_ratio": "error over that of the average scan, held out; below 1: knows the eye",
    "diag/foreground_pos_ratio": "the same, on patches that show tissue",
    "diag/pooled_std": "spread of the pooled features over volumes",
    "diag/token_cosine": "likeness of patches of one volume; near 1: collapsed",
    "diag/rankme_pooled": "effective number of dimensions of the pooled features",
}
_PUBLISHED = ("Data", "Model", "Training", "Versions")  # of the run's facts; its machine is nobody's business


@dataclass(frozen=True, kw_only=True)
class CardProbes:
    """Scores on one data set of the weights after `step` updates; acquaintance: whether these were pretrained on it."""

    data: str
    step: int
    acquaintance: str
    groups: list[ProbeGroup]


def model_card(saved: SavedWeights) -> str:
    """The card as Markdown with a YAML header; verdict, metrics and probes where the run folder has them."""
    text = resources.files("pretraining").joinpath(_TEMPLATE).read_text()
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    run = _record(saved)
    config, sizes = saved.config, PRESETS[saved.config.preset]
    return environment.from_string(text).render(
        step=saved.step,
        config=config,
        sizes=sizes,
        num_patches=config.grid.num_patches,
        source=saved.run_config.get("data", {}).get("source"),
        obstacles=obstacles(config),
        has_predictor=bool(saved.part(PREDICTOR)),
        mean=VOXEL_MEAN,
        std=VOXEL_STD,
        facts=[(title, rows) for title, rows in facts_of(run) if title in _PUBLISHED] if run else [],
        judgement=judgement_of(run) if run and run.readings else None,
        metrics=[
            (name, value, text) for name, text in _METRICS.items() if (value := saved.metrics.get(name)) is not None
        ],
        probes=list(_probes(run, saved.step)) if run else [],
    )


def _record(saved: SavedWeights) -> RunRecord | None:
    return gather(saved.run_folder) if saved.run_folder is not None else None


def _probes(run: RunRecord, step: int) -> Iterator[CardProbes]:
    """Of the weights that are exported; where these were never probed, the newest of each data set.

    Data sets get numbers: their names are folders, which may name a clinic.
    """
    files = newest_of_each([file for file in run.probes if file.step == step] or run.probes)
    own_data = [file.data for file in files if file.data != PHANTOMS]
    for file in files:
        groups, _ = groups_of(file.rows)
        if file.data == PHANTOMS:
            name = "Generated eyes (phantoms)"
        else:
            split = f", {file.split}" if file.split else ""
            name = f"Data set {list(dict.fromkeys(own_data)).index(file.data) + 1}{split}"
        if groups:
            yield CardProbes(data=name, step=file.step, acquaintance=file.acquaintance, groups=groups)
