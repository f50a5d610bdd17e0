"""What decides the shape of a brain/stimulus autoencoder: presets, the widths of its chains, its operations.

`documented` is the network of the report, to the last parameter. The smaller presets use LayerNorm: BatchNorm on the 2
samples of a small GPU keeps of a feature only which sample had more of it, differs between training and evaluation, and
would keep other running statistics on every rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from oct_foundation.film import FilmShape
from oct_foundation.losses.normalized import AudioOutput

Preset = Literal["documented", "small", "tiny"]
Norm = Literal["batch", "layer"]

# 25 pictures a second, every fourth kept, in a TR of 1.5 s; sound at 6 kbps; the mask of 17 subjects.
DOCUMENTED_SHAPE = FilmShape(
    frames=10, height=90, width=160, codebooks=8, codes_per_tr=112, text_dim=3072, voxels=83138
)


@dataclass(frozen=True, kw_only=True)
class BrainAutoencoderConfig:
    """Widths are those of layers in their order, dropouts as many as their layers; the defaults are the documented.

    audio_output `scalar`: codes enter and leave as numbers, as documented. `codes`: each enters as a learned vector of
    code_width, and logits over num_codes leave, since code 7 is no nearer to 8 than to 900. At the documented widths
    that adds 14,483,456 parameters to the encoder and 57,183,360 to the decoder. gradient_checkpointing: layers of the
    video encoder are computed again in the backward. At full size that spares .09 MB a TR and 21 MB of weights in
    bfloat16, beside 14 GB of weights: it is there because it is documented. Raises ValueError.
    """

    shape: FilmShape
    video_hidden: tuple[int, ...] = (4096, 2048)
    video_features: int = 1024
    audio_hidden: tuple[int, ...] = (512,)
    audio_features: int = 256
    text_hidden: tuple[int, ...] = (512,)
    text_features: int = 256
    joint_widths: tuple[int, ...] = (1536, 4096, 8000)
    bottleneck_dim: int = 2048
    fmri_hidden: int = 16384
    trunk_widths: tuple[int, ...] = (8000, 4096, 2048, 1536)
    video_decoder: tuple[int, ...] = (2048, 4096)
    audio_decoder: tuple[int, ...] = (2048, 2048)
    text_decoder: tuple[int, ...] = (1024, 1024)
    video_dropout: tuple[float, ...] = (0.3, 0.3, 0.2)
    audio_dropout: tuple[float, ...] = (0.3, 0.2)
    text_dropout: tuple[float, ...] = (0.2, 0.2)
    joint_dropout: tuple[float, ...] = (0.2, 0.3, 0.3)
    fmri_dropout: float = 0.3
    decoder_dropout: float = 0.3
    norm: Norm = "batch"
    audio_output: AudioOutput = "codes"
    code_width: int = 32
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        for name, widths in self._widths().items():
            if not widths or min(widths) < 1:
                raise ValueError(f"model.{name} must hold widths of at least 1; found {list(widths)}")
        for name, (dropouts, num_layers) in self._dropouts().items():
            if len(dropouts) != num_layers:
                raise ValueError(f"model.{name} must hold {num_layers} values, one per layer; found {list(dropouts)}")
            if not all(0 <= dropout < 1 for dropout in dropouts):
                raise ValueError(f"model.{name} must be from 0 to below 1; found {list(dropouts)}")
        for name, found, allowed in (
            ("norm", self.norm, ("batch", "layer")),
            ("audio_output", self.audio_output, ("codes", "scalar")),
        ):
            if found not in allowed:
                raise ValueError(f"model.{name} is {found!r}; allowed: {', '.join(allowed)}")
        if self.shape.num_codes < 2:
            raise ValueError(
                f"a codebook needs at least 2 codes to choose from; found num_codes {self.shape.num_codes}"
            )

    def _widths(self) -> dict[str, tuple[int, ...]]:
        names = ("video_features", "audio_features", "text_features", "bottleneck_dim", "fmri_hidden", "code_width")
        chained = ("joint_widths", "trunk_widths", "video_decoder", "audio_decoder", "text_decoder")
        hidden = {name: (*getattr(self, name), 1) for name in ("video_hidden", "audio_hidden", "text_hidden")}
        return (
            {name: (getattr(self, name),) for name in names} | {name: getattr(self, name) for name in chained} | hidden
        )

    def _dropouts(self) -> dict[str, tuple[tuple[float, ...], int]]:
        """Values, and how many there must be."""
        return {
            "video_dropout": (self.video_dropout, len(self.video_hidden) + 1),
            "audio_dropout": (self.audio_dropout, len(self.audio_hidden) + 1),
            "text_dropout": (self.text_dropout, len(self.text_hidden) + 1),
            "joint_dropout": (self.joint_dropout, len(self.joint_widths)),
            "fmri_dropout": ((self.fmri_dropout,), 1),
            "decoder_dropout": ((self.decoder_dropout,), 1),
        }

    @property
    def audio_values(self) -> int:
        """Values that the codes of a TR enter as, and leave as before they are compared with the codebooks."""
        return self.shape.audio_dim * (self.code_width if self.audio_output == "codes" else 1)


def preset_config(preset: Preset, shape: FilmShape) -> BrainAutoencoderConfig:
    """A preset for films of that shape; raises ValueError for another word."""
    match preset:
        case "documented":
            return documented(shape)
        case "small":
            return small(shape)
        case "tiny":
            return tiny(shape)
        case _:
            raise ValueError(f"model.preset is {preset!r}; allowed: documented, small, tiny")


def documented(shape: FilmShape = DOCUMENTED_SHAPE) -> BrainAutoencoderConfig:
    """At DOCUMENTED_SHAPE 3,235,947,138 parameters in the encoder and 264,241,152 in the decoder."""
    return BrainAutoencoderConfig(shape=shape, norm="batch", audio_output="scalar")


def small(shape: FilmShape) -> BrainAutoencoderConfig:
    """For a laptop and thousands of TRs: half the documented depth, and dropout only where voxels are over-fitted.

    On the generated film (FVU of fMRI at best .28) 600 updates without dropout came to .38 at the documented depth and
    to .33 at this one; .1 of dropout everywhere made both worse.
    """
    return BrainAutoencoderConfig(
        shape=shape,
        video_hidden=(256,),
        video_features=128,
        audio_hidden=(128,),
        audio_features=64,
        text_hidden=(128,),
        text_features=64,
        joint_widths=(256,),
        bottleneck_dim=128,
        fmri_hidden=256,
        trunk_widths=(256,),
        video_decoder=(256,),
        audio_decoder=(256,),
        text_decoder=(256,),
        video_dropout=(0.0,) * 2,
        audio_dropout=(0.0,) * 2,
        text_dropout=(0.0,) * 2,
        joint_dropout=(0.1,),
        fmri_dropout=0.1,
        decoder_dropout=0.0,
        norm="layer",
        code_width=16,
        gradient_checkpointing=False,
    )


def tiny(shape: FilmShape) -> BrainAutoencoderConfig:
    """For tests: every kind of layer once or twice, no dropout."""
    return BrainAutoencoderConfig(
        shape=shape,
        video_hidden=(32, 24),
        video_features=16,
        audio_hidden=(16,),
        audio_features=8,
        text_hidden=(16,),
        text_features=8,
        joint_widths=(32, 32),
        bottleneck_dim=16,
        fmri_hidden=32,
        trunk_widths=(32, 32),
        video_decoder=(32,),
        audio_decoder=(32,),
        text_decoder=(32,),
        video_dropout=(0.0,) * 3,
        audio_dropout=(0.0,) * 2,
        text_dropout=(0.0,) * 2,
        joint_dropout=(0.0,) * 2,
        fmri_dropout=0.0,
        decoder_dropout=0.0,
        norm="layer",
        code_width=8,
        gradient_checkpointing=False,
    )


def chains(config: BrainAutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Widths of every chain of linear layers by its name in the network, input first."""
    shape, bottleneck, shown = config.shape, config.bottleneck_dim, config.trunk_widths[-1]
    features = config.video_features + config.audio_features + config.text_features
    return {
        "encoder.video": (shape.video_dim, *config.video_hidden, config.video_features),
        "encoder.audio": (config.audio_values, *config.audio_hidden, config.audio_features),
        "encoder.text": (shape.text_dim, *config.text_hidden, config.text_features),
        "encoder.joint": (features, *config.joint_widths, bottleneck),
        "encoder.fmri": (bottleneck, config.fmri_hidden, shape.voxels),
        "decoder.trunk": (bottleneck, *config.trunk_widths),
        "decoder.video": (shown, *config.video_decoder, shape.frame_dim),
        "decoder.audio": (shown, *config.audio_decoder, config.audio_values),
        "decoder.text": (shown, *config.text_decoder, shape.text_dim),
    }


def flops(config: BrainAutoencoderConfig) -> float:
    """Operations of a forward on one TR, multiply-add = 2: linear layers; norms and activations count nothing."""
    places, width, codes = config.shape.audio_dim, config.code_width, config.shape.num_codes
    books = 2.0 * places * width * codes if config.audio_output == "codes" else 0.0
    return books + sum(_of_chain(widths) for widths in chains(config).values())


def training_flops(config: BrainAutoencoderConfig) -> float:
    """Operations of forward and backward on one TR: three forwards, less what no backward asks for.

    Pictures, text and codes as numbers need no gradient: at full size that is 1.77 of 10.5 G multiply-adds.
    """
    without_gradient = ["encoder.video", "encoder.text"]
    if config.audio_output == "scalar":
        without_gradient.append("encoder.audio")
    widths = chains(config)
    return 3.0 * flops(config) - sum(_of_chain(widths[name][:2]) for name in without_gradient)


def recomputed_flops(config: BrainAutoencoderConfig) -> float:
    """What gradient_checkpointing adds to that; XLA leaves the first layer out (brain_layers.py)."""
    return _of_chain(chains(config)["encoder.video"]) if config.gradient_checkpointing else 0.0


def _of_chain(widths: Sequence[int]) -> float:
    return 2.0 * sum(inputs * outputs for inputs, outputs in pairwise(widths))
