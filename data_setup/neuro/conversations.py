"""Questions about images, in two generations of JSON -> frozen records; all spellings of files end here.

Generation 1 has `modality_paths` and turns of `from`/`value`; generation 2 has `images` and turns of `role`/`content`.
They are told apart by those keys. A file holds one object, a list or one object a line; a folder holds such files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.modalities import GENERIC_TOKEN, IMAGE_TOKENS, modality_name

_ASKS = ("human", "user", "USER")
_ANSWERS = ("gpt", "assistant", "ASSISTANT")
_ANY_TOKEN = (GENERIC_TOKEN, *IMAGE_TOKENS.values())


class ImageRef(NamedTuple):
    """T1, rsfMRI or dMRI, and where the image is: a path as the file spells it."""

    modality: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One question with its answer. prompt: the question with the token of each image in its place, in the order of
    `images`, and with the turns before it; nothing of a template.

    subject_id: the person of the first image; a split by subject goes by it.
    """

    sample_id: str
    subject_id: str
    images: tuple[ImageRef, ...]
    prompt: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`T1`, `T1&dMRI` for a sample with two images, `text` without one: samples of a kind have equal shapes."""
        return "&".join(sorted((ref.modality for ref in self.images), key=list(IMAGE_TOKENS).index)) or "text"


class Refused(NamedTuple):
    """A sample that cannot be used, by its id, and why."""

    sample_id: str
    error: NeuroFileError


class _Turn(NamedTuple):
    asks: bool
    text: str


def read_conversations(source: Path) -> tuple[list[Conversation], list[Refused]]:
    """All samples of a .json or .jsonl file, or of the folder's, in the order of names; and entries that are none.

    Raises NeuroFileError(missing, empty, bad_json) where a file as a whole cannot be read.
    """
    files = sorted(source.glob("*.json*")) if source.is_dir() else [source]
    if not files:
        raise NeuroFileError(NeuroReason.MISSING, f"the folder {source.name} holds no .json or .jsonl file")
    records: list[Conversation] = []
    refused: list[Refused] = []
    for file in files:
        for number, entry in enumerate(_entries(file)):
            told = entry.get("task_id") if isinstance(entry, dict) else None
            name = f"{file.stem}:{number}" if told is None else str(told)
            try:
                if isinstance(entry, NeuroFileError):
                    raise entry
                records += samples_of(entry, name)
            except NeuroFileError as error:
                refused.append(Refused(name, error))
    return records, refused


def samples_of(entry: Any, name: str) -> list[Conversation]:
    """The samples of one entry: one for each answer, with the turns before it in its prompt.

    Where images of several modalities share one `<image>`, each makes samples of its own, as the separate data sets of
    the format's first users did. Raises NeuroFileError(bad_json, unknown_modality, image_places, no_subject,
    no_answer).
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise NeuroFileError(NeuroReason.BAD_JSON, "an entry without a list of conversations")
    metadata = entry.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise NeuroFileError(NeuroReason.BAD_JSON, f"metadata is {type(metadata).__name__}")
    if "modality_paths" in entry:
        images, turns = _generation_1(entry)
    elif "images" in entry or any(isinstance(turn, dict) and "role" in turn for turn in entry["conversations"]):
        images, turns = _generation_2(entry)
    else:
        raise NeuroFileError(NeuroReason.BAD_JSON, "neither modality_paths nor images")
    subject = _subject(entry, metadata)
    places = [part for turn in turns for part in _split_at_tokens(turn.text) if part in _ANY_TOKEN]
    alone = [(name, images)]
    if len(images) > 1 and len(places) == 1:
        fitting = [image for image in images if places[0] in (GENERIC_TOKEN, IMAGE_TOKENS[image.modality])]
        if len({image.modality for image in fitting}) < len(fitting):
            raise NeuroFileError(NeuroReason.IMAGE_PLACES, f"one place for {len(fitting)} images, two of a modality")
        alone = [(f"{name}:{image.modality}", (image,)) for image in fitting] or alone
    return [
        Conversation(
            sample_id=sample_id, subject_id=subject, images=own, prompt=prompt, answer=answer, metadata=metadata
        )
        for label, refs in alone
        for sample_id, own, prompt, answer in _answers(label, refs, turns)
    ]


def _entries(file: Path) -> Sequence[Any]:
    """What a file lists."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NeuroFileError(NeuroReason.MISSING, f"{file.name} cannot be read ({type(error).__name__})") from None
    if not text.strip():
        raise NeuroFileError(NeuroReason.EMPTY, f"{file.name} is empty")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        # Not splitlines: a string of JSON may hold the line ends of Unicode as they are.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].rstrip().endswith("}"):
            raise NeuroFileError(NeuroReason.BAD_JSON, f"{file.name}, line {error.lineno}: {error.msg}") from None
        return [_line(file, number, line) for number, line in lines]
    return whole if isinstance(whole, list) else [whole]


def _line(file: Path, number: int, line: str) -> Any:
    """An object of JSON Lines, or why it is none: one damaged line is refused, the others are kept."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return NeuroFileError(NeuroReason.BAD_JSON, f"{file.name}, line {number}: {error.msg}")


def _generation_1(entry: Mapping[str, Any]) -> tuple[tuple[ImageRef, ...], list[_Turn]]:
    paths = entry["modality_paths"]
    if not isinstance(paths, dict):
        raise NeuroFileError(NeuroReason.BAD_JSON, f"modality_paths is {type(paths).__name__}")
    images = tuple(_image(spelling, path) for spelling, path in paths.items() if path)
    return images, [_turn(turn, "from", "value") for turn in entry["conversations"]]


def _generation_2(entry: Mapping[str, Any]) -> tuple[tuple[ImageRef, ...], list[_Turn]]:
    """Images named inside the turns come first; the list at the top serves turns that name none."""
    images: list[ImageRef] = []
    turns = []
    for turn in entry["conversations"]:
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, list):
            turns.append(_turn(turn, "role", "content"))
            continue
        parts = []
        for item in content:
            match item:
                case {"type": "text", "text": str(text)}:
                    parts.append(text)
                case {"type": "image"}:
                    images.append(_image(item.get("modality"), item.get("image_path") or item.get("path")))
                    parts.append(IMAGE_TOKENS[images[-1].modality])
                case _:
                    raise NeuroFileError(NeuroReason.BAD_JSON, "a content item that is neither text nor image")
        turns.append(_turn({**turn, "content": "\n".join(parts)}, "role", "content"))
    if images:
        return tuple(images), turns
    listed = entry.get("images") or []
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise NeuroFileError(NeuroReason.BAD_JSON, "images is no list of objects")
    return tuple(_image(item.get("modality"), item.get("path")) for item in listed), turns


def _image(spelling: object, path: object) -> ImageRef:
    if not isinstance(path, str) or not path:
        raise NeuroFileError(NeuroReason.BAD_JSON, f"the path of an image is {path!r}")
    return ImageRef(modality_name(spelling), path)


def _turn(turn: Any, speaker_key: str, text_key: str) -> _Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get(text_key), str):
        raise NeuroFileError(NeuroReason.BAD_JSON, f"a turn without {text_key}")
    speaker = turn.get(speaker_key)
    if speaker not in (*_ASKS, *_ANSWERS, "system"):
        raise NeuroFileError(NeuroReason.BAD_JSON, f"a turn of {speaker!r}; known: human, gpt, user, assistant, system")
    return _Turn(speaker not in _ANSWERS, turn[text_key].strip())


def _subject(entry: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The person asked about; a person compared with is not split by."""
    listed = entry.get("subject_ids")
    first = listed[0] if isinstance(listed, list) and listed else None
    found = entry.get("subject_id") or metadata.get("subject_id") or first
    if not isinstance(found, str | int) or found == "":
        raise NeuroFileError(NeuroReason.NO_SUBJECT, "an entry without subject_id")
    return str(found)


def _answers(
    name: str, images: tuple[ImageRef, ...], turns: Sequence[_Turn]
) -> Iterator[tuple[str, tuple[ImageRef, ...], str, str]]:
    """(sample id, images so far, prompt, answer) for each answer."""
    placed, texts = _placed(images, turns)
    if not any(not turn.asks and text for turn, text in zip(turns, texts, strict=True)):
        raise NeuroFileError(NeuroReason.NO_ANSWER, "a conversation without an answer")
    history, seen, number = "", 0, 0
    several = sum(not turn.asks for turn in turns) > 1
    for turn, text, images_in in zip(turns, texts, placed, strict=True):
        seen += images_in
        if turn.asks:
            joint = "\n" if history and not history.endswith("USER: ") else ""
            history += joint + text
            continue
        if not history or not text:
            raise NeuroFileError(NeuroReason.NO_ANSWER, "an answer without a question, or an empty one")
        yield (f"{name}#{number}" if several else name), images[:seen], history, text
        history, number = f"{history} ASSISTANT: {text} USER: ", number + 1


def _placed(images: tuple[ImageRef, ...], turns: Sequence[_Turn]) -> tuple[list[int], list[str]]:
    """How many images each turn holds, and its text with the token of each in place.

    Without any token the images stand before the first question, one a line. Raises NeuroFileError(image_places).
    """
    left = list(images)
    counts, texts = [], []
    if not any(token in turn.text for turn in turns for token in _ANY_TOKEN):
        front = "".join(f"{IMAGE_TOKENS[image.modality]}\n" for image in images)
        counts = [len(images) if number == 0 else 0 for number in range(len(turns))]
        return counts, [front + turn.text if number == 0 else turn.text for number, turn in enumerate(turns)]
    for turn in turns:
        text, before = "", len(left)
        for part in _split_at_tokens(turn.text):
            if part in _ANY_TOKEN:
                if not turn.asks or not left:
                    found = "an image inside an answer" if not turn.asks else f"more places than images ({len(images)})"
                    raise NeuroFileError(NeuroReason.IMAGE_PLACES, found)
                own = IMAGE_TOKENS[left.pop(0).modality]
                if part not in (GENERIC_TOKEN, own):
                    raise NeuroFileError(NeuroReason.IMAGE_PLACES, f"{part} where the next image is {own}")
                part = own
            text += part
        counts.append(before - len(left))
        texts.append(text)
    if left:
        raise NeuroFileError(NeuroReason.IMAGE_PLACES, f"{len(left)} of {len(images)} images have no place")
    return counts, texts


def _split_at_tokens(text: str) -> Iterator[str]:
    """The pieces of a text, image tokens being pieces of their own."""
    while found := [(text.find(token), token) for token in _ANY_TOKEN if token in text]:
        position, token = min(found)
        yield text[:position]
        yield token
        text = text[position + len(token) :]
    yield text
