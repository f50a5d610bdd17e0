"""`octfm reconstruct RUN`: what an autoencoder makes of single TRs, as pictures and one page, beside a constant."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oct_foundation.runtime.exits import ExitCode
from pretraining.command_line import positive, with_exit_code

if TYPE_CHECKING:
    from pretraining.reconstruct.opening import OpenedRun
    from pretraining.reconstruct.page import Contents

PAGE = "reconstructions.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes pictures and the page, prints where and the verdicts; 0 whatever they are, 2 for a wrong call."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from oct_foundation.runtime.select import choose_kind
    from pretraining.reconstruct.album import draw_album, write_whole
    from pretraining.reconstruct.opening import open_autoencoder
    from pretraining.reconstruct.page import render

    choose_kind(arguments.device)
    run = open_autoencoder(arguments.run, arguments.data, arguments.cache)
    contents, chosen = _predicted(run, arguments)
    folder: Path = arguments.out or default_folder(run, arguments.split)
    try:
        ceiling = contents.judged.ceiling if contents.judged else None
        album = draw_album(folder, contents.predictions, chosen, ceiling)
        write_whole(folder / PAGE, render(contents, album).encode())
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}); name another place with --out") from error
    print(f"step {run.step}, {run.which}; {len(contents.predictions)} TRs of split {arguments.split}")
    for verdict in contents.judged.verdicts if contents.judged else ():
        print(f"{verdict.name} {verdict.verdict}: {verdict.reasons[0]}")
    print(f"{folder / PAGE}   (it shows the film and brains: keep it beside the data)")
    return ExitCode.DONE


def _predicted(run: "OpenedRun", arguments: argparse.Namespace) -> "tuple[Contents, list[int]]":
    """What the model says of the whole split, judged where it was held out, and the numbers of the TRs to show."""
    from data_setup.neuro.film_dataset import FilmDataset
    from pretraining.reconstruct.judging import judge
    from pretraining.reconstruct.page import Contents
    from pretraining.reconstruct.samples import predict, spread_over

    data = FilmDataset(run.task.film, arguments.split)
    chosen = spread_over(data, arguments.num_samples)
    config = run.task.config
    predictions = predict(
        run.model,
        data,
        batch_size=config.batch.per_core_batch_size,
        device=arguments.device,
        bf16=config.train.precision == "bf16",
    )
    judged = judge(run, predictions) if arguments.split == "val" else None
    return Contents(run=run, split=arguments.split, predictions=predictions, judged=judged), chosen


def default_folder(run: "OpenedRun", split: str) -> Path:
    """Beside the run where it is on this machine."""
    return (run.folder or Path()) / ("reconstructions" if split == "val" else f"reconstructions-{split}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octfm reconstruct",
        description="Show what an autoencoder makes of single TRs: pictures, codes, text and brain, beside a constant.",
    )
    parser.add_argument("run", metavar="RUN|CKPT", help="run folder, its checkpoints, one of them, or gs://...")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: RUN/reconstructions)")
    parser.add_argument(
        "--num-samples", type=positive, default=5, metavar="N", help="TRs to show, spread over the film (default: 5)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (default: cpu)")
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="held-out TRs, or those trained on (default: val)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the film lies now, if it has moved (data.path)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where what is derived from it goes, if DIR/cache is not writable"
    )
    return parser
