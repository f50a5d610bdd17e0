"""`octfm health RUN|CKPT`: three files and an exit code that say whether it has learned, and whether it is sound."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from oct_foundation.runtime.exits import ExitCode
from pretraining.health.sections import Gravity

_CODES = """exit codes:
  0  sound: nothing speaks against it (CANNOT TELL alone is no fault; see --strict)
  1  a warning: flat loss, over-fit, dominance, two runs in one record, partial validation ...
  2  NOT LEARNED, or a defect: dead layer, exploded statistics, frozen weights, best weights in no file ...
  3  NaN or Inf, or something that cannot be read; also a wrong call
"""


class _Parser(argparse.ArgumentParser):
    """A wrong call ends with 3: 2 would tell a scheduler that the run has not learned."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Gravity.BROKEN, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes health.md, health.json, health.html; prints a summary; returns the exit code of --help."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"octfm: {error}", file=sys.stderr)
        return Gravity.BROKEN
    except KeyboardInterrupt:
        print("octfm: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    from pretraining.health.compose import finished
    from pretraining.health.of_files import draft_of_checkpoints, draft_of_foreign
    from pretraining.health.of_run import draft_of_run
    from pretraining.health.target import find_target
    from pretraining.health.write import write_report

    trs, total = arguments.val_trs, arguments.val_trs_total
    if trs is not None and total is not None and trs > total:
        raise ValueError(f"--val-trs {trs} is more than --val-trs-total {total}")
    target = find_target(arguments.target)
    match target.kind:
        case "run":
            draft = draft_of_run(Path(target.place), arguments.peak_tflops)
        case "checkpoints":
            draft = draft_of_checkpoints(target.place)
        case "foreign":
            draft = draft_of_foreign(target, trs, total)
    report = finished(draft, strict=arguments.strict)
    paths = write_report(report, arguments.out or target.default_out)
    print(report.headline)
    for finding in report.findings:
        if finding.severity != "info":
            print(f"  {finding.severity}: {finding.name.replace('_', ' ')}: {finding.evidence}")
    print("\n".join(map(str, paths)))
    return report.gravity


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="octfm health",
        description="Say of a run, a checkpoint or another trainer's log whether it has learned, and what is broken.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target",
        metavar="RUN|CKPT",
        help="run folder, finished or not; a checkpoint (step-..., .pt, .safetensors); training.log of another trainer",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: RUN/health)")
    parser.add_argument("--val-trs", type=_count, metavar="N", help="TRs behind a logged fMRI correlation")
    parser.add_argument("--val-trs-total", type=_count, metavar="N", help="validation TRs there are, of all ranks")
    parser.add_argument("--peak-tflops", type=_positive, metavar="X", help="peak of one device, for the MFU")
    parser.add_argument("--strict", action="store_true", help="CANNOT TELL counts as a warning")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value
