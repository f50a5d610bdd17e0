"""The `transformers` VJEPA2 model as an oracle: the same weights, driven by hand (jepa: masked context, predictor).

Its own `forward` is no training forward: the encoder sees all tokens there, and the mask gathers its output.
"""

import torch
from transformers import VJEPA2Config, VJEPA2Model

from oct_foundation.models.vjepa3d import VJEPA3D


def build_peer(model: VJEPA3D) -> VJEPA2Model:
    """A VJEPA2Model of the same sizes with the weights of `model`; depth and heads are read off its modules."""
    encoder, predictor = model.context_encoder, model.predictor
    depth, height, _width = model.config.image_size
    config = VJEPA2Config(
        patch_size=model.config.patch_size[1],
        tubelet_size=model.config.patch_size[0],
        crop_size=height,
        frames_per_clip=depth,
        in_chans=1,
        hidden_size=model.embed_dim,
        num_attention_heads=encoder.transformer.blocks[0].attn.num_heads,
        num_hidden_layers=len(encoder.transformer.blocks),
        pred_hidden_size=predictor.embed.out_features,
        pred_num_attention_heads=predictor.transformer.blocks[0].attn.num_heads,
        pred_num_hidden_layers=len(predictor.transformer.blocks),
        pred_num_mask_tokens=1,
        drop_path_rate=0.0,
    )
    config._attn_implementation = "sdpa"
    peer = VJEPA2Model(config)
    peer.load_state_dict(peer_state(model), strict=True)
    return peer


def peer_state(model: VJEPA3D) -> dict[str, torch.Tensor]:
    """Our weights under the names of transformers; queries, keys and values apart."""
    encoder, predictor = model.context_encoder, model.predictor
    state = {
        "encoder.embeddings.patch_embeddings.proj.weight": encoder.patch_embed.weight,
        "encoder.embeddings.patch_embeddings.proj.bias": encoder.patch_embed.bias,
        "predictor.embeddings.predictor_embeddings.weight": predictor.embed.weight,
        "predictor.embeddings.predictor_embeddings.bias": predictor.embed.bias,
        "predictor.embeddings.mask_tokens": predictor.mask_token.unsqueeze(0),
        "predictor.proj.weight": predictor.head.weight,
        "predictor.proj.bias": predictor.head.bias,
    }
    for name, transformer in (("encoder", encoder.transformer), ("predictor", predictor.transformer)):
        for kind in ("weight", "bias"):
            state[f"{name}.layernorm.{kind}"] = getattr(transformer.norm, kind)
            for number, block in enumerate(transformer.blocks):
                prefix = f"{name}.layer.{number}"
                parts = getattr(block.attn.qkv, kind).chunk(3)
                for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                    state[f"{prefix}.attention.{part}.{kind}"] = tensor
                state[f"{prefix}.attention.proj.{kind}"] = getattr(block.attn.proj, kind)
                for part in ("norm1", "norm2"):
                    state[f"{prefix}.{part}.{kind}"] = getattr(getattr(block, part), kind)
                for part in ("fc1", "fc2"):
                    state[f"{prefix}.mlp.{part}.{kind}"] = getattr(getattr(block.mlp, part), kind)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def peer_encode(encoder: torch.nn.Module, volumes: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
    """volumes [B, 1, D, H, W] -> [B, n, E]; masked patches are dropped before the first block."""
    tokens = encoder.embeddings(volumes.transpose(1, 2))
    if indices is not None:
        tokens = tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    for layer in encoder.layer:
        tokens = layer(tokens, indices)[0]
    return encoder.layernorm(tokens)


def peer_predict(
    predictor: torch.nn.Module, context: torch.Tensor, context_idx: torch.Tensor, target_idx: torch.Tensor
) -> torch.Tensor:
    """context [B, Nc, E] -> [B, Nt, E], without the peer's sorting."""
    masked = predictor.embeddings.mask_tokens[0].expand(context.shape[0], target_idx.shape[1], -1)
    tokens = torch.cat([predictor.embeddings.predictor_embeddings(context), masked], dim=1)
    indices = torch.cat([context_idx, target_idx], dim=1)
    for layer in predictor.layer:
        tokens = layer(tokens, indices)[0]
    return predictor.proj(predictor.layernorm(tokens)[:, context.shape[1] :])
