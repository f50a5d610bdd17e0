"""Checkpoints of our own store -> what is in the last and the best of them, and which are not what they say.

Only read, never put into quarantine; every file is held against size and hash before it is opened. One is in memory
at a time, for one may be 40 GB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oct_foundation.checkpoints.catalog import Catalog
from oct_foundation.checkpoints.export import TEACHER
from oct_foundation.checkpoints.manifest import STATE_FILE, CheckpointName, Manifest
from oct_foundation.checkpoints.store import CheckpointStore, Corrupt, NotFound, StoreError
from oct_foundation.diagnostics.learned import ModalityVerdict, judge_checkpoint
from oct_foundation.diagnostics.readings import Finding
from oct_foundation.diagnostics.weights import CheckpointTensors, Examination, Moments, examine
from oct_foundation.film import CONTINUOUS, FILM_MODALITIES
from pretraining.health.parameter_names import moments_of
from pretraining.health.sections import unreadable

STUDENT = "context_encoder."
TASK_MODALITIES = {"vjepa": ("OCT",), "autoencoder": FILM_MODALITIES}


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """One checkpoint, looked into. role: last, best or both; step: of the file itself; label: how it is named.

    num_parameters: by part of the network; moments_named: whether the optimizer's state could be told apart by name,
    None without any.
    """

    label: str
    role: str
    step: int
    examination: Examination
    num_parameters: Mapping[str, int]
    dtypes: tuple[str, ...]
    moments_named: bool | None
    best_val_loss: float | None = None
    skipped: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """All committed checkpoints, oldest first, those looked into, and what is wrong with files and labels."""

    manifests: tuple[Manifest, ...]
    weighed: tuple[Weighed, ...]
    findings: tuple[Finding, ...]


def look_into(store: CheckpointStore, best: int | None = None, only: CheckpointName | None = None) -> Stored:
    """The newest, and that of step `best`; or `only` one. Sizes of all others are held against their manifests."""
    catalog, findings, weighed = Catalog(store, reader=""), [], []
    manifests, broken = _manifests(catalog, only)
    findings += broken
    wanted = {manifests[-1].name: "last"} if manifests else {}
    if best is not None and (at_best := [one.name for one in manifests if one.step == best]):
        wanted[at_best[-1]] = "last and best" if at_best[-1] in wanted else "best"
    for manifest in manifests:
        if manifest.name not in wanted:
            continue
        try:
            state, _ = catalog.loaded(manifest.name)
            weighed.append(_weigh(state, manifest, wanted[manifest.name]))
        except (StoreError, KeyError, TypeError, ValueError, AttributeError) as error:
            findings.append(unreadable(f"Checkpoint {manifest.name.folder}", _said(error), manifest.step))
            continue
        if (inside := state.get("step")) != manifest.step:
            findings.append(_mislabelled(f"{manifest.name.folder} holds the weights of step {inside}", manifest.step))
        del state
    return Stored(manifests=tuple(manifests), weighed=tuple(weighed), findings=tuple(findings))


def against_record(manifests: Sequence[Manifest], record: Mapping[int, Mapping[str, float]]) -> list[Finding]:
    """Checkpoints whose metrics are not those that the record has of their step; restarts train steps again, so only
    the newest attempt is held against it.
    """
    newest = max((one.attempt for one in manifests), default="")
    found = []
    for manifest in manifests:
        known = record.get(manifest.step, {}) if manifest.attempt == newest else {}
        differing = [
            name
            for name, value in manifest.metrics.items()
            if value is not None and name in known and abs(value - known[name]) > 1e-6 * max(abs(value), 1e-12)
        ]
        if differing:
            name = differing[0]
            what = f"{manifest.name.folder} says {name} {manifest.metrics[name]:.6g}, the record {known[name]:.6g}"
            found.append(_mislabelled(f"{what} ({len(differing)} metrics differ)", manifest.step))
    return found


def verdicts_without_series(config: Mapping[str, Any]) -> list[ModalityVerdict]:
    """CANNOT TELL, of each modality that the configuration names."""
    task = config.get("task", "vjepa")
    names = TASK_MODALITIES.get(str(task)) or tuple(_enabled(config)) or ("model",)
    return [judge_checkpoint(name) for name in names]


def _enabled(config: Mapping[str, Any]) -> list[str]:
    dataset = config.get("data") or config.get("dataset")
    known = ("T1", "rsfMRI", "dMRI")
    return [name for name in known if isinstance(dataset, Mapping) and dataset.get(name)]


def _manifests(catalog: Catalog, only: CheckpointName | None) -> tuple[list[Manifest], list[Finding]]:
    """Readable ones whose files have the promised sizes, and a finding for each other."""
    found, findings = [], []
    try:
        folders = {folder.name: folder for folder in catalog.committed()}
    except StoreError as error:
        return [], [unreadable(f"The place of checkpoints {catalog.store}", str(error))]
    if only is not None and only not in folders:
        findings.append(unreadable(f"Checkpoint {only.folder}", "it has no manifest: it was never finished", only.step))
    for name, folder in folders.items():
        if only not in (None, name):
            continue
        try:
            manifest = catalog.manifest(name)
        except (Corrupt, NotFound, StoreError) as error:
            findings.append(unreadable(f"Checkpoint {name.folder}", str(error), name.step))
            continue
        sizes = {info.key: info.size for info in folder.objects}
        size, promised = sizes.get(name.key(STATE_FILE)), manifest.files[STATE_FILE].size
        if size != promised:
            what = (
                f"{STATE_FILE} is missing" if size is None else f"it has {size:,} bytes, its manifest says {promised:,}"
            )
            findings.append(unreadable(f"Checkpoint {name.folder}", what, name.step))
            continue
        found.append(manifest)
    return found, findings


def _weigh(state: Mapping[str, Any], manifest: Manifest, role: str) -> Weighed:
    """Raises KeyError, TypeError, ValueError or AttributeError for a state of another form."""
    tensors: Mapping[str, torch.Tensor] = state["model"]
    moments: dict[str, Moments] = {}
    named: bool | None = None
    if state.get("optimizer"):
        moments, named = moments_of(tensors, state["optimizer"])
    config = manifest.facts.get("config") or {}
    optim = config.get("optim") or {}
    skipped = int(state["skipped"]["total"]) if "skipped" in state else None
    examination = examine(
        CheckpointTensors(
            tensors=tensors,
            parameters=[*moments, *(name for name in tensors if name.startswith(TEACHER))] if named else None,
            moments=moments,
            updates=max(int(state.get("step", manifest.step)) - (skipped or 0), 0),
            learning_rate=manifest.metrics.get("train/learning_rate"),
            betas=tuple(optim.get("betas") or (0.9, 0.999)),
            eps=float(optim.get("eps") or 1e-8),
            teachers=[(STUDENT, TEACHER)] if any(name.startswith(TEACHER) for name in tensors) else [],
            input_variance=_input_variance(tensors),
        )
    )
    best = state.get("best_val_loss")
    return Weighed(
        label=manifest.name.folder,
        role=role,
        step=int(state.get("step", manifest.step)),
        examination=examination,
        num_parameters=count_parameters(tensors, examination),
        dtypes=tuple(sorted({fact.dtype for fact in examination.tensors if fact.kind in ("weight", "vector")})),
        moments_named=named,
        best_val_loss=best if isinstance(best, float) and best < float("inf") else None,
        skipped=skipped,
    )


def count_parameters(tensors: Mapping[str, torch.Tensor], examination: Examination) -> dict[str, int]:
    """Of `encoder`, `decoder` and the like: the first parts of the names behind a wrapper that all share."""
    trained = [fact.name for fact in examination.tensors if fact.kind in ("weight", "vector")]
    wrapper = trained[0].split(".")[0] if trained else ""
    wrapped = all(name.startswith(f"{wrapper}.") for name in trained)
    counts: dict[str, int] = {}
    for name in trained:
        part = name.split(".")[1 if wrapped and name.count(".") > 1 else 0]
        counts[part] = counts.get(part, 0) + tensors[name].numel()
    return counts


def _input_variance(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of the film's first layers, from the statistics that its loss is measured in: a TR's pictures vary at most
    as many times as much as their mean does.
    """
    if "scales" not in tensors:
        return {}
    variance = dict(zip(CONTINUOUS, tensors["scales"][:, 0].tolist(), strict=True))
    found = {}
    for name in ("video", "text"):
        first = f"network.encoder.{name}.0.dense.linear.weight"
        if first in tensors:
            found[first] = variance[name] * max(tensors[first].shape[1] / tensors[f"mean_{name}"].numel(), 1.0)
    return found


def _mislabelled(evidence: str, step: int) -> Finding:
    return Finding(
        name="checkpoint_mislabelled",
        severity="alarm",
        step=step,
        evidence=f"{evidence}.",
        remedy="Do not use it under this name: evaluate it anew, or train again. Copies were swapped, or overwritten.",
    )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else f"it is of another form ({type(error).__name__}: {error})"
