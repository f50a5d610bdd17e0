"""Which files are read and how they become volumes: what `octfm prepare` and a run's `data` section share.

Free of torch: its CUDA build maps 4.4 GiB of addresses, and preparing must work under a 4 GiB limit.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data_setup.phantom import PhantomSettings
from data_setup.prepare import PrepareSettings
from data_setup.resample import Fit
from data_setup.scan_reader import ScanFormat
from data_setup.selection import EVERYTHING, Selection
from data_setup.sources import DirectorySource, InputSource, PhantomSource, SourceKind, is_gcs
from data_setup.tables import ListSource, ManifestSource

_ROOTS = {
    "directory": "the folder, or gs://bucket/folder, that holds the scans",
    "manifest": "the data set's folder with retinal_oct/manifest.tsv in it (disk or gs://), or the manifest itself",
    "list": "a CSV or Parquet file with a column `path`",
    "prepared": "what `octfm prepare --out` wrote (disk or gs://)",
}


@dataclass(frozen=True, kw_only=True)
class SourceSection:
    """source and root say where the files are, select which of them count, the others how they are read.

    fit: `resize` to the working size, or `crop` to it around the retina at the scan's own voxel size. max_file_bytes:
    of decoded pixels; timeout_s: per file. val_fraction of the patients validate where the source recommends no split.
    """

    source: SourceKind = "phantom"
    root: str | None = None
    select: Selection = field(default_factory=Selection)
    formats: tuple[ScanFormat, ...] = ("dicom",)
    fit: Fit = "resize"
    any_sop_class: bool = False
    include_nonvolumetric: bool = False
    allow_burned_in: bool = False
    max_file_bytes: int = 1 << 30
    timeout_s: float = 120.0
    val_fraction: float = 0.1
    prepare_workers: int = 2
    phantom: PhantomSettings = field(default_factory=PhantomSettings)

    def __post_init__(self) -> None:
        if self.source != "phantom" and not self.root:
            raise ValueError(f"data.root is needed with data.source={self.source}: {_ROOTS[self.source]}")
        if self.select.participants is not None and self.source not in ("manifest", "list"):
            raise ValueError(
                f"data.select.participants needs data.source=manifest or list, which know the participants; found "
                f"{self.source}. Prepare the range with octfm prepare, then train with data.source=prepared"
            )
        if self.prepare_workers < 1:
            raise ValueError(f"data.prepare_workers must be at least 1; found {self.prepare_workers}")

    def prepare_settings(self, image_size: tuple[int, int, int], *, split_seed: int) -> PrepareSettings:
        """What decides the content of the prepared set."""
        return PrepareSettings(
            image_size=image_size,
            fit=self.fit,
            formats=self.formats,
            any_sop_class=self.any_sop_class,
            include_nonvolumetric=self.include_nonvolumetric,
            allow_burned_in=self.allow_burned_in,
            max_bytes=self.max_file_bytes,
            timeout_s=self.timeout_s,
            val_fraction=self.val_fraction,
            split_seed=split_seed,
            select=self.select if self.source in ("manifest", "list") else EVERYTHING,
        )

    def open(self, phantom_folder: Path) -> InputSource:
        """The files to prepare; `prepared` has none left."""
        match self.source:
            case "phantom":
                return PhantomSource(phantom_folder, self.phantom)
            case "directory":
                return DirectorySource(self._root)
            case "manifest":
                return ManifestSource(self._root, self.select)
            case "list":
                return ListSource(self._root, self.select)
            case "prepared":
                raise ValueError(f"data.source=prepared: {self._root} is prepared already")

    @property
    def _root(self) -> str:
        assert self.root is not None
        return self.root


def guess_source(location: str) -> SourceKind:
    """What a path on the command line of `octfm prepare` is: a table by its name, AI-READI by its manifest."""
    if location.endswith((".csv", ".parquet")):
        return "list"
    if location.endswith(".tsv") or (not is_gcs(location) and (Path(location) / "retinal_oct/manifest.tsv").is_file()):
        return "manifest"
    return "directory"
