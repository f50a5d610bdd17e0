"""A configuration, prepared data and a model -> what looks at the run: held-out volumes, interval, labels."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from data_setup.datasets import PreparedVolumes
from data_setup.index import PreparedSet
from data_setup.masking import MaskGenerator
from data_setup.phantom import labels_file
from oct_foundation.diagnostics.labels import LabelKind
from oct_foundation.diagnostics.quick_probe import quick_probe
from oct_foundation.models.vjepa3d import VJEPA3D
from oct_foundation.runtime.base import Runtime
from pretraining.config import ConfigError
from pretraining.diagnose import Diagnostics, ProbeLabels
from pretraining.held_out import NUM_VIEWS, HeldOut
from pretraining.label_table import PHANTOMS, LabelTable, patients_in_files, read_labels
from pretraining.observe import VJEPAObserver
from pretraining.run_folder import RunFolder
from pretraining.vjepa_config import VJEPARunConfig

# A look at a volume runs teacher and student over all tokens, and context and predictor once: about as much as a
# training step of that volume (docs/performance.md). Readings may take this share of the time.
MAX_SHARE = 0.02
PATIENT = "patient"
# Of phantoms: few different numbers, or mostly 0, and no classes.
VALUES = ("drusen_count", "drusen_load", "drusen_load_mm3", "fluid", "fluid_mm3")
KINDS: dict[str, LabelKind] = dict.fromkeys(VALUES, "values")

log = logging.getLogger(__name__)


def build_diagnostics(
    config: VJEPARunConfig,
    prepared: PreparedSet,
    model: nn.Module,
    runtime: Runtime,
    *,
    total_steps: int,
    folder: RunFolder,
) -> Diagnostics | None:
    """What looks at a run through its validation volumes; None, with one log line, where there are too few."""
    settings, batch_size = config.diagnostics, config.batch.per_core_batch_size
    volumes = PreparedVolumes(prepared, "val", config.data.select)
    if len(volumes) < 2:
        log.warning("diagnostics are off: there are %d validation volumes; raise data.val_fraction", len(volumes))
        return None
    masks = MaskGenerator(config.grid, config.mask)
    held_out = HeldOut(volumes, masks, num_volumes=settings.num_volumes, seed=config.seed)
    assert isinstance(model, VJEPA3D)
    every_steps = settings.every_steps or default_interval(
        num_volumes=held_out.num_volumes,
        width=model.embed_dim,
        num_domains=len(set(held_out.domains)),
        batch_size=batch_size,
        global_batch=config.batch.global_batch_size,
        world_size=runtime.world_size,
    )
    log.info("diagnostics on %d held-out volumes, every %d steps", held_out.num_volumes, every_steps)
    return Diagnostics(
        observer=VJEPAObserver(held_out, runtime, batch_size=batch_size, precision=config.train.precision),
        held_out=held_out,
        every_steps=every_steps,
        total_steps=total_steps,
        warmup_steps=config.optim.warmup_steps,
        clip_norm=config.optim.clip_norm,
        record=folder.metrics,
        pictures=folder.pictures,
        stop_on_alarm=settings.stop_on_alarm,
        labels=_agreed_labels(config, prepared, held_out, folder, runtime),
    )


def _agreed_labels(
    config: VJEPARunConfig, prepared: PreparedSet, held_out: HeldOut, folder: RunFolder, runtime: Runtime
) -> ProbeLabels | None:
    """On rank 0, which alone probes; what is wrong with them is raised as ConfigError on all ranks."""
    labels, trouble = None, ""
    if runtime.rank == 0:
        try:
            labels = _labels(config, prepared, held_out, folder)
        except ConfigError as error:
            trouble = str(error)
    if trouble := runtime.gather(trouble)[0]:
        raise ConfigError(trouble)
    return labels


def _labels(config: VJEPARunConfig, prepared: PreparedSet, held_out: HeldOut, folder: RunFolder) -> ProbeLabels | None:
    """What `diagnostics.labels` names, of the held-out volumes; raises ConfigError where it cannot be used."""
    wanted, data = config.diagnostics.labels, config.data
    if wanted is None:
        return None
    if wanted == PHANTOMS:
        if data.source != "phantom":
            raise ConfigError(f"diagnostics.labels={PHANTOMS} needs data.source=phantom; found {data.source}")
        cache = Path(data.cache_dir) if data.cache_dir else folder.prepared
        wanted = str(labels_file(cache / "phantom-dicom", data.phantom))
    try:
        table = read_labels(wanted, prepared, held_out.ids, [])
    except ValueError as error:
        raise ConfigError(f"diagnostics.labels: {error}") from None
    columns = {name: column for name, column in table.columns.items() if name not in (table.id_column, PATIENT)}
    groups = _patients(table, prepared, held_out.ids)
    usable = {name: column for name, column in columns.items() if _can_be_probed(name, column, groups)}
    if not usable:
        raise ConfigError(
            f"diagnostics.labels={wanted}: no column can be probed for among {len(groups)} held-out volumes, the log "
            f"says why; hold out more of them (data.val_fraction), or set diagnostics.labels=null"
        )
    log.info("probes during training: %s", ", ".join(usable))
    return ProbeLabels(columns=usable, groups=groups, kinds=KINDS)


def _patients(table: LabelTable, prepared: PreparedSet, ids: Sequence[str]) -> np.ndarray:
    """Of each volume, from the table's column `patient`, else as the files say; else each volume counts as one."""
    if PATIENT in table.columns:
        return np.array(table.columns[PATIENT])
    try:
        return np.array(patients_in_files(prepared, ids))
    except ValueError:
        log.warning("diagnostics.labels has no column %s: both eyes of a patient count as two patients", PATIENT)
        return np.array(ids)


def _can_be_probed(name: str, column: Sequence[object], groups: np.ndarray) -> bool:
    """Whether a column says different things of enough patients; one that does not is left out, with a log line."""
    try:
        quick_probe(np.zeros((len(groups), 1)), {name: column}, groups, KINDS)
    except ValueError as error:
        log.info("%s", error)
        return False
    return True


def default_interval(
    *, num_volumes: int, width: int, num_domains: int, batch_size: int, global_batch: int, world_size: int
) -> int:
    """Updates between readings so that they take MAX_SHARE of the time; costs in training steps of one volume.

    One for a look at a volume, a seventh for one of its masked views (the context is a fraction of the tokens, and
    nothing flows back), one for each volume in the gradients of the makers' batches.
    """
    views = min(width // (NUM_VIEWS - 1) + 1, num_volumes) * NUM_VIEWS / 7
    gradients = num_domains * batch_size * world_size if num_domains > 1 else 0
    return math.ceil((num_volumes + views + gradients) / global_batch / MAX_SHARE)
