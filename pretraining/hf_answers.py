"""What the model answers to a few fixed questions, every so many updates of a Hugging Face Trainer, as JSON lines."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_setup.neuro.collate import joined
from data_setup.neuro.samples import Sample
from oct_foundation.models.vision_language import VisionLanguageModel

log = logging.getLogger(__name__)
FILE_NAME = "generation_logs.jsonl"


class AnswerLog(TrainerCallback):
    """Appends a line for each of `samples` to `generation_logs.jsonl` in output_dir.

    Rank 0 alone generates, on the module that DDP wraps, so no other rank is asked for anything; the training mode
    comes back whatever happens, and no random number is drawn. An error of the model is one of the run; a disk that
    refuses is a warning. With an empty list of samples nothing is generated.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: Callable[..., Any],
        tokenizer: Any,
        *,
        every: int,
        max_new_tokens: int,
    ) -> None:
        for name, value in (("generate_every", every), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; found {value}")
        self._samples, self._collator, self._tokenizer = samples, collator, tokenizer
        self._every, self._max_new_tokens = every, max_new_tokens

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **handed: Any) -> None:
        """Called by Trainer on every rank after each update."""
        if state.is_world_process_zero and self._samples and state.global_step % self._every == 0:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines(args, state, handed["model"])]
            try:
                with (Path(args.output_dir) / FILE_NAME).open("a") as file:
                    file.writelines(lines)
            except OSError as error:
                log.warning("generated answers are not written down: %s", error)

    def _lines(
        self, args: TrainingArguments, state: TrainerState, model: VisionLanguageModel
    ) -> list[dict[str, object]]:
        """One sample at a time: a batch would order its rows by modality."""
        lines: list[dict[str, object]] = []
        for sample in self._samples:
            tokens = model.generate(joined(self._collator([sample])).to(args.device), self._max_new_tokens)
            lines.append(
                {
                    "step": state.global_step,
                    "epoch": state.epoch,
                    "modality": sample.record.kind,
                    "sample_id": sample.record.sample_id,
                    "prompt": sample.record.prompt,
                    "generated_text": self._tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True).strip(),
                    "reference": sample.record.answer,
                }
            )
        return lines
