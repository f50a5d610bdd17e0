"""`octfm embed CKPT DATA --out FILE.parquet`: one row per volume with its embedding, patch tokens as .npz beside it.

Volumes stream through: memory does not grow with their number. The table appears when it is whole, tokens before it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_setup.datasets import BadVolume
from data_setup.index import IndexRow
from oct_foundation.runtime.select import choose_kind
from pretraining.command_line import add_device, progress_bar, with_exit_code
from pretraining.embedding import Features, IndexedVolumes, features, open_volumes
from pretraining.encoder_file import SavedEncoder, load_encoder, weights_sha256

if TYPE_CHECKING:
    import pyarrow

FACTS_KEY, LEFT_OUT_KEY = "octfm", "octfm_left_out"  # in the file's metadata
_ROWS_PER_GROUP = 256  # of 384 floats: 0.4 MB, written as soon as they are there
_TEXTS = ("id", "vendor", "model", "protocol", "laterality", "split")


def main(argv: Sequence[str] | None = None) -> int:
    """Embeds; 0 also where volumes were left out, 2 for a wrong call, 74 for a failing disk or bucket."""
    arguments = _parser().parse_args(argv)
    return with_exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octfm embed", description="Volumes -> embeddings, as a Parquet table.")
    parser.add_argument(
        "encoder", metavar="CKPT", help="run folder, checkpoint, export or Hugging Face folder, gs://..."
    )
    parser.add_argument("data", metavar="DATA", help="prepared set, folder of scans, manifest, list, gs://...")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="the table; replaced if there")
    parser.add_argument(
        "--tokens", type=Path, metavar="DIR", help="also write each volume's patch tokens: DIR/<id>.npz"
    )
    parser.add_argument("--step", type=int, help="this step of a run (default: its newest intact checkpoint)")
    parser.add_argument("--split", choices=("train", "val", "test"), help="these volumes only (default: all)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where scans are prepared (default: ~/.cache/octfm/...)"
    )
    add_device(parser, batch_size=4)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    choose_kind(arguments.device)
    if arguments.out.suffix != ".parquet":
        raise ValueError(f"--out is {arguments.out}; give a file that ends with .parquet")
    saved = load_encoder(arguments.encoder, step=arguments.step)
    volumes = open_volumes(
        arguments.data, saved.config.image_size, work=arguments.work, split=arguments.split, run_config=saved.run_config
    )
    bad = write_embeddings(
        saved, volumes, arguments.out, tokens=arguments.tokens, batch_size=arguments.batch_size, device=arguments.device
    )
    print(f"{arguments.out}   {len(volumes) - len(bad)} volumes, {saved.width} numbers each, step {saved.step}")
    files = volumes.prepared.rows
    if refused := sum(row.status == "rejected" for row in files):
        print(f"{refused} of {len(files)} files are no usable volumes; octfm data summary {volumes.prepared.folder}")
    for error in bad:
        print(f"octfm: left out: {error}", file=sys.stderr)
    return 0


def write_embeddings(
    saved: SavedEncoder,
    volumes: IndexedVolumes,
    out: Path,
    *,
    tokens: Path | None = None,
    batch_size: int = 4,
    device: str = "cpu",
) -> list[BadVolume]:
    """Writes the table, and `tokens`/<id>.npz where asked for; returns the volumes that could not be read.

    A table is whole or absent; an earlier one stays until then. Raises ValueError where no volume can be read.
    """
    import pyarrow
    from pyarrow import parquet

    schema = _schema(saved.width).with_metadata({FACTS_KEY: json.dumps(_facts(saved))})
    bad: list[BadVolume] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with progress_bar("embedding") as show, parquet.ParquetWriter(temporary, schema) as writer:
            rows: list[dict[str, Any]] = []
            num_done = 0
            for found in features(saved.encoder, volumes, batch_size=batch_size, device=device, on_bad=bad.append):
                if tokens is not None:
                    _write_tokens(found, saved.config.grid.grid, tokens)
                rows.append(_cells(found))
                num_done += 1
                show(num_done + len(bad), len(volumes))
                if len(rows) == _ROWS_PER_GROUP:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            writer.add_key_value_metadata({LEFT_OUT_KEY: json.dumps([error.volume_id for error in bad])})
        if not num_done:
            raise ValueError(f"none of {len(volumes)} volumes can be read: {bad[0]}")
        _sync(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return bad


def _facts(saved: SavedEncoder) -> dict[str, Any]:
    """What made the table, as JSON in its metadata under `octfm`."""
    return {
        "encoder": saved.source,
        "step": saved.step,
        "weights_sha256": weights_sha256(saved.encoder),
        "model": asdict(saved.config),
        "pooling": "mean over patches",
    }


def _schema(width: int) -> "pyarrow.Schema":
    import pyarrow

    texts = [(name, pyarrow.string()) for name in _TEXTS]
    shapes = [(name, pyarrow.list_(pyarrow.int32(), 3)) for name in ("source_shape", "shape")]
    spacings = [(name, pyarrow.list_(pyarrow.float32(), 3)) for name in ("source_spacing_mm", "spacing_mm")]
    return pyarrow.schema([*texts, *shapes, *spacings, ("embedding", pyarrow.list_(pyarrow.float32(), width))])


def _cells(found: Features) -> dict[str, Any]:
    row: IndexRow = found.row
    names = (*_TEXTS, "source_shape", "shape", "source_spacing_mm", "spacing_mm")
    return {name: getattr(row, name) for name in names} | {"embedding": found.pooled}


def _write_tokens(found: Features, grid: tuple[int, int, int], folder: Path) -> None:
    """`tokens` float16 [N, E] in raster order over `grid` (patches along D, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{found.row.id}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, tokens=found.tokens.astype(np.float16), grid=np.array(grid))
        os.replace(temporary, folder / f"{found.row.id}.npz")
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    sys.exit(main())
