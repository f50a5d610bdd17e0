"""A V-JEPA configuration -> its volumes, prepared and checked, on this host's disk."""

import logging
from pathlib import Path

from data_setup.index import PreparedSet
from data_setup.prepare import prepare
from data_setup.sources import is_gcs
from pretraining.prepare import progress_display
from pretraining.run_folder import RunFolder
from pretraining.vjepa_config import VJEPARunConfig

log = logging.getLogger("octfm")


def prepare_volumes(config: VJEPARunConfig, folder: RunFolder) -> Path:
    """Volumes of the working size on this host's disk; the table of refused files goes to the log.

    The processes of a host take turns: the first one works, the others find its result. Raises TooManyBadFiles above
    `data.max_bad_fraction`, ValueError where no volume is left or a prepared set has another size, StopPreparing.
    """
    data = config.data
    cache = Path(data.cache_dir) if data.cache_dir else folder.prepared
    if data.source == "prepared":
        prepared = _open_prepared(str(data.root), cache)
    else:
        with progress_display() as progress:
            source = data.open(cache / "phantom-dicom")
            prepared = prepare(source, cache, config.prepare, num_workers=data.prepare_workers, progress=progress)
    prepared.check_bad_fraction(data.max_bad_fraction)
    if table := prepared.bad_file_table():
        log.warning("files that are not used, by reason:\n%s", "\n".join(table))
    prepared.check_usable(config.model.image_size, data.select)
    log.info("%d volumes in %s", len(prepared.accepted()), prepared.folder)
    if note := prepared.info["split_note"]:
        log.warning("%s", note)
    return prepared.folder


def _open_prepared(root: str, cache: Path) -> PreparedSet:
    """What `octfm prepare` wrote; from a bucket it is copied once, since epochs read from disk."""
    if not is_gcs(root):
        return PreparedSet.load(root)
    from data_setup.gcs import download

    log.info("copying %s to %s", root, cache)
    return PreparedSet.load(download(root, cache))
