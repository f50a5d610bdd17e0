"""When a run is looked at, what is found, and what follows: readings for the record, findings for the log, an alarm.

A reading is logged as `diag/...`; what it means is decided from logged numbers alone (oct_foundation/diagnostics), so
that a report says the same of a crashed run.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from data_setup.datasets import PreparedVolumes
from data_setup.index import PreparedSet
from data_setup.masking import MaskGenerator
from data_setup.phantom import labels_file
from oct_foundation.batch import JEPABatch
from oct_foundation.diagnostics.collapse import domain_slug, measure
from oct_foundation.diagnostics.findings import Finding, Reading
from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.diagnostics.quick_probe import quick_probe
from oct_foundation.diagnostics.readings import PREFIX, readings_of
from oct_foundation.diagnostics.verdicts import Judgement, judge
from oct_foundation.losses.latent import latent_loss
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Runtime
from oct_foundation.tracking.jsonl import read_rows
from pretraining.config import ConfigError, RunConfig
from pretraining.held_out import NUM_VIEWS, HeldOut
from pretraining.label_table import patients_in_files, read_labels
from pretraining.observe import VJEPAObserver, input_statistics, movements
from pretraining.pictures import write_pictures
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState

# A reading of a volume costs a forward pass of teacher and student over all tokens and one as in training: measured
# about as much as a training step of that volume (docs/performance.md). Readings may take this share of the time.
MAX_SHARE = 0.02
PHANTOMS = "phantoms"
MIN_VOLUMES = 16  # for a probe without labels
COUNTS: dict[str, LabelKind] = {"drusen_count": "values"}  # of phantoms: few different numbers, and no classes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeLabels:
    """Labels of held-out volumes for probes during training: by name, [M], with gaps; groups: the patients;
    kinds: what a label is, where the rule of read_label is wrong.
    """

    columns: Mapping[str, Sequence[object]]
    groups: np.ndarray
    kinds: Mapping[str, LabelKind] = field(default_factory=dict)


@dataclass(kw_only=True)
class Diagnostics:
    """The readings of one run; every rank calls `read` at the same steps, rank 0 judges for all.

    Readings of earlier attempts are taken from the record, so that a resumed run is compared with its own start.
    """

    observer: VJEPAObserver
    held_out: HeldOut
    every_steps: int
    total_steps: int
    warmup_steps: int
    clip_norm: float | None
    record: Path
    pictures: Path
    labels: ProbeLabels | None = None
    readings: list[Reading] = field(default_factory=list)
    _known: set[tuple[str, str]] = field(default_factory=set)
    _norms: list[float] = field(default_factory=list)

    def take_up(self, start_step: int) -> None:
        """The readings up to `start_step` that the record holds."""
        self.readings = [reading for reading in readings_of(read_rows(self.record)) if reading.step <= start_step]
        self._known = {(finding.name, finding.severity) for finding in self._judge().findings}

    def due(self, step: int) -> bool:
        """At the start, every `every_steps`, at the end."""
        return step in (0, self.total_steps) or step % self.every_steps == 0

    def note_gradient(self, norm: float) -> None:
        """A gradient norm that was logged, before the clip."""
        self._norms.append(norm)

    def read(
        self, state: TrainState, runtime: Runtime, scalars: Mapping[str, float], batch: JEPABatch | None = None
    ) -> tuple[dict[str, float], Judgement]:
        """The reading at this step, named for the record, and what all readings together say; the same on all ranks.

        batch: the last micro-batch of training, on the device.
        """
        model = state.model
        assert isinstance(model, VJEPA3D)
        observation, layer = self.observer.observe(model)
        moved = movements(model, state.optimizer)
        runtime.end_step()
        values = runtime.fetch(moved)
        values |= input_statistics(batch.target_view, runtime) if batch is not None else {}
        values |= {f"grad_norm/{domain_slug(name)}": norm for name, norm in self.observer.gradient_norms(model).items()}
        found: tuple[dict[str, float], Judgement] | None = None
        if runtime.rank == 0:
            kind = model.config.loss
            values |= measure(observation, lambda prediction, target: latent_loss(prediction, target, kind))
            values |= {name: scalars[name] for name in ("learning_rate", "ema_momentum")}
            values |= (
                self._clipped() | self._legible(observation.pooled.numpy()) | self._probed(observation.pooled.numpy())
            )
            write_pictures(self.pictures, state.step, self.held_out, layer)
            reading = Reading(step=state.step, values=values)
            self.readings = [other for other in self.readings if other.step != state.step] + [reading]
            found = values, self._judge()
        agreed = runtime.gather(found)[0]
        self._tell(agreed[1].findings)
        return {f"{PREFIX}{name}": value for name, value in agreed[0].items()}, agreed[1]

    def _judge(self) -> Judgement:
        return judge(self.readings, warmup_steps=self.warmup_steps, total_steps=self.total_steps)

    def _clipped(self) -> dict[str, float]:
        """Share of the logged updates since the last reading whose gradient was clipped."""
        norms, self._norms = self._norms, []
        if not norms or self.clip_norm is None:
            return {}
        return {"clipped_share": sum(norm > self.clip_norm for norm in norms) / len(norms)}

    def _legible(self, pooled: np.ndarray) -> dict[str, float]:
        """`scan_r2`: how much of what tells scans apart can be read off their features, mean R2 over the components.

        A probe without labels, and without a look at the predictor: random features have some of it, dead ones little.
        """
        if len(pooled) < MIN_VOLUMES or len(pooled) != self.held_out.num_volumes:
            return {}
        columns = {str(number): column for number, column in enumerate(self.held_out.components.T)}
        scores = quick_probe(pooled, columns, self.held_out.ids, dict.fromkeys(columns, "values"))
        return {"scan_r2": float(np.mean(list(scores.values())))}

    def _probed(self, pooled: np.ndarray) -> dict[str, float]:
        """`probe/<label>` now, and `probe_init/<label>` as it was at the start, with the encoder at random."""
        if self.labels is None:
            return {}
        scores = quick_probe(pooled, self.labels.columns, self.labels.groups, self.labels.kinds)
        scores = {name: score for name, score in scores.items() if math.isfinite(score)}
        first = self.readings[0].values if self.readings else {}
        start = {name: first.get(f"probe_init/{name}", score) for name, score in scores.items()}
        return {f"probe/{name}": score for name, score in scores.items()} | {
            f"probe_init/{name}": score for name, score in start.items()
        }

    def _tell(self, findings: Sequence[Finding]) -> None:
        """Each finding once, when it first comes up."""
        for finding in findings:
            if (finding.name, finding.severity) not in self._known:
                self._known.add((finding.name, finding.severity))
                say = log.info if finding.severity == "info" else log.warning
                say("step %d: %s: %s %s", finding.step, finding.name, finding.evidence, finding.remedy)


def build_diagnostics(
    config: RunConfig, prepared: PreparedSet, model: nn.Module, runtime: Runtime, *, total_steps: int, folder: RunFolder
) -> Diagnostics | None:
    """What looks at a run through its validation volumes; None, with one log line, where there are too few."""
    settings, batch_size = config.diagnostics, config.batch.per_core_batch_size
    volumes = PreparedVolumes(prepared, "val", config.data.select)
    if len(volumes) < 2:
        log.warning("diagnostics are off: there are %d validation volumes; raise data.val_fraction", len(volumes))
        return None
    masks = MaskGenerator(config.grid, config.mask)
    held_out = HeldOut(volumes, masks, num_volumes=settings.num_volumes, seed=config.seed)
    assert isinstance(model, VJEPA3D)
    every_steps = settings.every_steps or default_interval(
        num_volumes=held_out.num_volumes,
        width=model.embed_dim,
        num_domains=len(set(held_out.domains)),
        batch_size=batch_size,
        global_batch=config.batch.global_batch_size,
    )
    log.info("diagnostics on %d held-out volumes, every %d steps", held_out.num_volumes, every_steps)
    return Diagnostics(
        observer=VJEPAObserver(held_out, runtime, batch_size=batch_size, precision=config.train.precision),
        held_out=held_out,
        every_steps=every_steps,
        total_steps=total_steps,
        warmup_steps=config.optim.warmup_steps,
        clip_norm=config.optim.clip_norm,
        record=folder.metrics,
        pictures=folder.pictures,
        labels=_labels(config, prepared, held_out, folder),
    )


def _labels(config: RunConfig, prepared: PreparedSet, held_out: HeldOut, folder: RunFolder) -> ProbeLabels | None:
    """What `diagnostics.labels` names, of the held-out volumes; raises ConfigError where it cannot be used."""
    wanted, data = config.diagnostics.labels, config.data
    if wanted is None:
        return None
    if wanted == PHANTOMS:
        if data.source != "phantom":
            raise ConfigError(f"diagnostics.labels={PHANTOMS} needs data.source=phantom; found {data.source}")
        cache = Path(data.cache_dir) if data.cache_dir else folder.prepared
        wanted = str(labels_file(cache / "phantom-dicom", data.phantom))
    try:
        table = read_labels(wanted, prepared, held_out.ids, [])
        columns = {name: column for name, column in table.columns.items() if name != table.id_column}
        groups = np.array(patients_in_files(prepared, held_out.ids))
        usable = {name: column for name, column in columns.items() if _can_be_probed(name, column, groups)}
    except ValueError as error:
        raise ConfigError(f"diagnostics.labels: {error}") from None
    if not usable:
        raise ConfigError(f"diagnostics.labels={wanted}: no column has two values among {len(groups)} held-out volumes")
    log.info("probes during training: %s", ", ".join(usable))
    return ProbeLabels(columns=usable, groups=groups, kinds=COUNTS)


def _can_be_probed(name: str, column: Sequence[object], groups: np.ndarray) -> bool:
    """Whether a column says different things of enough patients; one that does not is left out, with a log line."""
    try:
        quick_probe(np.zeros((len(groups), 1)), {name: column}, groups, COUNTS)
    except ValueError as error:
        log.info("%s", error)
        return False
    return True


def default_interval(*, num_volumes: int, width: int, num_domains: int, batch_size: int, global_batch: int) -> int:
    """Updates between readings so that they take MAX_SHARE of the time; costs in training steps of one volume.

    One for a look at a volume, a seventh for one of its masked views (the context is a fraction of the tokens, and
    nothing flows back), three thirds for the gradient of a maker's batch.
    """
    views = min(width // (NUM_VIEWS - 1) + 1, num_volumes) * NUM_VIEWS / 7
    gradients = num_domains * batch_size if num_domains > 1 else 0
    return math.ceil((num_volumes + views + gradients) / global_batch / MAX_SHARE)
