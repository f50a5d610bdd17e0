"""A record -> token ids of its question and answer, and the labels that train on the answer alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from data_setup.neuro.conversations import Conversation
from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.modalities import IMAGE_TOKENS
from data_setup.neuro.tokenizer import image_token_ids

IGNORED = -100  # what transformers and torch's cross-entropy leave out


class Encoded(NamedTuple):
    """input_ids, and labels of the same length: -100 but for the answer and its end token."""

    input_ids: list[int]
    labels: list[int]


class PromptEncoder:
    """Ids of `USER: {prompt} ASSISTANT: ` + answer + end, each image token num_image_tokens[modality] times.

    max_length: tokens a row may have. Question and answer are cut into tokens apart, so that training and generation
    see the same ids before the answer.
    """

    def __init__(self, tokenizer: Any, num_image_tokens: Mapping[str, int], max_length: int) -> None:
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens; found {max_length}")
        self.tokenizer, self.max_length = tokenizer, max_length
        ids = image_token_ids(tokenizer)
        self._repeats = {ids[modality]: count for modality, count in num_image_tokens.items()}
        self.pad_id = int(tokenizer.pad_token_id)

    def prompt_ids(self, record: Conversation) -> list[int]:
        """Everything before the answer, to generate from."""
        start = self.tokenizer.bos_token_id
        ids = [] if start is None else [int(start)]
        for token in self._ids(f"USER: {record.prompt} ASSISTANT: "):
            ids += [token] * self._repeats.get(token, 1)
        return ids

    def encode(self, record: Conversation) -> Encoded:
        """Raises NeuroFileError(too_long) with the sizes of the parts, and (image_places) where the answer holds an
        image token.
        """
        if any(token in record.answer for token in IMAGE_TOKENS.values()):
            raise NeuroFileError(NeuroReason.IMAGE_PLACES, "an image token inside an answer")
        prompt = self.prompt_ids(record)
        answer = [*self._ids(record.answer), int(self.tokenizer.eos_token_id)]
        if len(prompt) + len(answer) > self.max_length:
            images = sum(token in self._repeats for token in prompt)
            raise NeuroFileError(
                NeuroReason.TOO_LONG,
                f"{images} image tokens + {len(prompt) - images} of the question + {len(answer)} of the answer = "
                f"{len(prompt) + len(answer)}, max_length is {self.max_length}",
            )
        return Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def spoken(self, answer: str) -> str:
        """An answer as it comes back from tokens, which not every tokenizer gives back letter by letter."""
        return self.decode(self._ids(answer))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
