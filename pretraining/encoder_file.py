"""Any saved encoder -> a network that is ready to use, with the configuration and the step that it comes from.

A run, a checkpoint, a bucket, an export, a Hugging Face folder, a fine-tuned model: all end here, and all keys must
fit. What is loaded is the EMA teacher: the network that a run is delivered as.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import nn

from data_setup.sources import is_gcs
from oct_foundation.checkpoints.export import TEACHER
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import CheckpointName
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import Corrupt, NotFound
from oct_foundation.models.vjepa2_weights import from_vjepa2
from oct_foundation.models.vjepa3d import PRESETS, VJEPA3D, VJEPA3DConfig
from pretraining.saved_run import open_run

OWN_TYPE, TRANSFORMERS_TYPE, FINETUNED_TYPE = "octfm_vjepa3d", "vjepa2", "octfm_finetuned"
PREDICTOR = "predictor."
Weights = dict[str, torch.Tensor]
_ALLOWED = (
    "a run folder, its checkpoints, gs://bucket/prefix, an export folder (encoder.safetensors and encoder.json), a "
    "Hugging Face folder (config.json and model.safetensors), or best_checkpoint.pt"
)


@dataclass(frozen=True, kw_only=True)
class SavedWeights:
    """What a source holds: tensors under VJEPA3D's names (`target_encoder.` always, `predictor.` where it is there).

    run_config: the run's whole configuration where the source has it, else {"model": ...}; run_folder: where metrics
    and reports of the run lie, if on this machine.
    """

    weights: Weights
    config: VJEPA3DConfig
    step: int
    source: str
    run_config: dict[str, Any]
    run_folder: Path | None = None
    metrics: dict[str, float | None]

    def part(self, prefix: str) -> Weights:
        """The tensors below `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class SavedEncoder:
    """The EMA teacher in eval mode: uint8 or float [B, 1, D, H, W] -> float [B, N, E]; else as SavedWeights."""

    encoder: nn.Module
    config: VJEPA3DConfig
    step: int
    source: str
    run_config: dict[str, Any]
    run_folder: Path | None = None

    @property
    def width(self) -> int:
        """E."""
        return PRESETS[self.config.preset].width


def load_encoder(source: str, *, step: int | None = None) -> SavedEncoder:
    """The encoder that `source` holds, on the CPU; `step` of a run, its newest intact checkpoint by default.

    Raises ValueError (what was found, what is allowed), StoreError where a bucket or a mount fails.
    """
    saved = read_weights(source, step=step)
    encoder = random_encoder(saved.config)
    load_strictly(encoder, saved.part(TEACHER), source)
    return SavedEncoder(
        encoder=encoder,
        config=saved.config,
        step=saved.step,
        source=source,
        run_config=saved.run_config,
        run_folder=saved.run_folder,
    )


def random_encoder(config: VJEPA3DConfig, seed: int = 0) -> nn.Module:
    """An encoder as a run would start it: the control beside every trained one. Torch's own generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJEPA3D(config).target_encoder


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 over names, shapes and fp32 bytes: equal for equal weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_strictly(network: nn.Module, weights: Weights, source: str) -> None:
    """Copies `weights` into the network; raises ValueError, naming some, where names or shapes do not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        wrong = {
            "missing": sorted(expected.keys() - found.keys()),
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape": [
                f"{name} {list(found[name])} instead of {list(shape)}"
                for name, shape in expected.items()
                if found.get(name, shape) != shape
            ],
        }
        parts = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in wrong.items() if names]
        raise ValueError(f"{source}: its weights do not fit its configuration: {'; '.join(parts)}")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)


def read_weights(source: str, *, step: int | None = None) -> SavedWeights:
    """Everything that `source` holds of a VJEPA3D; see load_encoder."""
    path = Path(source)
    if is_gcs(source):
        return _of_run(source, step)
    if path.is_file() and path.name == "encoder.safetensors":
        path = path.parent
    if path.is_dir():
        if (path / "encoder.safetensors").is_file():
            saved = _of_export(path, source)
        elif (path / "config.json").is_file():
            saved = _of_hugging_face(path, source)
        elif _holds_checkpoints(path):
            return _of_run(source, step)
        else:
            inside = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
            raise ValueError(f"{source} holds no encoder, but: {inside}. Give {_ALLOWED}")
    elif path.is_file():
        saved = _of_checkpoint_file(path, source)
    else:
        raise ValueError(f"{source} does not exist. Give {_ALLOWED}")
    if step not in (None, saved.step):
        raise ValueError(f"{source} holds step {saved.step} only, not {step}; a run folder holds several")
    return saved


def parse_config(values: Any, source: str) -> VJEPA3DConfig:
    """The model section of a saved configuration; raises ValueError where it is none of this version's."""
    if not isinstance(values, dict) or "image_size" not in values:
        raise ValueError(f"{source} does not say which model it holds (no model.image_size)")
    known = {field.name for field in fields(VJEPA3DConfig)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{source} is of another version of octfm: its model has {', '.join(unknown)}")
    return VJEPA3DConfig(**values)


def _holds_checkpoints(path: Path) -> bool:
    """A run folder, its folder of checkpoints or one of these."""
    inside = any(CheckpointName.of_key(child.name) for child in path.iterdir())
    return (
        inside
        or bool(CheckpointName.of_key(path.name))
        or (path / "config.yaml").is_file()
        or (path / "checkpoints").is_dir()
    )


def _of_run(source: str, step: int | None) -> SavedWeights:
    run = open_run(source)
    if run.name is not None and step not in (None, run.name.step):
        raise ValueError(
            f"{source} is the checkpoint of step {run.name.step}, --step says {step}; leave one of them out"
        )
    manager = CheckpointManager(run.store, CheckpointSettings(), run_id="", may_quarantine=False)
    try:
        found = manager.restore(run.name if step is None else step)
    except (NotFound, Corrupt) as error:
        raise ValueError(str(error)) from error
    if found is None:
        raise ValueError(f"{run.store} holds no checkpoint; the run has not saved one yet. Give {_ALLOWED}")
    state, manifest = found
    return _checked(
        state.get("model", {}), manifest.facts.get("config", {}), manifest.step, source, manifest.metrics, run.folder
    )


def _of_checkpoint_file(path: Path, source: str) -> SavedWeights:
    """best_checkpoint.pt: {"model", "config", "step", "metrics"}; only tensors and plain values are unpickled."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source} is no saved checkpoint ({type(error).__name__}). Give {_ALLOWED}") from None
    if not isinstance(content, dict) or not {"model", "config", "step"} <= content.keys():
        raise ValueError(f"{source} holds no model with its config and step. Give {_ALLOWED}")
    return _checked(content["model"], content["config"], content["step"], source, content.get("metrics", {}), None)


def _of_export(folder: Path, source: str) -> SavedWeights:
    """encoder.safetensors, compared with the sha256 that encoder.json names."""
    facts = _json(folder / "encoder.json")
    content = (folder / "encoder.safetensors").read_bytes()
    named = facts.get("sha256", {}).get("encoder.safetensors")
    if hashlib.sha256(content).hexdigest() != named:
        raise ValueError(
            f"{source}: encoder.safetensors is not the file whose sha256 encoder.json names; copy both again"
        )
    weights = {TEACHER + name: tensor for name, tensor in _tensors(content, source).items()}
    return _checked(weights, {"model": facts.get("model")}, facts["step"], source, facts.get("metrics", {}), None)


def _of_hugging_face(folder: Path, source: str) -> SavedWeights:
    """A folder of `octfm export --to hf` or `octfm finetune`; in that of transformers, names are turned back."""
    facts = _json(folder / "config.json")
    kind, own = facts.get("model_type"), facts.get("octfm")
    if own is None or kind not in (OWN_TYPE, TRANSFORMERS_TYPE, FINETUNED_TYPE):
        raise ValueError(
            f"{source}: config.json is of model_type {kind!r} and not written by octfm. V-JEPA 2's own weights can "
            f"start a run; as an encoder of OCT, give {_ALLOWED}"
        )
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{source} has config.json but no model.safetensors; copy the folder again")
    tensors = _tensors((folder / "model.safetensors").read_bytes(), source)
    match kind:
        case "vjepa2":
            weights = from_vjepa2(tensors)
        case "octfm_finetuned":
            weights = {
                TEACHER + name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")
            }
        case _:
            weights = {TEACHER + name: tensor for name, tensor in tensors.items()}
    return _checked(weights, {"model": own["model"]}, own["step"], source, own.get("metrics", {}), None)


def _checked(
    weights: Weights, config: dict[str, Any], step: int, source: str, metrics: dict[str, Any], folder: Path | None
) -> SavedWeights:
    if not any(name.startswith(TEACHER) for name in weights):
        raise ValueError(f"{source} holds no {TEACHER.rstrip('.')}, the EMA encoder of a V-JEPA3D run")
    return SavedWeights(
        weights=weights,
        config=parse_config(config.get("model"), source),
        step=step,
        source=source,
        run_config=config,
        run_folder=folder,
        metrics=metrics,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); it belongs beside the weights") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _tensors(content: bytes, source: str) -> Weights:
    try:
        return from_safetensors(content)
    except SafetensorError as error:
        raise ValueError(f"{source}: its safetensors file is damaged ({error}); copy it again") from None
