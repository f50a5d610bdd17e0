"""`octfm export CKPT --to safetensors|hf --out DIR`: an encoder as files for people who do not train it.

A Hugging Face folder loads in `transformers` as VJEPA2 where that can be the same network; where not, only here, and
the command says why.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors

from oct_foundation.checkpoints.export import TEACHER, export_encoder, write_whole
from oct_foundation.models.encoder import VOXEL_MEAN, VOXEL_STD
from oct_foundation.models.vjepa2_weights import obstacles, to_vjepa2, vjepa2_settings
from pretraining.command_line import open_folder, with_exit_code
from pretraining.encoder_file import (
    OWN_TYPE,
    PREDICTOR,
    TRANSFORMERS_TYPE,
    SavedWeights,
    load_strictly,
    random_encoder,
    read_weights,
)
from pretraining.model_card import model_card


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octfm export", description="Write an encoder for use elsewhere.")
    parser.add_argument(
        "encoder", metavar="CKPT", help="run folder, checkpoint, export or Hugging Face folder, gs://..."
    )
    parser.add_argument(
        "--to",
        choices=("safetensors", "hf"),
        required=True,
        help="safetensors: encoder.safetensors and encoder.json; hf: a Hugging Face folder with a model card",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder; an earlier export is replaced")
    parser.add_argument("--step", type=int, help="this step of a run (default: its newest intact checkpoint)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    saved = read_weights(arguments.encoder, step=arguments.step)
    load_strictly(random_encoder(saved.config), saved.part(TEACHER), saved.source)  # nothing broken is published
    if arguments.to == "safetensors":
        facts = {"step": saved.step, "metrics": saved.metrics, "model": asdict(saved.config)}
        written: tuple[Path, ...] = export_encoder(_contiguous(saved.part(TEACHER)), facts, arguments.out)
    else:
        written = export_hugging_face(saved, arguments.out)
        if reasons := obstacles(saved.config):
            print(f"octfm loads this folder, transformers cannot: {'; '.join(reasons)}")
        else:
            print("transformers.VJEPA2Model.from_pretrained loads this folder, and octfm does")
    for path in written:
        print(path)
    return 0


def export_hugging_face(saved: SavedWeights, folder: Path) -> tuple[Path, ...]:
    """Writes model.safetensors, preprocessor_config.json, README.md and, last, config.json; returns their paths.

    As a VJEPA2 of `transformers`, with the predictor where `saved` has one, or as this package's own type. Raises
    ValueError where the folder holds such files that octfm has not written.
    """
    open_folder(
        folder,
        replacing=("model.safetensors", "preprocessor_config.json", "README.md"),
        model_types=(OWN_TYPE, TRANSFORMERS_TYPE),
    )
    encoder = saved.part(TEACHER)
    if obstacles(saved.config):
        weights, kind = encoder, {"model_type": OWN_TYPE, "architectures": ["VJEPA3D"]}
    else:
        weights = to_vjepa2(encoder, saved.part(PREDICTOR))
        kind = {"model_type": TRANSFORMERS_TYPE, "architectures": ["VJEPA2Model"], **vjepa2_settings(saved.config)}
    own = {"model": asdict(saved.config), "step": saved.step, "metrics": saved.metrics}
    config = {**kind, "dtype": "float32", "octfm": own}
    contents = {
        "model.safetensors": to_safetensors(_contiguous(weights), metadata={"format": "pt"}),
        "preprocessor_config.json": _json(_preprocessor(saved)),
        "README.md": model_card(saved).encode(),
        "config.json": _json(config),
    }
    (folder / "config.json").unlink(missing_ok=True)  # without it a folder is no model: old and new never mix
    for name, content in contents.items():
        write_whole(folder / name, content)
    return tuple(folder / name for name in contents)


def _preprocessor(saved: SavedWeights) -> dict[str, Any]:
    """How 8-bit voxels become the network's input: x = (v * rescale_factor - image_mean) / image_std."""
    depth, height, width = saved.config.image_size
    return {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [VOXEL_MEAN],
        "image_std": [VOXEL_STD],
        "num_channels": saved.config.in_channels,
        "size": {"num_bscans": depth, "height": height, "width": width},
    }


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


def _contiguous(weights: dict[str, Any]) -> dict[str, Any]:
    """float32, each with memory of its own, as safetensors wants them."""
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


if __name__ == "__main__":
    sys.exit(main())
