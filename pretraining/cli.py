"""The console script `octfm`: one subcommand a job; each is imported only when it is called, so that help is quick."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and returns the exit code of the subcommand."""
    parser = argparse.ArgumentParser(
        prog="octfm", description="Pretrain 3-D foundation models for retinal OCT on TPU pods, CUDA and laptops."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="pretrain: CONFIG.yaml [key=value ...]", add_help=False)
    shapes = commands.add_parser("shapes", help="run every stage once and print its shapes", add_help=False)
    preparing = commands.add_parser("prepare", help="scans -> a verified set: SOURCE --out DIR", add_help=False)
    data = commands.add_parser("data", help="look at a prepared set: report, summary, locate", add_help=False)
    saved = commands.add_parser("checkpoints", help="list, verify, export, prune: what a run has saved", add_help=False)
    fleet = commands.add_parser(
        "fleet", help="check, deploy, start, status, logs, stop: all workers of a pod", add_help=False
    )
    for command in (train, shapes, preparing, data, saved, fleet):
        command.add_argument("rest", nargs=argparse.REMAINDER)
    arguments, unknown = parser.parse_known_args(argv)
    rest = [*unknown, *arguments.rest]
    match arguments.command:
        case "train":
            from pretraining.train import main as run
        case "shapes":
            from pretraining.shapes import main as run
        case "prepare":
            from pretraining.prepare import main as run
        case "checkpoints":
            from pretraining.checkpoint_commands import main as run
        case "data":
            from pretraining.data_commands import main as run
        case "fleet":
            from pretraining.fleet.commands import main as run
    return run(rest)


if __name__ == "__main__":
    sys.exit(main())
