"""Do all ranks see one folder? A run on several hosts with a path of each host's own disk could never be resumed."""

import logging
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from oct_foundation.checkpoints.store import CheckpointStore, StoreError

_log = logging.getLogger(__name__)


def ranks_without(store: CheckpointStore, gather: Callable[[Any], list[Any]], rank: int) -> list[int]:
    """The ranks that do not see what rank 0 writes into `store`: hosts that do not share the folder. All ranks call it.

    gather: one object of every rank, in their order, to every rank (Runtime.gather). Raises rank 0's StoreError.
    """
    key, data = f"shared-{token_hex(8)}", b"written by rank 0 to be seen by all\n"
    if rank == 0:
        store.commit(key, data)
    key = gather(key)[0]
    seen = gather(_sees(store, key, data))
    if rank == 0:
        store.delete(key)
    return [other for other, is_seen in enumerate(seen) if not is_seen]


def _sees(store: CheckpointStore, key: str, data: bytes) -> bool:
    try:
        return store.get_bytes(key) == data
    except StoreError as error:  # the other ranks wait for our answer
        _log.error("what rank 0 has written into %s cannot be read here: %s", store, error)
        return False
