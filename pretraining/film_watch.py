"""How an autoencoder run is watched: every held-out TR is predicted once, by all ranks together, and judged.

The series go to `evaluation/` (the last, and those of the best score), numbers to the record, a line per reading to
`training.log`, the form that the field's reports quote.
"""

import dataclasses
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oct_foundation.diagnostics.film_verdict import as_values, judge_film
from oct_foundation.diagnostics.learned import ModalityVerdict
from oct_foundation.diagnostics.readings import Reading, readings_of
from oct_foundation.diagnostics.verdicts import Judgement
from oct_foundation.film import AUDIO, CONTINUOUS, FilmBatch
from oct_foundation.losses.balance import gradient_norms
from oct_foundation.models.film_model import FilmModel, named_shares
from oct_foundation.runtime.base import Runtime
from oct_foundation.tracking.jsonl import read_rows
from pretraining.film_naive import Naive
from pretraining.film_series import BEST, FOLDER, LAST, FilmSeries
from pretraining.run_folder import RunFolder
from pretraining.state import TrainState
from pretraining.tasks.autoencoder import AutoencoderTask

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class FilmWatch:
    """Readings of one run; every rank calls `read` at the same steps."""

    task: AutoencoderTask
    runtime: Runtime
    total_steps: int
    every_steps: int
    steps_per_epoch: int
    folder: RunFolder
    readings: list[Reading] = field(default_factory=list)
    _naive: Naive | None = None

    def take_up(self, start_step: int, first: Mapping[str, float] | None) -> None:
        """The readings up to `start_step` that rank 0's record holds: elsewhere there may be none."""
        own = [reading for reading in readings_of(read_rows(self.folder.metrics)) if reading.step <= start_step]
        self.readings = self.runtime.gather(own)[0]

    def due(self, step: int) -> bool:
        """Every `every_steps`, and at the end."""
        return step == self.total_steps or step % self.every_steps == 0

    def note_gradient(self, norm: float) -> None:
        """The verdict does not depend on it."""

    def must_stop(self, judgement: Judgement) -> bool:
        """What has not been learned yet may be."""
        return False

    def enough(self) -> str:
        """Where the score has not improved for so many readings as `evaluation` says."""
        settings = self.task.config.evaluation
        if (patience := settings.early_stopping_patience) is None:
            return ""
        best, since, at = -float("inf"), 0, 0
        for reading in self.readings:
            if reading.step == 0 or (score := reading.values.get("score")) is None:
                continue
            if score > best + settings.early_stopping_delta:
                best, since, at = score, 0, reading.step
            else:
                since += 1
        if since < patience:
            return ""
        return f"the score of held-out TRs has not risen for {since} readings; best {best:.4f} after step {at}"

    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Numbers say it all."""
        return {}

    def judge(self) -> Judgement:
        """What the last reading says."""
        return judge_film(self.readings[-1].values if self.readings else {})

    def read(
        self, state: TrainState, runtime: Runtime, scalars: Mapping[str, float], batch: Any = None
    ) -> tuple[dict[str, float], Judgement]:
        """Values of all held-out TRs, the same on every rank."""
        model = state.model
        assert isinstance(model, FilmModel)
        model.eval()  # nothing is drawn or counted here
        average_running_statistics(model, runtime)
        shares = self._gradient_shares(model, runtime, batch)
        parts = runtime.gather(self._predicted(model, runtime))
        model.train()
        values: dict[str, float] | None = None
        if runtime.rank == 0:
            series = self._series(state.step, parts)
            verdicts = series.verdicts()
            values = as_values(verdicts) | self._loss(model, parts) | shares
            self._write(series, verdicts, values)
            if state.step:
                self._write_line(state.step, values, scalars["learning_rate"])
        found: dict[str, float] = runtime.gather(values)[0]
        self.readings = [*(reading for reading in self.readings if reading.step != state.step)]
        self.readings.append(Reading(step=state.step, values=found))
        return found, self.judge()

    @torch.no_grad()
    def _predicted(self, model: FilmModel, runtime: Runtime) -> dict[str, np.ndarray]:
        """Of this rank's share: numbers of samples, what the model says of them, and what it costs."""
        data, found = self.task.held_out, []
        for numbers, num_real in self.task.held_out_of(runtime.rank, runtime.world_size):
            elsewhere = data.batch([data.moved(number) for number in numbers])
            batch, other = runtime.batches([data.batch(numbers), elsewhere])
            with runtime.autocast(self.task.config.train.precision):
                output = model.network(batch.video, batch.audio, batch.text, batch.fmri)
            said = {"video": output.video_recon, "text": output.text_recon, "fmri": output.predicted_fmri}
            losses = model.film_loss.of_each_tr(output, batch)
            said |= {f"loss/{name}": value for name, value in losses.items()}
            said |= {"model": model.audio_costs(output, batch.audio), "unigram": model.constant_costs(batch.audio)}
            said["shifted"] = model.audio_costs(output, other.audio)
            runtime.end_step()
            kept = {name: value.float().cpu().numpy()[:num_real] for name, value in said.items()}
            found.append(kept | {"number": np.array(numbers[:num_real])})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _series(self, step: int, parts: Sequence[Mapping[str, np.ndarray]]) -> FilmSeries:
        """All ranks' shares in the order of TRs."""
        joined = _joined(parts)
        data, film, trained = self.task.held_out, self.task.film, self.task.config.loss.weights
        places = [data.place(int(number)) for number in joined["number"]]
        truth = data.batch(joined["number"].tolist())
        if self._naive is None:
            self._naive = Naive.of(self.task.film)
        return FilmSeries(
            step=step,
            trs=np.array([place.tr for place in places]),
            runs=np.array([place.subject or 0 for place in places]),
            truth={"video": truth.video_target.numpy(), "text": truth.text.numpy(), "fmri": truth.fmri.numpy()},
            prediction={name: joined[name] for name in CONTINUOUS if name in trained},
            costs={name: joined[name] for name in ("model", "unigram", "shifted")} if AUDIO in trained else {},
            mean={name: mean.numpy() for name, mean in film.statistics.mean.items()},
            variance=dict(film.statistics.variance),
            baselines=self._naive.baselines,
            beside=self._naive.beside,
            ceiling=self._naive.ceiling,
            complete=len(joined["number"]) == len(data),
            leak_free=self.task.config.data.fmri_stats_file is None,
        )

    def _loss(self, model: FilmModel, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """`val_loss`: as `train/total_loss`, of all held-out TRs; each modality's in `val_loss/<name>`."""
        joined, loss = _joined(parts), model.film_loss
        found = {
            f"val_loss/{name}": float(joined[f"loss/{name}"].mean()) / loss.divisors[name] for name in loss.divisors
        }
        weights = loss.settings.weights
        return found | {"val_loss": sum(weight * found[f"val_loss/{name}"] for name, weight in weights.items())}

    def _gradient_shares(self, model: FilmModel, runtime: Runtime, batch: FilmBatch | None) -> dict[str, float]:
        """`grad_share/<modality>`: of the gradient at the bottleneck, which all modalities come through."""
        if batch is None:
            return {}
        with runtime.autocast(self.task.config.train.precision):
            losses, bottleneck = model.losses(batch)
        norms = gradient_norms(losses, [bottleneck])
        fetched = runtime.fetch(named_shares(norms, of="grad_share"))
        runtime.end_step()
        return runtime.mean_over_ranks(fetched)

    def _write(self, series: FilmSeries, verdicts: Sequence[ModalityVerdict], values: Mapping[str, float]) -> None:
        """Series and verdicts; a disk that refuses is a warning, not an end."""
        place = self.folder.path / FOLDER
        before = [reading.values.get("score", -float("inf")) for reading in self.readings if reading.step]
        try:
            series.save(place / LAST)
            if series.step and values.get("score", -float("inf")) > max(before, default=-float("inf")):
                series.save(place / BEST)
            with (place / "verdicts.jsonl").open("a") as file:
                for verdict in verdicts:
                    plain = dataclasses.asdict(verdict) | {"figures": _plain(verdict.figures)}
                    file.write(json.dumps({"step": series.step, **plain}, allow_nan=False) + "\n")
        except OSError as error:
            log.warning("held-out series are not written down: %s", error)

    def _write_line(self, step: int, values: Mapping[str, float], learning_rate: float) -> None:
        """`Epoch 3/50 | Train Loss: ... | Val Loss: ... | fMRI Corr: ... | LR: ...`; Corr is over voxels, per TR."""
        last = max((reading.step for reading in self.readings if reading.step < step), default=0)
        logged = [row for row in read_rows(self.folder.metrics) if "train/total_loss" in row]
        # An epoch may be shorter than train.log_every_steps: then the newest loss there is.
        losses = [row["train/total_loss"] for row in logged if row["step"] > last or row is logged[-1]]
        epochs = (self.total_steps + self.steps_per_epoch - 1) // self.steps_per_epoch
        line = (
            f"Epoch {(step + self.steps_per_epoch - 1) // self.steps_per_epoch}/{epochs} | "
            f"Train Loss: {statistics.fmean(losses) if losses else float('nan'):.4f} | "
            f"Val Loss: {values['val_loss']:.4f} | fMRI Corr: {values.get('r_voxels/fmri', float('nan')):.4f} | "
            f"LR: {learning_rate:.2e}"
        )
        log.info("%s", line)
        try:
            with (self.folder.path / "training.log").open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            log.warning("training.log is not written: %s", error)


def _plain(figures: Mapping[str, float | str]) -> dict[str, float | str | None]:
    """With None for a bound that could not be formed, which JSON has no number for."""
    return {name: None if value != value else value for name, value in figures.items()}


@torch.no_grad()
def average_running_statistics(model: torch.nn.Module, runtime: Runtime) -> None:
    """Every rank's BatchNorm has seen other samples: from here on all have the mean of what they have counted."""
    own = {name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    if runtime.world_size == 1 or runtime.cores > 1 or not own:  # the devices that a rank drives as one share them
        return
    everyone = runtime.gather({name: buffer.cpu().numpy() for name, buffer in own.items()})
    for name, buffer in own.items():
        runtime.load(buffer, torch.from_numpy(np.mean([found[name] for found in everyone], axis=0)))
    runtime.end_step()


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The ranks' shares as one, by number of sample."""
    order = np.argsort(np.concatenate([part["number"] for part in parts]))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
