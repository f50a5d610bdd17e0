"""`octfm preflight CONFIG [key=value ...]`: will this run fit a TPU slice, and what can it not beat? No TPU needed."""

import argparse
import importlib.util
import json
import logging
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oct_foundation.runtime.exits import ExitCode
from pretraining.command_line import positive, with_exit_code

if TYPE_CHECKING:
    from pretraining.preflight.estimate import Verdict

log = logging.getLogger("octfm")


def main(argv: Sequence[str] | None = None) -> int:
    """0: fits; 1: does not compile or fit, or compiles more programs than it should; 2: a wrong call."""
    arguments = _parser().parse_intermixed_args(argv)
    if missing := what_is_missing():
        print(f"octfm: {missing}", file=sys.stderr)
        return ExitCode.CONFIG
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a compiler of 9 GB must not be left behind
    try:
        return with_exit_code(lambda: _preflight(arguments))
    finally:
        signal.signal(signal.SIGTERM, before)


def what_is_missing() -> str:
    """Why nothing can be compiled here, and how to change that; "" where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"preflight needs the TPU compiler, which exists for Linux on x86-64 only; this is {sys.platform} on "
            f"{platform.machine()}. Any such machine or container will do, no TPU is needed"
        )
    absent = [name for name in ("torch_xla", "jax", "libtpu") if importlib.util.find_spec(name) is None]
    if absent:
        return (
            f"preflight needs {', '.join(absent)}: pip install 'octfm[preflight]', or "
            f"pip install --require-hashes -r requirements/tpu.txt"
        )
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm preflight",
        description="Trace the training step as every chip of a TPU slice would run it, compile it with the TPU "
        "compiler on this CPU, and say whether it fits and what limits it. No TPU and no data are needed.",
    )
    parser.add_argument("config", type=Path, help="the run's YAML; a data.root that it leaves open may stay open")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from it")
    parser.add_argument(
        "--topology", default="v4-32", help="the slice, by the name it is ordered with (default: v4-32)"
    )
    parser.add_argument("--suggest", action="store_true", help="find the largest per-core batch that fits: minutes")
    parser.add_argument("--volumes", type=positive, help="training volumes, for the length of the whole run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep programs and optimized HLO there")
    parser.add_argument(
        "--timeout-s", type=positive, default=900, help="seconds that tracing, or compiling one program, may take"
    )
    return parser


def _preflight(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from oct_foundation.preflight.stages import StageFailed
    from oct_foundation.preflight.topologies import topology
    from pretraining.preflight.run import Request, estimate
    from pretraining.preflight.suggest import suggest
    from pretraining.preflight.table import print_estimate
    from pretraining.tasks.build import build_objective

    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ValueError(
            f"--json {arguments.json}: there is no folder {arguments.json.absolute().parent}; make it first"
        )
    request = Request(
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        topology=topology(arguments.topology),
        timeout_s=arguments.timeout_s,
        progress=log.info,
        keep=arguments.keep,
        volumes=arguments.volumes,
    )
    try:
        console = Console(width=None if sys.stdout.isatty() else 160)
        kinds = build_objective(request.load()).kinds()
        answers: dict[str, Any] = {}
        verdicts = []
        for kind in kinds:
            keep = request.keep / kind if request.keep and kind else request.keep
            one = replace(request, kind=kind, keep=keep)
            found = estimate(one)
            answer: dict[str, Any] = found.to_dict()
            print_estimate(found, console)
            if arguments.suggest:
                advice = suggest(one, found)
                answer["suggestion"] = advice.to_dict()
                console.print(advice.text, markup=False, highlight=False, soft_wrap=True)
            answers[kind] = answer
            verdicts.append(found.verdict)
    except StageFailed as failed:
        print(f"octfm: {failed}", file=sys.stderr)
        return ExitCode.FAILED
    if arguments.json is not None:
        written = answers[kinds[0]] if len(kinds) == 1 else {"kinds": answers}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return max(exit_code(verdict) for verdict in verdicts)


def exit_code(verdict: "Verdict") -> ExitCode:
    """0 for what can be sent to the slice as it is."""
    return ExitCode.DONE if verdict == "FITS" else ExitCode.FAILED
