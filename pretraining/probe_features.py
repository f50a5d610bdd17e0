"""Volumes -> features of the encoder and of its controls, each volume through each network once.

Kept are the means over patches, a few patches where these are judged, and all tokens where the attentive probe asks for
them: those take M x N x E float32 a network.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oct_foundation.diagnostics.out_of_fold import Contestant
from oct_foundation.diagnostics.probes import ENCODER
from oct_foundation.diagnostics.voxel_controls import patch_controls, voxel_controls
from pretraining.command_line import progress_bar
from pretraining.embedding import features
from pretraining.encoder_file import SavedEncoder, random_encoder
from pretraining.probe_data import ProbeData

if TYPE_CHECKING:
    from torch import nn

    from data_setup.datasets import BadVolume

log = logging.getLogger("octfm")
Contestants = Mapping[str, Contestant | list[Contestant]]


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How volumes are looked at. draws: random networks; tokens: keep all; deviation: of the patches, beside their
    mean; positions: int64 [M, n], patches to keep of each volume.
    """

    draws: int = 1
    tokens: bool = False
    deviation: bool = False
    positions: np.ndarray | None = None
    batch_size: int = 4
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ProbeFeatures:
    """By contestant, of the volumes of `data` that could be read, and of the patches that were kept (else empty)."""

    volumes: Contestants
    patches: Contestants
    data: ProbeData


def features_of(saved: SavedEncoder, data: ProbeData, looking: Looking) -> ProbeFeatures:
    """The encoder's, and of the controls; raises ValueError where no volume can be read.

    Voxel controls of whole volumes are left out where `data` has no label of volumes.
    """
    encoder, patches, ids = _see(saved.encoder, "the encoder", data, looking)
    networks = [random_encoder(saved.config, seed) for seed in range(looking.draws)]
    random = [_see(network, "a random one", data, looking) for network in networks]
    kept = data.only(ids)
    rows, grid = range(len(ids)), saved.config.grid
    log.info("voxels of %d volumes for the controls", len(ids))
    volumes: dict[str, Contestant | list[Contestant]] = {ENCODER: encoder, "random_init": [one for one, _, _ in random]}
    if data.labels:
        volumes |= voxel_controls(kept.volumes, rows, grid, saved.width)
    if patches is None or looking.positions is None:
        return ProbeFeatures(volumes=volumes, patches={}, data=kept)
    of_patches: dict[str, Contestant | list[Contestant]] = {
        ENCODER: patches,
        "random_init": [one for _, one, _ in random if one is not None],
        **patch_controls(data.volumes, looking.positions, grid, saved.width),
    }
    return ProbeFeatures(volumes=volumes, patches=of_patches, data=kept)


def _see(
    network: "nn.Module", name: str, data: ProbeData, looking: Looking
) -> tuple[Contestant, Contestant | None, list[str]]:
    """Features of the volumes, of the patches at `positions`, and the ids of the volumes that could be read."""
    bad: list[BadVolume] = []
    place = {row.id: number for number, row in enumerate(data.volumes.rows)}
    ids, pooled, patches = list[str](), list[np.ndarray](), list[np.ndarray]()
    tokens: np.ndarray | None = None
    found = features(network, data.volumes, batch_size=looking.batch_size, device=looking.device, on_bad=bad.append)
    with progress_bar(f"volumes through {name}") as show:
        for volume in found:
            ids.append(volume.row.id)
            deviation = [volume.tokens.std(axis=0)] if looking.deviation else []
            pooled.append(np.concatenate([volume.pooled, *deviation]))
            if looking.positions is not None:
                patches.append(volume.tokens[looking.positions[place[volume.row.id]]])
            if looking.tokens:
                if tokens is None:  # at once: a list and its stack would take twice as much
                    tokens = np.empty((len(data.volumes), *volume.tokens.shape), dtype=np.float32)
                tokens[len(ids) - 1] = volume.tokens
            show(len(ids) + len(bad), len(data.volumes))
    for error in bad:
        log.warning("left out: %s", error)
    if not ids:
        raise ValueError(f"none of {len(data.volumes)} volumes can be read: {bad[0]}")
    whole = Contestant(pooled=np.stack(pooled), tokens=None if tokens is None else tokens[: len(ids)])
    return whole, Contestant(pooled=np.concatenate(patches)) if patches else None, ids
