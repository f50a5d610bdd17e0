"""`octfm report RUN`: one HTML page that says whether the run learned; for finished, unfinished and crashed runs."""

import argparse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from oct_foundation.runtime.exits import ExitCode
from pretraining.command_line import with_exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and prints the verdict; 0 whatever it is, with --strict 1 unless LEARNING, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from pretraining.report.gather import gather
    from pretraining.report.page import write_page
    from pretraining.report.verdict import judgement_of

    target: Path = arguments.out or arguments.run / "report.html"
    run = gather(arguments.run)
    judgement = judgement_of(run)
    try:
        write_page(run, judgement, target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error}); name another place with --out") from error
    print(f"{judgement.verdict}: {' '.join(judgement.reasons)}")
    print(f"{target}{'   (it shows retinas: keep it beside the data)' if run.pictures else ''}")
    if arguments.open:
        webbrowser.open(target.resolve().as_uri())
    return ExitCode.FAILED if arguments.strict and judgement.verdict != "LEARNING" else ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm report",
        description="Say whether a run learned, and why, on one page that needs nothing but itself.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder; the run may be unfinished or have crashed")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="where the page goes (default: RUN/report.html)")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--strict", action="store_true", help="end with 1 unless the verdict is LEARNING")
    return parser
