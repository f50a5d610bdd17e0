"""Which patients train and which validate: decided from keyed codes of the patients, never file by file.

Both eyes and every visit of a person stand on one side; the ranking by hash is stable when patients are added.
"""

import hashlib
from collections.abc import Mapping
from math import ceil
from typing import Literal

Split = Literal["train", "val", "test"]


def assign_splits(patient_of: Mapping[str, str], val_fraction: float, seed: int) -> tuple[dict[str, Split], str | None]:
    """The split of each volume, from volume id -> patient code, and a note where the rule had to bend.

    Patients are ranked by hash; the first ceil(val_fraction * n) validate, but at least one trains and one
    validates. With a single patient the volumes are split instead, and the note says so; a single volume trains.
    Raises ValueError unless 0 < val_fraction < 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, e.g. 0.1")
    groups, note = dict(patient_of), None
    if len(set(groups.values())) == 1:
        groups = {volume: volume for volume in groups}
        note = (
            "ONE PATIENT: train and val share the same person; the validation loss says nothing about new patients"
            if len(groups) > 1
            else "ONE VOLUME: there is nothing to validate on"
        )
    ranked = sorted(set(groups.values()), key=lambda code: hashlib.sha256(f"{seed}:{code}".encode()).digest())
    num_val = min(ceil(val_fraction * len(ranked)), len(ranked) - 1)
    val = set(ranked[: max(num_val, 0)])
    return {volume: "val" if code in val else "train" for volume, code in groups.items()}, note
