"""The tokenizer: bytes, built here and offline, or any Hugging Face one by name or folder, with places for images.

Byte by byte every text in every language is covered by 262 entries, so that a tiny language model can be trained from
nothing; a pretrained language model brings its own tokenizer.
"""

from pathlib import Path
from typing import Any

from data_setup.neuro.modalities import IMAGE_TOKENS

PAD, START, END = "<pad>", "<s>", "</s>"


def byte_tokenizer() -> Any:
    """A transformers.PreTrainedTokenizerFast: <pad> <s> </s>, an image token per modality, then the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, START, END, *IMAGE_TOKENS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*special, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, clean_up_tokenization_spaces=False
    )
    return _with_image_tokens(fast)


def load_tokenizer(name_or_path: str | None) -> Any:
    """The tokenizer of a language model by name or folder, None: bytes. Where it lacks image tokens, they are added at
    the end: the model's embedding must then have len(tokenizer) rows.

    Raises ValueError where it has no end-of-text token, OSError where there is no such folder or tokenizer.
    """
    if name_or_path is None:
        return byte_tokenizer()
    if name_or_path.startswith(("/", ".", "~")) and not Path(name_or_path).is_dir():
        raise OSError("there is no such folder")  # transformers would speak of the form of a hub's names
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer {name_or_path} has no eos token, so an answer would have no end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return _with_image_tokens(tokenizer)


def image_token_ids(tokenizer: Any) -> dict[str, int]:
    """Modality -> id of its image token; raises ValueError where the tokenizer does not know one."""
    ids = {modality: tokenizer.convert_tokens_to_ids(token) for modality, token in IMAGE_TOKENS.items()}
    unknown = [IMAGE_TOKENS[name] for name, number in ids.items() if number in (None, tokenizer.unk_token_id)]
    if unknown:
        raise ValueError(f"the tokenizer knows no {', '.join(unknown)}: load it with load_tokenizer")
    return ids


def _with_image_tokens(tokenizer: Any) -> Any:
    """The tokenizer, its image tokens being special: never split, left out of decoded text."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in IMAGE_TOKENS.values()], special_tokens=True
    )
    return tokenizer
