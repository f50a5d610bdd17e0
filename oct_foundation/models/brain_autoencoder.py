"""Film and brain: video, audio and text of a TR -> a bottleneck -> the brain's answer, and the film again.

The network of the training-health report of ContextLab's giblet, to the last parameter where its config is
`documented`. Widths stand in brain_config.py, layers in brain_layers.py, losses in losses/normalized.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from oct_foundation.losses.normalized import at_least_float32
from oct_foundation.models.brain_config import BrainAutoencoderConfig, chains
from oct_foundation.models.brain_layers import (
    CodeLogits,
    CodeVectors,
    Dense,
    Layer,
    ScaledCodes,
    layers,
    run,
)


class Encoded(NamedTuple):
    """float32 [B, bottleneck_dim] and [B, voxels]."""

    bottleneck: torch.Tensor
    predicted_fmri: torch.Tensor


class Decoded(NamedTuple):
    """float32: video_recon [B, frame_dim], 0 to 1; text_recon [B, text_dim]; audio_recon logits [B, audio_dim,
    num_codes], or with audio_output `scalar` [B, audio_dim], 0 to num_codes - 1.
    """

    video_recon: torch.Tensor
    audio_recon: torch.Tensor
    text_recon: torch.Tensor


class BrainOutput(NamedTuple):
    """Encoded and Decoded of a batch."""

    bottleneck: torch.Tensor
    predicted_fmri: torch.Tensor
    video_recon: torch.Tensor
    audio_recon: torch.Tensor
    text_recon: torch.Tensor


class BrainEncoder(nn.Module):
    """A chain per modality, joined to the bottleneck, from which a head predicts the voxels."""

    def __init__(self, config: BrainAutoencoderConfig) -> None:
        super().__init__()
        widths, norm, shape = chains(config), config.norm, config.shape
        self.shape = shape
        self.video = nn.ModuleList(layers(widths["encoder.video"], config.video_dropout, norm))
        for layer in self.video:
            assert isinstance(layer, Layer)
            layer.dense.recomputed = config.gradient_checkpointing
        self.audio = nn.ModuleList(_code_reader(config))
        self.text = nn.ModuleList(layers(widths["encoder.text"], config.text_dropout, norm))
        *joint, bottleneck = widths["encoder.joint"]
        self.joint = nn.ModuleList(layers(joint, config.joint_dropout, norm))
        self.joint.append(Layer(Dense(joint[-1], bottleneck, norm, activation=False)))
        *fmri, voxels = widths["encoder.fmri"]
        self.fmri = nn.ModuleList([*layers(fmri, (config.fmri_dropout,), norm), nn.Linear(fmri[-1], voxels)])

    def forward(self, video: torch.Tensor, audio: torch.Tensor, text: torch.Tensor) -> Encoded:
        """Fields of a FilmBatch; raises ValueError for sizes that are not the config's."""
        for name, found, size in (
            ("video", video, self.shape.video_dim),
            ("audio", audio, self.shape.audio_dim),
            ("text", text, self.shape.text_dim),
        ):
            _check(name, found, (len(video), size))
        parts = run(self.video, video), run(self.audio, audio), run(self.text, text)
        bottleneck = run(self.joint, torch.cat(parts, dim=1))
        return Encoded(bottleneck, at_least_float32(run(self.fmri, bottleneck)))


class BrainDecoder(nn.Module):
    """A trunk from the bottleneck, and a chain from it to each modality."""

    def __init__(self, config: BrainAutoencoderConfig) -> None:
        super().__init__()
        widths = chains(config)
        self.trunk = nn.ModuleList(_decoder_layers(widths["decoder.trunk"], config))
        *video, frame = widths["decoder.video"]
        self.video = nn.ModuleList([*_decoder_layers(video, config), nn.Linear(video[-1], frame)])
        *audio, values = widths["decoder.audio"]
        last = nn.Linear(audio[-1], values) if config.audio_output == "scalar" else _code_writer(audio[-1], config)
        self.audio = nn.ModuleList([*_decoder_layers(audio, config), last])
        *text, embedding = widths["decoder.text"]
        self.text = nn.ModuleList([*_decoder_layers(text, config), nn.Linear(text[-1], embedding)])
        self.largest_code = config.shape.num_codes - 1 if config.audio_output == "scalar" else None

    def forward(self, bottleneck: torch.Tensor) -> Decoded:
        """The film that a bottleneck stands for: float [B, bottleneck_dim]."""
        shared = run(self.trunk, bottleneck)
        audio = at_least_float32(run(self.audio, shared))
        if self.largest_code is not None:
            audio = torch.sigmoid(audio) * self.largest_code
        video = torch.sigmoid(at_least_float32(run(self.video, shared)))
        return Decoded(video, audio, at_least_float32(run(self.text, shared)))


class BrainAutoencoder(nn.Module):
    """Weights come from torch's global generator, as torch's own layers draw them."""

    def __init__(self, config: BrainAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = BrainEncoder(config), BrainDecoder(config)

    def forward(
        self, video: torch.Tensor, audio: torch.Tensor, text: torch.Tensor, fmri_target: torch.Tensor | None = None
    ) -> BrainOutput:
        """Fields of a FilmBatch, samples first. fmri_target never reaches the network: its size is held against that
        of the prediction. Raises ValueError for sizes that are not the config's.
        """
        if fmri_target is not None:
            _check("fmri_target", fmri_target, (len(video), self.config.shape.voxels))
        encoded = self.encoder(video, audio, text)
        return BrainOutput(*encoded, *self.decoder(encoded.bottleneck))

    def encode_only(self, video: torch.Tensor, audio: torch.Tensor, text: torch.Tensor) -> Encoded:
        """Bottleneck and predicted voxels, as forward gives them."""
        return self.encoder(video, audio, text)

    def decode_only(self, bottleneck: torch.Tensor) -> Decoded:
        """The film that a bottleneck stands for: float [B, bottleneck_dim]."""
        _check("bottleneck", bottleneck, (len(bottleneck), self.config.bottleneck_dim))
        return self.decoder(bottleneck)

    def get_parameter_count(self) -> dict[str, int]:
        """Of `encoder`, `decoder` and both, `total`; running statistics are none."""
        counts = {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
        }
        return counts | {"total": sum(counts.values())}


def _code_reader(config: BrainAutoencoderConfig) -> list[nn.Module]:
    """The chain of the audio encoder. Of 1,024 codes as numbers bfloat16 would tell 738 apart in the first product."""
    shape, chain = config.shape, layers(chains(config)["encoder.audio"], config.audio_dropout, config.norm)
    if config.audio_output == "codes":
        return [CodeVectors(shape.codebooks, shape.num_codes, config.code_width), *chain]
    first = chain[0]
    assert isinstance(first, Layer)
    first.dense.exact = True
    return [ScaledCodes(shape.num_codes), *chain]


def _code_writer(in_features: int, config: BrainAutoencoderConfig) -> CodeLogits:
    shape = config.shape
    return CodeLogits(in_features, shape.codebooks, shape.codes_per_tr, shape.num_codes, config.code_width)


def _decoder_layers(widths: Sequence[int], config: BrainAutoencoderConfig) -> list[nn.Module]:
    """All with the decoder's one dropout."""
    return layers(widths, (config.decoder_dropout,) * (len(widths) - 1), config.norm)


def _check(name: str, found: torch.Tensor, expected: tuple[int, int]) -> None:
    """Raises ValueError: a slice to the smaller of two sizes would train on the wrong values in silence."""
    if tuple(found.shape) != expected:
        raise ValueError(f"{name} is {list(found.shape)}, this model needs {list(expected)}: [samples, values]")
