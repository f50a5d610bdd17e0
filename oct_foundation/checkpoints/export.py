"""A checkpoint -> what people load: the EMA encoder as safetensors with its configuration, and one .pt of weights.

Both load without running code of the file. `encoder.json` names their sha256, the step and the metrics: publish it
beside the weights, since a hash that lies only in a bucket finds accidents and no attacker.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as to_safetensors

from oct_foundation.checkpoints.manifest import Manifest

TEACHER = "target_encoder."  # the part of a V-JEPA3D that is kept: its student forgets, the average does not


class Exported(NamedTuple):
    """Where the three files lie."""

    weights: Path
    encoder: Path
    facts: Path


def export(state: dict[str, Any], manifest: Manifest, folder: Path) -> Exported:
    """Writes best_checkpoint.pt ({"model": all weights, "config", "step", "metrics"}), encoder.safetensors (the EMA
    encoder) and encoder.json; each whole or not at all, in place of an earlier export.

    Raises ValueError for a checkpoint without an EMA encoder, OSError where the folder cannot be written.
    """
    encoder = {
        name.removeprefix(TEACHER): tensor.contiguous()
        for name, tensor in state["model"].items()
        if name.startswith(TEACHER)
    }
    if not encoder:
        raise ValueError(f"the checkpoint of step {manifest.step} holds no {TEACHER.rstrip('.')}: nothing to export")
    config = manifest.facts.get("config", {})
    buffer = io.BytesIO()
    torch.save({"model": state["model"], "config": config, "step": manifest.step, "metrics": manifest.metrics}, buffer)
    weights = folder / "best_checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(weights, buffer.getvalue())
    facts = {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "run": manifest.run,
        "metrics": manifest.metrics,
        "model": config.get("model", {}),
        "sha256": {weights.name: hashlib.sha256(buffer.getbuffer()).hexdigest()},
    }
    return Exported(weights, *export_encoder(encoder, facts, folder))


def export_encoder(encoder: dict[str, torch.Tensor], facts: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes encoder.safetensors, then encoder.json: `facts` ("model" is needed) with the sha256 of the weights."""
    path, facts_path = folder / "encoder.safetensors", folder / "encoder.json"
    packed = to_safetensors(encoder, metadata={"model": json.dumps(facts["model"])})
    hashes = {**facts.get("sha256", {}), path.name: hashlib.sha256(packed).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed)
    write_whole(facts_path, json.dumps({**facts, "sha256": hashes}, indent=1).encode() + b"\n")
    return path, facts_path


def write_whole(path: Path, content: bytes) -> None:
    """Temporary name in the same folder, then rename: the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
