"""The three kinds of brain image, their names in files and the place that an image takes in a prompt.

Inside this project a modality is T1, rsfMRI or dMRI; other spellings are understood at the file border only.
"""

from data_setup.neuro.errors import NeuroFileError, NeuroReason

MODALITIES = ("T1", "rsfMRI", "dMRI")  # the order of rows in every batch
TEXT = "text"  # rows without an image
GENERIC_TOKEN = "<image>"

IMAGE_TOKENS = {"T1": "<image_sMRI>", "rsfMRI": "<image_fMRI>", "dMRI": "<image_dMRI>"}
ALIASES = {"T1": ("sMRI",), "rsfMRI": ("fMRI",), "dMRI": ()}
_NAMES = {spelling: name for name in MODALITIES for spelling in (name, *ALIASES[name])}


def modality_name(spelling: object) -> str:
    """T1, rsfMRI or dMRI for any accepted spelling; raises NeuroFileError(unknown_modality)."""
    if not isinstance(spelling, str) or spelling not in _NAMES:
        raise NeuroFileError(NeuroReason.UNKNOWN_MODALITY, f"a modality {spelling!r}; known: {', '.join(_NAMES)}")
    return _NAMES[spelling]
