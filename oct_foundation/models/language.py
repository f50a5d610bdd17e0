"""The language model that reads image tokens: any causal decoder of transformers, or a tiny Llama made on the spot.

Tokens enter, some of them in place of images with the embeddings that they shall have; the next token's logits leave.
"""

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

_ONE_DTYPE = "octfm_sdpa"


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """name: a causal language model of transformers, by hub name (from its cache where offline) or local path.

    None builds a Llama with random weights of the sizes below, which count only then: nothing is downloaded.
    """

    name: str | None = None
    width: int = 128
    depth: int = 2
    num_heads: int = 4
    max_tokens: int = 2048
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for key in ("width", "depth", "num_heads", "max_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"language.{key} must be at least 1; found {getattr(self, key)}")
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"language.width {self.width} must be a multiple of twice language.num_heads ({self.num_heads}): "
                "rotary positions turn pairs of channels"
            )


class Images(NamedTuple):
    """What stands in place of tokens: embeddings float [R, L, H], which count where `shown` (bool [R, L]) holds."""

    embeddings: torch.Tensor
    shown: torch.Tensor


class LanguageModel(nn.Module):
    """`network` of transformers, with images. Its table of tokens is used in here only: sharding relies on that."""

    def __init__(self, config: LanguageConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.network = build_network(config, vocabulary_size)

    @property
    def width(self) -> int:
        """H, of a token's embedding."""
        return self._table().embedding_dim

    @property
    def max_tokens(self) -> int:
        """The longest row that the model was made for: beyond it learned positions end, and others are untrained."""
        named = getattr(self.network.config, "max_position_embeddings", None)  # None: distances instead of positions
        return int(named or sys.maxsize)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: Images | None = None
    ) -> torch.Tensor:
        """int64 [R, L]; int or bool [R, L] -> logits float [R, L, vocabulary]; raises ValueError for L > max_tokens."""
        if input_ids.shape[1] > self.max_tokens:
            raise ValueError(
                f"rows of {input_ids.shape[1]} tokens, a new answer's included; the model reads {self.max_tokens}"
            )
        embeddings = self._table()(input_ids)
        if images is not None:
            embeddings = torch.where(images.shown[..., None], images.embeddings.to(embeddings.dtype), embeddings)
        mask = causal_mask(attention_mask)
        return self.network(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits

    def _table(self) -> Any:
        return self.network.get_input_embeddings()  # type: ignore[operator]


def build_network(config: LanguageConfig, vocabulary_size: int) -> nn.Module:
    """The model in float32, its embedding table grown to `vocabulary_size` where the tokenizer has more tokens.

    Random weights come from torch's global generator. Raises ValueError for what is no causal decoder with full
    attention, OSError of transformers where the name is neither a folder, nor in the cache, nor to be had.
    """
    from transformers import AutoModelForCausalLM

    if config.name is None:
        model = AutoModelForCausalLM.from_config(_tiny_llama(config, vocabulary_size), attn_implementation=_attention())
    else:
        _check_kind(config.name)
        # Weights stay float32 whatever the file holds: AdamW in pure bfloat16 does not move a weight of 1.0 at all.
        model = AutoModelForCausalLM.from_pretrained(config.name, dtype=torch.float32, attn_implementation=_attention())
        if model.get_input_embeddings().num_embeddings < vocabulary_size:
            model.resize_token_embeddings(vocabulary_size)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.config.use_cache = False
    return model


def causal_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Which place may look at which: int64 [R, L], 1 where there is text, -> bool [R, 1, L, L].

    Given whole: from a mask [R, L] transformers asks the host whether it is all ones, in every step. A place always
    sees itself, so that a row of padding has no softmax over nothing.
    """
    length = attention_mask.shape[1]
    places = torch.arange(length, device=attention_mask.device)
    earlier = places[:, None] >= places
    itself = places[:, None] == places
    return ((attention_mask[:, None, :] > 0) & earlier | itself).unsqueeze(1)


def _attention() -> str:
    """The name under which transformers finds torch's fused attention with queries, keys and values in one dtype.

    Rotary positions leave queries and keys in float32 under bfloat16. Autocast mends that, but not XLA's, whose list
    lacks scaled_dot_product_attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def in_one_dtype(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
    ) -> tuple[torch.Tensor, None]:
        return sdpa_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, *rest, **named)

    AttentionInterface.register(_ONE_DTYPE, in_one_dtype)
    AttentionMaskInterface.register(_ONE_DTYPE, sdpa_mask)
    return _ONE_DTYPE


def _tiny_llama(config: LanguageConfig, vocabulary_size: int) -> object:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        initializer_range=config.width**-0.5,  # .02 is made for widths of thousands: at 96 no image came through
        max_position_embeddings=config.max_tokens,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def _check_kind(name: str) -> None:
    """Raises ValueError unless `name` is a causal decoder whose every layer sees all earlier tokens."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    found = AutoConfig.from_pretrained(name)
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"language.name {name!r} is of kind {found.model_type!r}, no causal language model of transformers; "
            "give a text decoder (kinds llama, qwen2, gpt2, ...): the vision tower is this project's own"
        )
    kinds = set(getattr(found, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(found, "sliding_window", None) is not None:
        raise ValueError(
            f"language.name {name!r} has layers of limited attention ({', '.join(sorted(kinds))}, sliding_window "
            f"{getattr(found, 'sliding_window', None)}); only full causal attention is supported"
        )
