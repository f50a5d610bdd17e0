"""An encoder over volumes -> one vector per volume and, where asked for, one per patch, in the order of the index.

Volumes come from a prepared set, or from scans that are prepared on the way in, under the settings of the run.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from data_setup.datasets import BadVolume, PreparedVolumes
from data_setup.index import DATASET_NAME, IndexRow, PreparedSet, Shape
from data_setup.prepare import prepare
from data_setup.sources import is_gcs
from data_setup.splits import Split
from pretraining.prepare import progress_display
from pretraining.source_section import SourceSection, guess_source

log = logging.getLogger("octfm")

# What decides how a scan becomes a volume: an encoder has to see scans as its run has prepared them.
_HOW_TO_READ = ("fit", "formats", "any_sop_class", "include_nonvolumetric", "allow_burned_in", "max_file_bytes")
Progress = Callable[[int, int], None]
"""(volumes done, volumes in all)"""


class VolumesWithRows(Protocol):
    """Volumes of one shape, with what is known of each."""

    @property
    def rows(self) -> list[IndexRow]:
        """One per volume, in their order."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [D, H, W]; raises BadVolume."""
        ...


class IndexedVolumes(PreparedVolumes):
    """The accepted volumes of a prepared set (of one split, None: all), sorted by id, with their rows."""

    def __init__(self, prepared: PreparedSet, split: Split | None = None) -> None:
        super().__init__(prepared, split)
        self.prepared = prepared

    @property
    def rows(self) -> list[IndexRow]:
        """One per volume, in their order."""
        return self._rows


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Features of M volumes, `ids` and `rows` in the same order; bad: the volumes that could not be read.

    pooled: float32 [M, E], the mean over the patches; tokens: float32 [M, N, E], or None.
    """

    ids: list[str]
    rows: list[IndexRow]
    pooled: np.ndarray
    tokens: np.ndarray | None
    bad: list[BadVolume] = field(default_factory=list)


class Features(NamedTuple):
    """One volume's: tokens float32 [N, E]."""

    row: IndexRow
    tokens: np.ndarray

    @property
    def pooled(self) -> np.ndarray:
        """float32 [E]: the mean over the patches."""
        return self.tokens.mean(axis=0, dtype=np.float64).astype(np.float32)


def open_volumes(
    data: str,
    image_size: Shape,
    *,
    work: Path | None = None,
    split: Split | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> IndexedVolumes:
    """The volumes of `data` at `image_size` [D, H, W]: a prepared set, or anything that octfm prepare reads; also gs://.

    Scans are prepared into `work` (default: below ~/.cache/octfm) as `run_config`, a run's saved configuration, says;
    the next call finds them there. Raises ValueError for a prepared set of another size and where no volume is left,
    StopPreparing where a disk or a bucket fails.
    """
    data_section = (run_config or {}).get("data", {})
    reading = {key: data_section[key] for key in _HOW_TO_READ if key in data_section}
    prepared = _open_prepared(data, work)
    if prepared is None:
        source = SourceSection(source=guess_source(data), root=data, prepare_workers=os.cpu_count() or 1, **reading)
        settings = source.prepare_settings(image_size, split_seed=(run_config or {}).get("seed", 0))
        folder = work or _cache(data)
        with progress_display() as progress:
            prepared = prepare(source.open(folder), folder, settings, source.prepare_workers, progress)
        if table := prepared.bad_file_table():
            log.warning("files that are not used, by reason:\n%s", "\n".join(table))
    _check_fits(prepared, data, image_size, reading.get("fit"))
    volumes = IndexedVolumes(prepared, split)
    if not len(volumes):
        counts = ", ".join(f"{count} {name}" for name, count in prepared.info["split"].items())
        raise ValueError(f"{data} holds no usable volume{f' of split {split}' if split else ''}; there are: {counts}")
    return volumes


def _check_fits(prepared: PreparedSet, data: str, image_size: Shape, fit: str | None) -> None:
    """Raises ValueError for another size; another way to that size is a warning."""
    found = prepared.info["settings"]
    if tuple(found["image_size"]) != tuple(image_size):
        there, wanted = (f"[{','.join(map(str, size))}]" for size in (found["image_size"], image_size))
        raise ValueError(
            f"the volumes in {data} are {there}, the encoder takes {wanted}: give the scans themselves, or prepare "
            f"them for this encoder with octfm prepare SCANS --out DIR model.image_size={wanted}"
        )
    if fit not in (None, found["fit"]):
        log.warning("%s was prepared with fit=%s, the encoder was trained with fit=%s", data, found["fit"], fit)


def _open_prepared(data: str, work: Path | None) -> PreparedSet | None:
    """A finished prepared set; None where `data` is something else."""
    if not is_gcs(data):
        return PreparedSet.load(data) if (Path(data) / DATASET_NAME).is_file() else None
    from data_setup.gcs import download, read_bytes

    try:
        read_bytes(f"{data.rstrip('/')}/{DATASET_NAME}")
    except ValueError:
        return None
    return PreparedSet.load(download(data, work or _cache(data)))


def _cache(data: str) -> Path:
    """A folder of this user for what is made of `data`; the same for every call."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = data if is_gcs(data) else str(Path(data).resolve())
    return root / "octfm" / sha256(name.encode()).hexdigest()[:12]


def features(
    encoder: nn.Module,
    volumes: VolumesWithRows,
    *,
    batch_size: int = 4,
    device: str = "cpu",
    on_bad: Callable[[BadVolume], None],
) -> Iterator[Features]:
    """Each volume's tokens, in order, one batch in memory at a time; fp32, without gradients.

    A volume that cannot be read is given to `on_bad` and left out.
    """
    encoder = encoder.to(device).eval()
    rows: list[IndexRow] = []
    batch: list[np.ndarray] = []
    for index, row in enumerate(volumes.rows):
        try:
            batch.append(np.array(volumes[index]))
            rows.append(row)
        except BadVolume as error:
            on_bad(error)
        if len(batch) == batch_size or (batch and index + 1 == len(volumes)):
            yield from map(Features, rows, _encode(encoder, batch, device))
            rows, batch = [], []


@torch.inference_mode()
def _encode(encoder: nn.Module, batch: list[np.ndarray], device: str) -> np.ndarray:
    """uint8 [D, H, W] each -> float32 [B, N, E]."""
    voxels = torch.from_numpy(np.stack(batch)).unsqueeze(1).to(device)
    return encoder(voxels).float().cpu().numpy()


def embed(
    encoder: nn.Module,
    volumes: VolumesWithRows,
    *,
    tokens: bool = False,
    batch_size: int = 4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Embedded:
    """All volumes' features in memory, in the order of the index; tokens take M x N x E x 4 bytes.

    Raises ValueError where no volume could be read.
    """
    rows, pooled, all_tokens, bad = list[IndexRow](), list[np.ndarray](), list[np.ndarray](), list[BadVolume]()
    for found in features(encoder, volumes, batch_size=batch_size, device=device, on_bad=bad.append):
        rows.append(found.row)
        pooled.append(found.pooled)
        if tokens:
            all_tokens.append(found.tokens)
        if progress is not None:
            progress(len(rows) + len(bad), len(volumes))
    if not rows:
        raise ValueError(f"none of {len(volumes)} volumes can be read: {bad[0]}" if bad else "there is no volume")
    return Embedded(
        ids=[row.id for row in rows],
        rows=rows,
        pooled=np.stack(pooled),
        tokens=np.stack(all_tokens) if tokens else None,
        bad=bad,
    )
