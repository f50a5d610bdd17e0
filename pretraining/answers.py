"""How a multi-modal run is watched: held-out questions are answered, scored, and a few of the answers written down.

All ranks take part, each with its share of the questions, so that none waits for another; rank 0 writes.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_setup.neuro.conversations import Conversation
from oct_foundation.diagnostics.answers import Answered, commonest, judge_answers, score
from oct_foundation.diagnostics.readings import Reading, readings_of
from oct_foundation.diagnostics.verdicts import Judgement
from oct_foundation.models.vision_language import VisionLanguageModel
from oct_foundation.runtime.base import Runtime
from oct_foundation.tracking.jsonl import read_rows
from pretraining.state import TrainState
from pretraining.tasks.multimodal import MultimodalTask

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AnswerWatch:
    """Readings of one run; every rank calls `read` at the same steps."""

    task: MultimodalTask
    total_steps: int
    record: Path
    logs: Path
    readings: list[Reading] = field(default_factory=list)
    _shown: list[dict[str, Any]] = field(default_factory=list)

    def take_up(self, start_step: int, first: Mapping[str, float] | None) -> None:
        """The readings up to `start_step` that the record holds."""
        self.readings = [reading for reading in readings_of(read_rows(self.record)) if reading.step <= start_step]

    def due(self, step: int) -> bool:
        """Every `answers.every_steps`, and at the end."""
        return step == self.total_steps or step % self.task.config.answers.every_steps == 0

    def note_gradient(self, norm: float) -> None:
        """The answers do not depend on it."""

    def must_stop(self, judgement: Judgement) -> bool:
        """Answers that are no better may become so."""
        return False

    def enough(self) -> str:
        """The plan decides."""
        return ""

    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The answers that are written down."""
        return {"generations": self._shown}

    def judge(self) -> Judgement:
        """What the last reading says."""
        return judge_answers(self.readings[-1].values if self.readings else {})

    def read(
        self, state: TrainState, runtime: Runtime, scalars: Mapping[str, float], batch: Any = None
    ) -> tuple[dict[str, float], Judgement]:
        """Scores of all held-out questions, the same on every rank."""
        model = state.model
        assert isinstance(model, VisionLanguageModel)
        generated = dict(self._generate(model, runtime))
        everyone: dict[int, str] = {}
        for part in runtime.gather(generated):
            everyone |= part
        records = self.task.held_out.records
        answers = [self._answered(records[number], text) for number, text in sorted(everyone.items())]
        trained = self.task.training_records
        majority = commonest([record.kind for record in trained], [record.answer for record in trained])
        majority = {kind: self.task.encoder.spoken(answer) for kind, answer in majority.items()}
        values = score(answers, majority)
        self.readings = [*(reading for reading in self.readings if reading.step != state.step)]
        self.readings.append(Reading(step=state.step, values=values))
        if runtime.rank == 0:
            self._write(state, everyone)
        return values, self.judge()

    def _generate(self, model: VisionLanguageModel, runtime: Runtime) -> Iterator[tuple[int, str]]:
        """The share of this rank: numbers of held-out samples, and what the model answers."""
        task, settings = self.task, self.task.config.answers
        for batch, numbers in task.held_out_batches(runtime.rank, runtime.world_size):
            with runtime.autocast(task.config.train.precision):
                tokens = model.generate(batch.to(runtime.device), settings.max_new_tokens)
            runtime.end_step()
            texts = [task.encoder.decode(row) for row in tokens.cpu().tolist()]
            yield from ((number, text) for number, text in zip(numbers, texts, strict=True) if number is not None)

    def _answered(self, record: Conversation, text: str) -> Answered:
        reference = self.task.encoder.spoken(record.answer)
        return Answered(kind=record.kind, subject=record.subject_id, reference=reference, generated=text)

    def _write(self, state: TrainState, generated: Mapping[int, str]) -> None:
        """The first samples of each kind, the same ones every time; a disk that refuses is a warning, not an end."""
        counts: dict[str, int] = {}
        self._shown = []
        for number, record in enumerate(self.task.held_out.records):
            seen = counts[record.kind] = counts.get(record.kind, 0) + 1
            if seen <= self.task.config.answers.num_logged and number in generated:
                line = {
                    "step": state.step,
                    "epoch": state.samples_seen / max(self.task.num_train_samples, 1),
                    "modality": record.kind,
                    "sample_id": record.sample_id,
                    "prompt": record.prompt,
                    "generated_text": generated[number],
                    "reference": record.answer,
                }
                self._shown.append(line)
        try:
            with self.logs.open("a") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in self._shown)
        except OSError as error:
            log.warning("generated answers are not written down: %s", error)
