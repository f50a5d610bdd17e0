"""Checkpoints as others write them (.pt with model_state_dict and histories, .safetensors), beside a log or alone; and
a state.pt of ours that was copied out of its checkpoint.

Opened without running code of the file. A name proves nothing: "best" is held against epochs and histories.
"""

import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from oct_foundation.diagnostics.readings import Finding
from oct_foundation.diagnostics.weights import CheckpointTensors, Moments, examine
from pretraining.health.checkpoints import Weighed, count_parameters
from pretraining.health.parameter_names import moments_of

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_SAME = 5e-5  # of two losses: a log has four places


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """What a file says of itself; None where it is silent. train, val: losses of epochs 1 and later.

    digest: equal for equal weights. val_loss is a label: that of these weights only where the history agrees.
    """

    path: Path
    weighed: Weighed
    digest: str
    epoch: int | None
    global_step: int | None
    val_loss: float | None
    best_val_loss: float | None
    train: tuple[float, ...]
    val: tuple[float, ...]
    config: Mapping[str, Any]


def read_foreign(path: Path) -> ForeignFile:
    """Raises ValueError, saying why, for what is no checkpoint of tensors or is damaged."""
    try:
        if path.suffix == ".safetensors":
            saved: Any = {"model_state_dict": load_file(path)}
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _described(path, saved)
    except pickle.UnpicklingError as error:
        raise ValueError(f"torch refuses it under weights_only=True ({str(error).splitlines()[0]})") from None
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise ValueError(f"it is truncated or damaged ({str(error).splitlines()[0]})") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"it is of another form ({type(error).__name__}: {error})") from None


def holds_best(files: Sequence[ForeignFile], best: float, val_of: Mapping[int, float]) -> bool | None:
    """Whether one of the files has the weights that scored `best`; None where there is no file.

    val_of: validation loss by epoch, of the log. A label counts only where nothing speaks against it: its epoch's
    loss, by log or history, and weights that are not those of another epoch's file.
    """
    if not files:
        return None
    return any(_has(file, best, files, val_of) for file in files)


def mislabelled(files: Sequence[ForeignFile], val_of: Mapping[int, float]) -> list[Finding]:
    """Files that claim the best loss and hold the weights of another epoch."""
    found = []
    for file in files:
        claimed = file.val_loss if file.val_loss is not None else file.best_val_loss
        if "best" not in file.path.stem or claimed is None or _has(file, claimed, files, val_of):
            continue
        found.append(
            Finding(
                name="checkpoint_mislabelled",
                severity="alarm",
                step=file.epoch or 0,
                evidence=f"{file.path.name} is labelled with the validation loss {claimed:.2f}, and holds the weights "
                f"of epoch {'unknown' if file.epoch is None else file.epoch}, {_scored(file, files, val_of)}.",
                remedy="The best weights were overwritten. Save the best when it improves, in a file that only a "
                "better one replaces.",
            )
        )
    return found


def _has(file: ForeignFile, best: float, files: Sequence[ForeignFile], val_of: Mapping[int, float]) -> bool:
    if own := _own_losses(file, val_of):
        return any(math.isclose(loss, best, rel_tol=_SAME) for loss in own)
    if file.val_loss is None or not math.isclose(file.val_loss, best, rel_tol=_SAME):
        return False
    return not any(_ends(other) for other in files if other is not file and other.digest == file.digest)


def _own_losses(file: ForeignFile, val_of: Mapping[int, float]) -> list[float]:
    """What its epoch scored: the end of its own history, else by the log, whether the file counts from 1 or from 0."""
    if file.val:
        return [file.val[-1]]
    return [] if file.epoch is None else [val_of[at] for at in (file.epoch, file.epoch + 1) if at in val_of]


def _ends(file: ForeignFile) -> bool:
    return "final" in file.path.stem or "last" in file.path.stem


def _scored(file: ForeignFile, files: Sequence[ForeignFile], val_of: Mapping[int, float]) -> str:
    if own := _own_losses(file, val_of):
        return f"which scored {own[0]:.2f}"
    twins = [other.path.name for other in files if other is not file and other.digest == file.digest]
    return f"the same as {twins[0]}" if twins else "whose loss nothing confirms"


def _described(path: Path, saved: Any) -> ForeignFile:
    if not isinstance(saved, Mapping):
        raise ValueError("it holds no dictionary")
    state = next((saved[key] for key in ("model_state_dict", "model", "state_dict") if key in saved), saved)
    tensors = {
        str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ValueError("it holds no tensors by name")
    step, optimizer = (
        next((saved[key] for key in keys if key in saved), None)
        for keys in (("global_step", "step"), ("optimizer_state_dict", "optimizer"))
    )
    step = _whole(step)
    return ForeignFile(
        path=path,
        weighed=_weigh(path, tensors, optimizer, step, saved),
        digest=_digest(tensors),
        epoch=_whole(saved.get("epoch")),
        global_step=step,
        val_loss=_loss(saved.get("val_loss")),
        best_val_loss=_loss(saved.get("best_val_loss")),
        train=_history(saved.get("train_history")),
        val=_history(saved.get("val_history")),
        config=config if isinstance(config := saved.get("config"), Mapping) else {},
    )


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Names, shapes and sums in fp64; no copy is made, for a file may be 20 GB."""
    parts = (
        f"{name}{tuple(tensor.shape)}{float(tensor.sum(dtype=torch.float64))!r}" for name, tensor in tensors.items()
    )
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _weigh(
    path: Path, tensors: Mapping[str, torch.Tensor], optimizer: Any, step: int | None, saved: Mapping[str, Any]
) -> Weighed:
    moments: dict[str, Moments] = {}
    named: bool | None = None
    group: Mapping[str, Any] = {}
    if isinstance(optimizer, Mapping) and optimizer.get("param_groups"):
        moments, named = moments_of(tensors, optimizer)
        group = optimizer["param_groups"][0]
    betas = group.get("betas") or (0.9, 0.999)
    examination = examine(
        CheckpointTensors(
            tensors=tensors,
            moments=moments,
            updates=step,
            learning_rate=_loss(group.get("lr")),
            betas=(float(betas[0]), float(betas[1])),
            eps=float(group.get("eps", 1e-8)),
        )
    )
    return Weighed(
        label=path.name,
        role="best, by its name" if "best" in path.stem else "as saved",
        step=step or 0,
        examination=examination,
        num_parameters=count_parameters(tensors, examination),
        dtypes=tuple(sorted({fact.dtype for fact in examination.tensors if fact.kind in ("weight", "vector")})),
        moments_named=named,
        best_val_loss=_loss(saved.get("best_val_loss")),
    )


def _history(values: Any) -> tuple[float, ...]:
    """Of numbers, or of dictionaries with a total; () for any other form."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return ()
    losses = [
        _loss(next((one[key] for key in ("total_loss", "loss", "val_loss", "train_loss") if key in one), None))
        if isinstance(one, Mapping)
        else _loss(one)
        for one in values
    ]
    return tuple(loss for loss in losses if loss is not None) if None not in losses else ()


def _loss(value: Any) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
