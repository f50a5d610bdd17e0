"""Which data, which model, which settings, which machine, which versions: the facts of a run, as lines of a table."""

from collections.abc import Mapping
from typing import Any

from pretraining.report.gather import RunRecord

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


def facts_of(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of (what, value); what is not on record is left out. The newest checkpoint helps where no summary is."""
    saved = run.checkpoints[-1].get("facts") if run.checkpoints else None
    facts = saved if isinstance(saved, Mapping) else {}
    summary = run.summary or {}
    tables = [
        ("Data", _data(run, summary, facts)),
        ("Model", _model(run, summary)),
        ("Training", _training(run, summary, facts)),
        ("Machine", _machine(run, summary)),
        ("Versions", _versions(summary, facts)),
    ]
    return [(title, rows) for title, rows in tables if rows]


def _data(run: RunRecord, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    volumes = _mapping(summary.get("volumes"))
    makers = _mapping(run.data.get("vendors"))
    return _known(
        ("source", run.setting("data", "source")),
        ("volumes to train on", volumes.get("train") or facts.get("samples_per_epoch")),
        ("usable volumes", volumes.get("accepted") or run.data.get("accepted")),
        ("makers", ", ".join(f"{maker} {count}" for maker, count in makers.items())),
        ("version of the data", facts.get("data") or run.data.get("version")),
    )


def _model(run: RunRecord, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return _known(
        ("encoder", run.setting("model", "preset")),
        ("volume (B-scans × depth × width)", _times(run.setting("model", "image_size"))),
        ("patch", _times(run.setting("model", "patch_size"))),
        ("positions", run.setting("model", "positions")),
        ("trained parameters", summary.get("trainable_parameters")),
    )


def _training(run: RunRecord, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    hidden = run.setting("mask", "ratio")
    return _known(
        ("loss", run.setting("model", "loss")),
        ("mask", run.setting("mask", "strategy")),
        ("hidden share of a scan", f"{hidden:.0%}" if isinstance(hidden, float) else None),
        ("volumes per update", facts.get("global_batch") or run.setting("batch", "global_batch_size")),
        ("volumes seen", summary.get("samples_seen")),
        ("learning rate", run.setting("optim", "base_lr")),
        ("warm-up updates", run.setting("optim", "warmup_steps")),
        ("EMA momentum", _from_to(run.setting("optim", "ema_momentum"), run.setting("optim", "final_ema_momentum"))),
        ("seed", _plain(run.setting("seed"))),
    )


def _machine(run: RunRecord, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory = summary.get("peak_memory_bytes")
    saving = _mapping(summary.get("checkpoints"))
    return _known(
        ("device", summary.get("device") or run.setting("runtime", "device")),
        ("processes", summary.get("world_size")),
        ("precision", summary.get("precision") or run.setting("train", "precision")),
        ("most memory in use", _bytes(memory) if isinstance(memory, int) and memory > 0 else None),
        ("programs compiled", summary.get("graphs_compiled")),
        ("saves that failed", saving.get("failed")),
        ("system", summary.get("host")),
    )


def _versions(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = _mapping(summary.get("versions") or facts.get("versions"))
    return _known(("git commit", summary.get("git_sha") or facts.get("git_sha")), *versions.items())


def _known(*rows: tuple[str, Any]) -> list[tuple[str, str]]:
    return [(name, f"{value:,}" if _is_count(value) else str(value)) for name, value in rows if value not in (None, "")]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _times(sizes: object) -> str | None:
    return " × ".join(map(str, sizes)) if isinstance(sizes, list) else None


def _from_to(start: object, end: object) -> str | None:
    return None if start is None else f"{start} to {end}" if end not in (None, start) else str(start)


def _bytes(count: int) -> str:
    return next((f"{count / size:.1f} {unit}" for size, unit in _UNITS if count >= size), f"{count} bytes")


def _plain(number: object) -> str | None:
    """A number that is a name, without commas."""
    return None if number is None else str(number)
