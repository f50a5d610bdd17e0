"""`octfm fleet check|deploy|start|status|logs|stop`: 0 done, 1 something is wrong on a worker, 2 a wrong call."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from oct_foundation.runtime.exits import ExitCode
from pretraining.config_file import ConfigError
from pretraining.fleet.check import check
from pretraining.fleet.deploy import deploy
from pretraining.fleet.inventory import load_inventory
from pretraining.fleet.logs import logs
from pretraining.fleet.start import start
from pretraining.fleet.status import status
from pretraining.fleet.stop import stop
from pretraining.fleet.transport import open_transport
from pretraining.fleet.workers import Workers

_ACTIONS = {
    "check": "reach every worker: Python, disk, memory, free chips and ports, clock",
    "deploy": "one pushed commit on all workers, and the proof that it is the same everywhere",
    "start": "run_tpu_xla.sh CONFIG on all workers",
    "status": "process, step, loss and last line of every worker; why one has died",
    "logs": "the output of all workers, each line with its worker in front",
    "stop": "TERM, time to save, KILL; then the proof that nothing is left",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one action on all workers."""
    arguments = _parse(argv)
    try:
        inventory = load_inventory(arguments.inventory)
        workers = Workers(inventory, open_transport(inventory))
        match arguments.action:
            case "check":
                return check(workers)
            case "deploy":
                return deploy(workers, Path.cwd(), arguments.sha, arguments.inventory)
            case "start":
                return start(workers, arguments.command, again=arguments.again)
            case "status":
                return status(workers, arguments.lines)
            case "logs":
                return logs(workers, arguments.lines, following=arguments.follow)
            case _:
                return stop(workers, arguments.grace)
    except ConfigError as error:
        print(f"octfm: {error}", file=sys.stderr)
        return ExitCode.CONFIG
    except KeyboardInterrupt:
        print("octfm: interrupted; what was sent to the workers goes on: octfm fleet status", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="octfm fleet",
        description="One job on all workers of a TPU pod, or of any hosts with ssh. The guide is docs/pods.md.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in _ACTIONS.items():
        actions.add_parser(action, help=text, description=text)
    chosen = {name: actions.choices[name] for name in _ACTIONS}
    for one in chosen.values():
        one.add_argument(
            "--inventory", type=Path, default=Path("fleet.yaml"), help="YAML with the workers (default: fleet.yaml)"
        )
    chosen["deploy"].add_argument("--sha", help="commit, branch or tag to deploy (default: HEAD)")
    starting = chosen["start"]
    starting.add_argument("command", nargs=argparse.REMAINDER, metavar="CONFIG [key=value ...] [--device D]")
    starting.add_argument(
        "--again", action="store_true", help="the last job's command and run folder, so that it resumes; before CONFIG"
    )
    for name, lines in (("status", 5), ("logs", 20)):
        chosen[name].add_argument(
            "-n", "--lines", type=_positive, default=lines, help=f"of each log (default: {lines})"
        )
    chosen["logs"].add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    chosen["stop"].add_argument(
        "--grace", type=_seconds, default=75.0, metavar="SECONDS", help="for the last checkpoint (default: 75)"
    )
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.action == "start":
        arguments.command = [*unknown, *arguments.command]  # argparse takes no option for the beginning of a rest
        _check_command(starting, arguments)
    elif unknown:
        chosen[arguments.action].error(f"unknown: {' '.join(unknown)}")
    return arguments


def _check_command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What follows CONFIG goes to run_tpu_xla.sh as it is; so an option of ours that stands there is a mistake."""
    command: list[str] = arguments.command
    if not command and not arguments.again:
        parser.error("give a configuration, for example configs/pretrain_vjepa_multi_domain.yaml, or --again")
    if misplaced := [item for item in command if item.partition("=")[0] in ("--inventory", "--again")]:
        parser.error(f"{misplaced[0]} must stand before the configuration")
    if arguments.again and command and "=" not in command[0] and not command[0].startswith("-"):
        parser.error(f"--again takes the last job's configuration; {command[0]} is another one: leave one of them out")


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError(f"{number} is not between 1 and 10000")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{seconds:g} is not between 0 and 3600")
    return seconds
