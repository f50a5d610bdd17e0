"""When a run is looked at, what is found, and what follows: readings for the record, findings for the log, an alarm.

A reading is logged as `diag/...`; what it means is decided from logged numbers alone (oct_foundation/diagnostics), so
that a report says the same of a crashed run.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oct_foundation.batch import JEPABatch
from oct_foundation.diagnostics.collapse import domain_slug, measure
from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.diagnostics.quick_probe import quick_probe
from oct_foundation.diagnostics.readings import Finding, Reading, readings_of
from oct_foundation.diagnostics.verdicts import Judgement, judge
from oct_foundation.losses.latent import latent_loss
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Runtime
from oct_foundation.tracking.jsonl import read_rows
from pretraining.held_out import HeldOut
from pretraining.observe import Layer, VJEPAObserver, input_statistics, movements
from pretraining.pictures import write_pictures
from pretraining.state import TrainState

MIN_VOLUMES = 16  # for a probe without labels

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
    stop_on_alarm: bool = False
    labels: ProbeLabels | None = None
    readings: list[Reading] = field(default_factory=list)
    _known: set[tuple[str, str]] = field(default_factory=set)
    _norms: list[float] = field(default_factory=list)
    _told_of_disk: bool = False

    def take_up(self, start_step: int, first: Mapping[str, float] | None) -> None:
        """The readings up to `start_step` that the record holds; `first`, the values at step 0, where it lacks them."""
        self.readings = [reading for reading in readings_of(read_rows(self.record)) if reading.step <= start_step]
        if first is not None and not any(reading.step == 0 for reading in self.readings):
            self.readings.insert(0, Reading(step=0, values=first))
        self._known = {(finding.name, finding.severity) for finding in self.judge().findings}

    def due(self, step: int) -> bool:
        """At the start, every `every_steps`, at the end."""
        return step in (0, self.total_steps) or step % self.every_steps == 0

    def note_gradient(self, norm: float) -> None:
        """A gradient norm that was logged, before the clip."""
        self._norms.append(norm)

    def must_stop(self, judgement: Judgement) -> bool:
        """Where the configuration says so, a collapse ends the run."""
        return self.stop_on_alarm and judgement.verdict == "COLLAPSED"

    def enough(self) -> str:
        """The plan decides: a good reading says nothing of the next."""
        return ""

    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Its pictures are for the report."""
        return {}

    def judge(self) -> Judgement:
        """What all readings so far say; on rank 0, which alone has them."""
        return judge(self.readings, warmup_steps=self.warmup_steps, total_steps=self.total_steps)

    def read(
        self, state: TrainState, runtime: Runtime, scalars: Mapping[str, float], batch: JEPABatch | None = None
    ) -> tuple[dict[str, float], Judgement] | None:
        """The reading at this step, and what all readings together say, the same on all ranks; None where a held-out
        volume cannot be read any more.

        batch: the last micro-batch of training, on the device.
        """
        model = state.model
        assert isinstance(model, VJEPA3D)
        if bad := sorted({name for names in runtime.gather(self.observer.unreadable()) for name in names}):
            if runtime.rank == 0:
                log.warning("step %d: no reading, held-out volumes cannot be read: %s", state.step, ", ".join(bad))
            return None
        observation, layer = self.observer.observe(model)
        values = self._moved(model, state, runtime)
        values |= input_statistics(batch.target_view, runtime) if batch is not None else {}
        values |= {f"grad_norm/{domain_slug(name)}": norm for name, norm in self.observer.gradient_norms(model).items()}
        norms, self._norms = self._norms, []
        found: tuple[dict[str, float], Judgement] | None = None
        if runtime.rank == 0:
            kind = model.config.loss
            values |= measure(observation, lambda prediction, target: latent_loss(prediction, target, kind))
            values |= {name: scalars[name] for name in ("learning_rate", "ema_momentum")}
            values |= {"warmup_steps": float(self.warmup_steps), "total_steps": float(self.total_steps)}
            if norms and self.clip_norm is not None:
                values["clipped_share"] = sum(norm > self.clip_norm for norm in norms) / len(norms)
            if bool(torch.isfinite(observation.pooled).all()):
                pooled = observation.pooled.numpy()
                values |= self._legible(pooled) | self._probed(pooled, state.step)
            self._show(state.step, layer)
            reading = Reading(step=state.step, values=values)
            self.readings = [other for other in self.readings if other.step != state.step] + [reading]
            found = values, self.judge()
            self._tell(found[1].findings)
        return runtime.gather(found)[0]

    def _moved(self, model: VJEPA3D, state: TrainState, runtime: Runtime) -> dict[str, float]:
        """Distances and sizes of updates; no update where the last one was skipped, which says nothing of the next."""
        moved = movements(model, state.optimizer)
        runtime.end_step()
        values = runtime.fetch(moved)
        finite = values.pop("finite")
        skipped = state.step > 0 and not finite
        return {name: value for name, value in values.items() if not (skipped and name.startswith("update_ratio/"))}

    def _legible(self, pooled: np.ndarray) -> dict[str, float]:
        """`scan_r2`: how much of what tells scans apart can be read off their features, mean R2 over the components.

        A probe without labels, and without a look at the predictor: random features have some of it, dead ones little.
        """
        columns = {str(number): column for number, column in enumerate(self.held_out.components.T)}
        if len(pooled) < MIN_VOLUMES or not columns:
            return {}
        scores = quick_probe(pooled, columns, self.held_out.ids, dict.fromkeys(columns, "values"))
        return {"scan_r2": float(np.mean(list(scores.values())))}

    def _probed(self, pooled: np.ndarray, step: int) -> dict[str, float]:
        """`probe/<label>` now, and `probe_init/<label>` as it was at step 0, with the encoder at random."""
        if self.labels is None:
            return {}
        scores = quick_probe(pooled, self.labels.columns, self.labels.groups, self.labels.kinds)
        now = {f"probe/{name}": score for name, score in scores.items() if math.isfinite(score)}
        first = next((reading.values for reading in self.readings if reading.step == 0), {}) if step else now
        then = {name: first[name] for name in now if name in first}
        return now | {name.replace("probe/", "probe_init/", 1): score for name, score in then.items()}

    def _show(self, step: int, layer: Layer) -> None:
        """Pictures for the report; a disk that refuses them is one warning."""
        try:
            write_pictures(self.pictures, step, self.held_out, layer)
        except OSError as error:
            if not self._told_of_disk:
                self._told_of_disk = True
                log.warning("the report will lack pictures: %s", error)

    def _tell(self, findings: Sequence[Finding]) -> None:
        """Each finding once, when it first comes up."""
        for finding in findings:
            if (finding.name, finding.severity) not in self._known:
                self._known.add((finding.name, finding.severity))
                say = log.info if finding.severity == "info" else log.warning
                say("step %d: %s: %s %s", finding.step, finding.name, finding.evidence, finding.remedy)
