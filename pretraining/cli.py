"""The console script `octfm`: one subcommand a job; each is imported only when it is called, so that help is quick."""

import argparse
import sys
from collections.abc import Callable, Sequence

_COMMANDS = {
    "train": "pretrain: CONFIG.yaml [key=value ...]",
    "shapes": "run every stage once and print its shapes",
    "preflight": "will it fit a TPU slice, and how fast can it be? No TPU needed",
    "prepare": "scans -> a verified set: SOURCE --out DIR",
    "data": "look at a prepared set: report, summary, locate",
    "report": "a run -> one HTML page: has it learned, and how do you know",
    "probe": "frozen features -> scores with intervals, beside controls",
    "embed": "volumes -> a Parquet table of embeddings",
    "export": "an encoder as safetensors or as a Hugging Face folder",
    "finetune": "train an encoder with a head on a label",
    "reconstruct": "what an autoencoder makes of single TRs: pictures and one page",
    "health": "what a run, a checkpoint or a foreign log proves, and what not; exit code by severity",
    "checkpoints": "list, verify, export, prune: what a run has saved",
    "fleet": "check, deploy, start, status, logs, stop: all workers of a pod",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and returns the exit code of the subcommand.

    Ctrl-C is one line in every command, also while it is being imported; those with more to say catch it themselves.
    """
    parser = argparse.ArgumentParser(
        prog="octfm", description="Pretrain 3-D foundation models for retinal OCT on TPU pods, CUDA and laptops."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False).add_argument("rest", nargs=argparse.REMAINDER)
    arguments, unknown = parser.parse_known_args(argv)
    try:
        return _command(arguments.command)([*unknown, *arguments.rest])
    except KeyboardInterrupt:
        from oct_foundation.runtime.exits import ExitCode

        print("octfm: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """The main function of a subcommand."""
    match name:
        case "train":
            from pretraining.train import main as run
        case "shapes":
            from pretraining.shapes import main as run
        case "preflight":
            from pretraining.preflight.command import main as run
        case "prepare":
            from pretraining.prepare import main as run
        case "checkpoints":
            from pretraining.checkpoint_commands import main as run
        case "data":
            from pretraining.data_commands import main as run
        case "report":
            from pretraining.report.command import main as run
        case "reconstruct":
            from pretraining.reconstruct.command import main as run
        case "health":
            from pretraining.health.command import main as run
        case "probe":
            from pretraining.probe import main as run
        case "embed":
            from pretraining.embed import main as run
        case "export":
            from pretraining.export import main as run
        case "finetune":
            from pretraining.finetune.command import main as run
        case "fleet":
            from pretraining.fleet.commands import main as run
    return run


if __name__ == "__main__":
    sys.exit(main())
