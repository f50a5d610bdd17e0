"""`octfm checkpoints list|verify|export|prune RUN`: what a run saved, whether it is whole, its encoder as a file."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from oct_foundation.checkpoints.catalog import Catalog, Surveyed
from oct_foundation.checkpoints.export import export
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.manifest import Manifest
from oct_foundation.checkpoints.retention import CheckpointSettings, ranked
from oct_foundation.checkpoints.store import CheckpointStore, Corrupt, NotFound
from pretraining.command_line import with_exit_code
from pretraining.saved_run import open_run

EXIT_TROUBLE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one action; 0 done, 1 something is not intact, 2 a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    store = open_run(arguments.run).store
    settings = _settings(store, arguments)
    manager = CheckpointManager(store, settings, run_id="")
    try:
        match arguments.action:
            case "verify":
                return _verify(manager, settings)
            case "export":
                return _export(manager, arguments, settings)
            case "prune":
                manager.latest_intact()  # protects the newest that verifies, and finds the damaged ones first
                manager.prune()
    except (NotFound, Corrupt) as error:
        raise ValueError(str(error)) from error
    return _print(manager.survey(verify=False), settings)  # list, and what prune has left


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octfm checkpoints", description="Look after the checkpoints of a run.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("list", "steps, times, metrics and sizes; reads manifests only"),
        ("verify", "read everything and compare sizes and sha256"),
        (
            "export",
            "best_checkpoint.pt, and the EMA encoder as safetensors with its configuration; see also octfm export",
        ),
        ("prune", "delete all but the last, the best and every n-th, as the run's configuration says"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("run", help="run folder, folder of checkpoints, or gs://bucket/prefix")
        action.add_argument(
            "--metric", dest="best_metric", help="what the best one is chosen by (default: the run's, or none)"
        )
        action.add_argument("--mode", dest="best_mode", choices=("min", "max"), help="which way is better")
        if name == "export":
            action.add_argument(
                "--step", type=int, help="this step (default: the best one, without a metric the newest)"
            )
            action.add_argument("--to", type=Path, help="folder (default: RUN/export, for a bucket ./export)")
        if name == "prune":
            action.add_argument("--keep-last", type=int, help="how many of the newest stay (default: the run's)")
            action.add_argument("--keep-best", type=int, help="how many of the best stay, 0: none")
            action.add_argument("--keep-every", type=int, metavar="N", help="every N-th optimizer step stays")
            action.set_defaults(every_steps=None)
    return parser


def _settings(store: CheckpointStore, arguments: argparse.Namespace) -> CheckpointSettings:
    """What the call says of the metric and of what stays; else what the run's newest checkpoint says it was told."""
    own: dict[str, Any] = {}
    catalog = Catalog(store, reader="")
    for folder in reversed(catalog.committed()):
        with suppress(Corrupt, NotFound):
            own = catalog.manifest(folder.name).facts.get("config", {}).get("checkpoint", {})
            break
    asked = {field.name: vars(arguments)[field.name] for field in fields(CheckpointSettings) if field.name in arguments}
    known = {name: own[name] for name in asked if name in own}
    return CheckpointSettings(**known | {name: value for name, value in asked.items() if value is not None})


def _verify(manager: CheckpointManager, settings: CheckpointSettings) -> int:
    """Says so where all is whole; a place without any checkpoint is no proof of that."""
    found = manager.survey(verify=True)
    code = _print(found, settings)
    if found and not code:
        print(f"all {len(found)} intact")
    return code if found else EXIT_TROUBLE


def _print(found: list[Surveyed], settings: CheckpointSettings) -> int:
    """A line per checkpoint; 1 where one is not intact."""
    if not found:
        print("no checkpoint")
        return 0
    best = _best(found, settings)
    for name, manifest, trouble in found:
        if manifest is None:
            print(f"step {name.step:>8}  {name.attempt}  NOT INTACT: {trouble}")
            continue
        size = sum(digest.size for digest in manifest.files.values()) / 1e6
        mark = "  best" if best is not None and best.name == name else ""
        bad = f"  NOT INTACT: {trouble}" if trouble else ""
        print(f"step {name.step:>8}  {manifest.time_utc}  {_value(manifest, settings)}{size:.1f} MB{mark}{bad}")
    return EXIT_TROUBLE if any(one.trouble for one in found) else 0


def _value(manifest: Manifest, settings: CheckpointSettings) -> str:
    """The metric that the best one is chosen by, where there is any."""
    if settings.best_metric is None:
        return ""
    value = manifest.metrics.get(settings.best_metric)
    return f"{settings.best_metric} {value:.4g}  " if value is not None else f"no {settings.best_metric}  "


def _best(found: list[Surveyed], settings: CheckpointSettings) -> Manifest | None:
    sound = [one.manifest for one in found if one.manifest and not one.trouble]
    return next(iter(ranked(sound, settings)), None)


def _export(manager: CheckpointManager, arguments: argparse.Namespace, settings: CheckpointSettings) -> int:
    step = arguments.step
    if step is None:
        found = manager.survey(verify=False)
        best = _best(found, settings)
        if best is None and arguments.best_metric is not None and found:
            known = sorted({name for one in found if one.manifest for name in one.manifest.metrics})
            raise ValueError(f"no checkpoint has a value of {arguments.best_metric}; there are: {', '.join(known)}")
        step = best.step if best else None
    restored = manager.restore(step)
    if restored is None:
        raise ValueError(f"{manager.store} holds no checkpoint")
    state, manifest = restored
    local = Path(arguments.run)
    files = export(state, manifest, arguments.to or (local / "export" if local.is_dir() else Path("export")))
    for path in files:
        print(path)
    return 0
