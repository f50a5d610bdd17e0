"""A fine-tuned network <-> its folder: model.safetensors, config.json. `octfm embed` reads its encoder, too."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save

from oct_foundation.checkpoints.export import write_whole
from oct_foundation.models.head import FineTuned
from oct_foundation.models.vjepa3d import VJEPA3DConfig
from pretraining.encoder_file import FINETUNED_TYPE, SavedEncoder, load_strictly, parse_config, random_encoder
from pretraining.finetune.outputs import Outputs
from pretraining.finetune.settings import FineTuneSettings
from pretraining.finetune.training import Trained, build_model


class LoadedModel(NamedTuple):
    """The network in eval mode on the CPU: uint8 [B, 1, D, H, W] -> float [B, outputs]; `outputs` reads them."""

    model: FineTuned
    outputs: Outputs
    config: VJEPA3DConfig


def save_model(trained: Trained, saved: SavedEncoder, settings: FineTuneSettings, folder: Path) -> None:
    """Writes both files, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in trained.model.state_dict().items()}
    config: dict[str, Any] = {
        "model_type": FINETUNED_TYPE,
        "octfm": {"model": asdict(saved.config), "step": saved.step, "metrics": {}},
        "label": asdict(trained.outputs),
        "finetune": asdict(settings),
    }
    write_whole(folder / "model.safetensors", save(weights))
    write_whole(folder / "config.json", json.dumps(config, indent=1).encode() + b"\n")


def load_model(folder: str | Path) -> LoadedModel:
    """Reads what `octfm finetune` wrote; raises ValueError where the folder holds something else."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / "config.json").read_text())
        config = parse_config(facts["octfm"]["model"], str(folder))
        outputs = Outputs(**facts["label"] | {"classes": tuple(facts["label"]["classes"])})
        settings = FineTuneSettings(**facts["finetune"])
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no folder of octfm finetune ({type(error).__name__}: {error})") from None
    saved = SavedEncoder(
        encoder=random_encoder(config), config=config, step=facts["octfm"]["step"], source=str(folder), run_config={}
    )
    model = build_model(saved, outputs, settings)
    load_strictly(model, load_file(folder / "model.safetensors"), str(folder))
    return LoadedModel(model.eval().requires_grad_(False), outputs, config)
