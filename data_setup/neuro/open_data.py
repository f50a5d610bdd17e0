"""The data section of a multi-modal run -> where images come from, and the checked records of each split."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from data_setup.neuro.audit import Audit, check_records
from data_setup.neuro.bids import BidsSettings, read_bids
from data_setup.neuro.brain_phantom import BrainPhantomSettings, PhantomImages, phantom_records
from data_setup.neuro.conversations import Conversation, Refused, read_conversations
from data_setup.neuro.dataset import FileImages
from data_setup.neuro.errors import NeuroFileError
from data_setup.neuro.fmri import FunctionalSettings
from data_setup.neuro.modality_sampler import SamplingSettings
from data_setup.neuro.prompt import PromptEncoder
from data_setup.neuro.samples import ImageSource
from data_setup.neuro.subject_split import split_by_subject
from data_setup.neuro.volumes import VolumeSettings
from data_setup.splits import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NeuroDataSettings:
    """source: generated brains, `json` conversations (a file or a folder at `path`) or a `bids` folder at `path`.

    data_root: what the paths of a JSON start from, null: the folder that holds it. T1, rsfMRI, dMRI: null switches a
    modality of files off. max_length: tokens of a row, image tokens included.
    """

    source: Literal["phantom", "json", "bids"] = "phantom"
    path: str | None = None
    data_root: str | None = None
    phantom: BrainPhantomSettings = field(default_factory=BrainPhantomSettings)
    bids: BidsSettings = field(default_factory=BidsSettings)
    T1: VolumeSettings | None = field(default_factory=VolumeSettings)
    rsfMRI: FunctionalSettings | None = field(default_factory=FunctionalSettings)
    dMRI: VolumeSettings | None = field(default_factory=VolumeSettings)
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    max_bad_fraction: float = 0.25
    max_length: int = 256
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        if (self.path is None) != (self.source == "phantom"):
            raise ValueError(
                f"data.path is needed by the sources json and bids only; source {self.source}, {self.path}"
            )
        if self.source != "phantom" and not self.enabled:
            raise ValueError("data.T1, data.rsfMRI and data.dMRI are all null: enable at least one")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be from 0 to 1; found {self.max_bad_fraction}")

    @property
    def enabled(self) -> dict[str, VolumeSettings | FunctionalSettings]:
        """The settings of modalities that are read from files."""
        listed = {"T1": self.T1, "rsfMRI": self.rsfMRI, "dMRI": self.dMRI}
        return {name: found for name, found in listed.items() if found is not None}


class NeuroData(NamedTuple):
    """What a run trains, validates and tests on; the audit says what was left out."""

    splits: dict[Split, list[Conversation]]
    audit: Audit


def image_source(settings: NeuroDataSettings) -> ImageSource:
    """Where images come from; its specs decide the model's patch embeddings and the tokens of an image."""
    if settings.source == "phantom" or settings.path is None:
        return PhantomImages(settings=settings.phantom)
    path = Path(settings.path)
    folder = path if path.is_dir() else path.parent
    return FileImages(data_root=Path(settings.data_root) if settings.data_root else folder, settings=settings.enabled)


def open_data(settings: NeuroDataSettings, source: ImageSource, encoder: PromptEncoder) -> NeuroData:
    """Reads, checks and splits; logs the table of what was refused and what the split had to bend.

    Raises ValueError where the records cannot be read, too many are refused or nothing is left.
    """
    try:
        records, refused = _records(settings)
    except NeuroFileError as error:
        raise ValueError(f"data.path={settings.path}: {error}") from error
    audit = check_records(records, source, encoder, refused)
    audit.check_share(settings.max_bad_fraction)
    log.info("%s", audit.table())
    splits, notes = split_by_subject(
        audit.kept,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
    )
    for note in notes:
        log.warning("%s", note)
    return NeuroData(splits, audit)


def _records(settings: NeuroDataSettings) -> tuple[list[Conversation], list[Refused]]:
    match settings.source:
        case "phantom":
            return phantom_records(settings.phantom), []
        case "json":
            return read_conversations(Path(settings.path or ""))
        case "bids":
            return read_bids(Path(settings.path or ""), settings.bids)
