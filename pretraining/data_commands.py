"""`octfm data`: look at a prepared set, and find the file behind an id. Free of torch, as preparing is."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_setup.index import PreparedSet
from data_setup.prepare import read_key
from data_setup.prepare_file import keyed_id
from data_setup.sources import is_gcs
from pretraining.command_line import progress_bar, with_exit_code
from pretraining.prepare import summary
from pretraining.source_section import SourceSection, guess_source


def main(argv: Sequence[str] | None = None) -> int:
    """`octfm data report|summary|locate`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "report":
            return _report(arguments.set, arguments.to)
        case "summary":
            print("\n".join(summary(PreparedSet.load(arguments.set), arguments.set)))
        case "locate":
            return _locate(arguments.source, Path(arguments.set), arguments.ids)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octfm data", description="Look at a prepared set of OCT volumes.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    report = actions.add_parser("report", help="one HTML page: counts, reasons, histograms, pictures, duplicates")
    report.add_argument("set", help="what octfm prepare --out wrote, or one version of it")
    report.add_argument("--to", type=Path, help="where the page goes (default: report.html in the set)")
    look = actions.add_parser("summary", help="the table that octfm prepare prints at its end")
    look.add_argument("set", help="what octfm prepare --out wrote")
    locate = actions.add_parser("locate", help="print the paths behind ids; paths may identify patients")
    locate.add_argument("source", help="what was given to octfm prepare")
    locate.add_argument("--set", required=True, help="what octfm prepare --out wrote: it holds the key of the ids")
    locate.add_argument("ids", nargs="+", help="ids of the index or of the table of refused files")
    return parser


def _report(folder: str, target: Path | None) -> int:
    from data_setup.report import write_report

    if is_gcs(folder):
        raise ValueError(f"{folder}: the report reads volumes from disk; copy the set to this machine first")
    prepared = PreparedSet.load(folder)
    with progress_bar("looking at volumes") as show:
        page = write_report(prepared, target or Path(folder) / "report.html", show)
    print(f"{page}   (it shows retinas: keep it beside the data)")
    return 0


def _locate(source: str, prepared: Path, ids: Sequence[str]) -> int:
    """Prints `id  path` for every id that is found; 1 where one is not."""
    key = read_key(prepared)
    files = SourceSection(source=guess_source(source), root=source).open(prepared).files()
    places = {keyed_id(key, file.key): file.location for file in files}
    missing = 0
    for volume_id in ids:
        place = places.get(volume_id.partition("-")[0])  # the second volume of a file is <id>-2
        missing += place is None
        print(f"{volume_id}  {place or 'not in this source'}")
    return 1 if missing else 0
