"""A parsed place -> the store that keeps it; what a start has to know about the place is said here."""

import logging
from pathlib import Path

from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import CheckpointLocation, GcsUri, LocalPath
from oct_foundation.checkpoints.mounts import doubt_about, mount_of
from oct_foundation.checkpoints.store import CheckpointStore, Denied, Full, NotFound, StoreError

_log = logging.getLogger(__name__)


def open_store(location: CheckpointLocation) -> CheckpointStore:
    """The store of a place; nothing is touched yet. A mount that may not keep its promises is a warning."""
    match location:
        case GcsUri() as uri:
            return GcsStore(uri)
        case LocalPath(path=path):
            mounts = Path("/proc/mounts")
            mount = mount_of(path.resolve(), mounts.read_text()) if mounts.exists() else None
            if mount is not None and (doubt := doubt_about(mount)):
                _log.warning("checkpoint.ckpt_dir=%s: %s", path, doubt)
            return LocalStore(path)


def probe(store: CheckpointStore) -> None:
    """Writes, reads and deletes a small object. The StoreError of a useless place names checkpoint.ckpt_dir, what was
    found, and what mends it.
    """
    try:
        store.probe()
    except StoreError as error:
        raise type(error)(f"checkpoint.ckpt_dir={store} cannot be used: {error}. {_remedy(store, error)}") from error


def _remedy(store: CheckpointStore, error: StoreError) -> str:
    match error, store:
        case Denied(), GcsStore(uri=uri):
            return f"Grant this machine's account roles/storage.objectUser on gs://{uri.bucket}, or name another bucket"
        case NotFound(), GcsStore(uri=uri):
            return f"Correct the name, or make the bucket: gcloud storage buckets create gs://{uri.bucket}"
        case Denied(), _:
            return "Let this user write there, or name a folder that is not read-only"
        case NotFound(), _:
            return "A part of the path is a file or is gone: name another folder"
        case Full(), _:
            return "Free some space there, or name a folder of another disk"
        case _:
            return "Look whether the place is reachable from this machine, and start again"
