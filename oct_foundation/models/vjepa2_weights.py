"""The weights of V-JEPA 2 as `transformers` names them <-> the same networks here, in both directions.

Names differ and q, k, v are one projection here. Video weights (3 colours, tubelets of 2 frames) become weights for
OCT by a patch embedding that answers to a volume as the old one answers to the grey video made of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from oct_foundation.models.blocks import LAYER_NORM_EPS
from oct_foundation.models.encoder import VOXEL_MEAN, VOXEL_STD
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D, VJEPA3DConfig

Weights = dict[str, torch.Tensor]

# What V-JEPA 2's own pixels are standardised with (ImageNet's, of R, G, B in [0, 1]), unless its folder says otherwise.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)

_ENCODER, _PREDICTOR = "encoder.", "predictor."
_RENAMES = {  # ours -> theirs, at the beginning of a name within a network
    "patch_embed.proj.": "embeddings.patch_embeddings.proj.",
    "blocks.": "layer.",
    "norm.": "layernorm.",
    "embed.": "embeddings.predictor_embeddings.",
}
_MASK_TOKENS = "embeddings.mask_tokens"
_QKV = ("query", "key", "value")
# The fields of VJEPA2Config with what it takes where config.json is silent.
_ENCODER_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_PREDICTOR_SIZES = {"pred_hidden_size": 384, "pred_num_hidden_layers": 12, "pred_num_attention_heads": 12}


def obstacles(config: VJEPA3DConfig) -> list[str]:
    """Why `transformers.VJEPA2Model` cannot be this model, one sentence each; none where it can."""
    (_, height, width), patch = config.image_size, config.patch_size
    found = []
    if config.positions != "rotary" or config.rope_layout != "vjepa2":
        has = "sincos" if config.positions == "sincos" else f"rotary with rope_layout {config.rope_layout}"
        found.append(f"its positions are {has}; VJEPA2 knows rotary with rope_layout vjepa2 only")
    if height != width or patch[1] != patch[2]:
        found.append(
            f"its B-scans are {height} x {width} in patches of {patch[1]} x {patch[2]}; VJEPA2 takes squares only"
        )
    return found


def vjepa2_settings(config: VJEPA3DConfig) -> dict[str, Any]:
    """The fields of a `VJEPA2Config` for the same sizes; raises ValueError for sides that are not square."""
    (depth, height, width), patch, sizes = config.image_size, config.patch_size, PRESETS[config.preset]
    if height != width or patch[1] != patch[2]:
        raise ValueError(f"VJEPA2 takes square volumes and patches only; found {config.image_size}, {patch}")
    return {
        "crop_size": height,
        "frames_per_clip": depth,
        "patch_size": patch[1],
        "tubelet_size": patch[0],
        "in_chans": config.in_channels,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "mlp_ratio": 4.0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "pred_hidden_size": sizes.predictor_width,
        "pred_num_hidden_layers": sizes.predictor_depth,
        "pred_num_attention_heads": sizes.predictor_heads,
        "pred_mlp_ratio": 4.0,
        "pred_num_mask_tokens": 1,
    }


def to_vjepa2_names(network: Weights) -> Weights:
    """One network, an encoder or a predictor: from our names to those of `transformers`; qkv is split in three."""
    found: Weights = {}
    for name, tensor in network.items():
        if name == "mask_token":
            found[_MASK_TOKENS] = tensor.unsqueeze(0)
            continue
        renamed = _renamed(name, _RENAMES)
        if ".qkv." in renamed:
            for part, rows in zip(_QKV, tensor.chunk(3), strict=True):
                found[renamed.replace("qkv", part)] = rows.contiguous()
        else:
            found[renamed] = tensor
    return found


def from_vjepa2_names(network: Weights) -> Weights:
    """The reverse of to_vjepa2_names; of several mask tokens the one that VJEPA2's forward takes (number 1)."""
    back = {theirs: ours for ours, theirs in _RENAMES.items()}
    found: Weights = {}
    for name, tensor in network.items():
        if name == _MASK_TOKENS:
            found["mask_token"] = tensor[1 % len(tensor)]
        elif ".query." in name:
            parts = [network[name.replace("query", part)] for part in _QKV]
            found[_renamed(name, back).replace("query", "qkv")] = torch.cat(parts)
        elif ".key." not in name and ".value." not in name:
            found[_renamed(name, back)] = tensor
    return found


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def to_vjepa2(encoder: Weights, predictor: Weights) -> Weights:
    """A `VJEPA2Model`'s state dict; without a predictor (empty) its keys are absent."""
    parts = {_ENCODER: to_vjepa2_names(encoder), _PREDICTOR: to_vjepa2_names(predictor)}
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def from_vjepa2(weights: Weights) -> Weights:
    """A `VJEPA2Model`'s state dict under VJEPA3D's names: `target_encoder.` and, where it is there, `predictor.`."""
    parts = {"target_encoder.": _below(weights, _ENCODER), "predictor.": _below(weights, _PREDICTOR)}
    return {ours + name: tensor for ours, part in parts.items() for name, tensor in from_vjepa2_names(part).items()}


def _below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def load_vjepa2(source: str | Path, config: VJEPA3DConfig) -> Weights:
    """A VJEPA3D's state dict out of a folder of `transformers` (config.json, model.safetensors) with video weights.

    Encoder and teacher are equal, the patch embedding is inflated. The predictor is there where its sizes fit; where
    not, its keys are absent and it starts at random. Raises ValueError where the file or its sizes do not fit `config`.
    """
    folder = Path(source)
    folder = folder.parent if folder.is_file() else folder
    settings = _read_json(folder / "config.json")
    _check_settings(settings, config, str(source))
    weights = _read_tensors(folder / "model.safetensors")
    encoder = from_vjepa2_names(_below(weights, _ENCODER))
    kernel, bias = encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"]
    if kernel.shape[1] not in (1, 3):
        raise ValueError(f"{source} was trained on {kernel.shape[1]} channels; 3 (colour) or 1 (grey) can be used")
    if kernel.shape[1] == 3:
        kernel, bias = grey_kernel(kernel, bias, *_standardisation(folder))
    encoder["patch_embed.proj.weight"] = resized_kernel(kernel, config.patch_size)
    encoder["patch_embed.proj.bias"] = bias
    found = {f"{network}.{name}": t for network in ("context_encoder", "target_encoder") for name, t in encoder.items()}
    if _predictor_fits(settings, config):
        found |= {_PREDICTOR + name: t for name, t in from_vjepa2_names(_below(weights, _PREDICTOR)).items()}
    return found


def start_from_vjepa2(model: VJEPA3D, source: str | Path) -> list[str]:
    """Copies V-JEPA 2's weights into the model; returns the networks that keep their random start ("predictor").

    Raises ValueError as load_vjepa2 does, and where a tensor is missing.
    """
    found, own = load_vjepa2(source, model.config), model.state_dict()
    left = {name.partition(".")[0] for name in own.keys() - found.keys()}
    if not left <= {"predictor"} or found.keys() - own.keys():
        names = sorted(found.keys() ^ own.keys())
        raise ValueError(f"{source}: {len(names)} tensors are missing or unknown ({', '.join(names[:3])})")
    model.load_state_dict(found, strict=False)
    return sorted(left)


def grey_kernel(
    kernel: torch.Tensor, bias: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, 3, d, h, w] for RGB, standardised by `mean` and `std` -> [E, 1, d, h, w] for our grey, and the bias [E].

    For a grey g in [0, 1] their input is (g - mean_c) / std_c, ours v = (g - VOXEL_MEAN) / VOXEL_STD. Both are linear
    in g, so the sum over the channels and the change of constants are exact: the same answer to the same picture.
    """
    per_channel = kernel / torch.tensor(std).view(1, 3, 1, 1, 1)
    offset = (VOXEL_MEAN - torch.tensor(mean)).view(1, 3, 1, 1, 1)
    return VOXEL_STD * per_channel.sum(1, keepdim=True), bias + (per_channel * offset).flatten(1).sum(1)


def resized_kernel(kernel: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """[E, C, d, h, w] -> [E, C, *patch_size]: its answer to a patch is the old one's to the patch resized by areas.

    A patch twice as deep is halved by averaging pairs of slices, as I3D (arXiv 1705.07750) repeats a kernel and divides
    by its new length; a patch half as deep has each slice doubled.
    """
    for axis, side in enumerate(patch_size, start=2):
        kernel = torch.movedim(torch.movedim(kernel, axis, -1) @ _areas(kernel.shape[axis], side), -1, axis)
    return kernel.contiguous()


def _areas(old: int, new: int) -> torch.Tensor:
    """float32 [old, new]: the share of old cell j that lies in new cell i, both cells dividing one length."""
    edges_old, edges_new = torch.arange(old + 1) / 1.0, torch.arange(new + 1) * (old / new)
    low = torch.maximum(edges_old[:-1, None], edges_new[None, :-1])
    high = torch.minimum(edges_old[1:, None], edges_new[None, 1:])
    return (high - low).clamp(min=0)


def _check_settings(settings: dict[str, Any], config: VJEPA3DConfig, source: str) -> None:
    """Raises ValueError unless this is a VJEPA2 whose layers are ours."""
    if settings.get("model_type") != "vjepa2":
        raise ValueError(f"{source} is of model_type {settings.get('model_type')!r}; a folder of VJEPA2 is needed")
    if config.positions != "rotary" or config.rope_layout != "vjepa2":
        raise ValueError(
            "V-JEPA 2's weights know rotary positions in the layout vjepa2 only: set model.positions=rotary and "
            f"model.rope_layout=vjepa2 (found {config.positions}, {config.rope_layout})"
        )
    if config.in_channels != 1:
        raise ValueError(f"V-JEPA 2's weights are made grey: set model.in_channels=1 (found {config.in_channels})")
    same = {"mlp_ratio": 4.0, "hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS, "qkv_bias": True}
    if other := {key: settings[key] for key, value in same.items() if settings.get(key, value) != value}:
        raise ValueError(f"{source} has {other}; the layers here have { ({key: same[key] for key in other}) }")
    found = tuple(settings.get(key, default) for key, default in _ENCODER_SIZES.items())
    if found != PRESETS[config.preset][:3]:
        fits = [name for name, sizes in PRESETS.items() if sizes[:3] == found]
        there = ", ".join(f"{name} {list(sizes[:3])}" for name, sizes in PRESETS.items())
        remedy = f"set model.preset={fits[0]}" if fits else f"no preset has these sizes (there are {there})"
        raise ValueError(
            f"{source} has width, depth and heads {list(found)}, model.preset={config.preset} has "
            f"{list(PRESETS[config.preset][:3])}: {remedy}"
        )


def _predictor_fits(settings: dict[str, Any], config: VJEPA3DConfig) -> bool:
    found = tuple(settings.get(key, default) for key, default in _PREDICTOR_SIZES.items())
    return found == PRESETS[config.preset][3:] and settings.get("pred_mlp_ratio", 4.0) == 4.0


def _standardisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of R, G, B in [0, 1]: the folder's own, else ImageNet's."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            pixels = _read_json(folder / name)
            return pixels.get("image_mean", RGB_MEAN), pixels.get("image_std", RGB_STD)
    return RGB_MEAN, RGB_STD


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); give a folder of transformers") from None


def _read_tensors(path: Path) -> Weights:
    """float32; the model inside a VJEPA2ForVideoClassification, its head left behind."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a folder with one model.safetensors") from None
    return {name.removeprefix("vjepa2."): tensor.float() for name, tensor in found.items()}
