"""The one error about a brain image or a conversation: a reason code for counting, and a sentence for who mends it.

Messages hold numbers, types and names of formats, never a path: whoever catches one knows which sample it was about.
"""

from enum import StrEnum

from data_setup.errors import UnreadableInput


class NeuroReason(StrEnum):
    """Why a file or a sample is refused."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_NIFTI = "not_nifti"
    TRUNCATED = "truncated"
    UNSUPPORTED_TYPE = "unsupported_type"
    WRONG_DIMS = "wrong_dims"
    NO_RULE_FOR_4D = "no_rule_for_4d"
    IMPOSSIBLE_SPACING = "impossible_spacing"
    NOT_FINITE = "not_finite"
    CONSTANT = "constant"
    NO_GRADIENTS = "no_gradients"
    BAD_GRADIENTS = "bad_gradients"
    TOO_SHORT = "too_short"
    BAD_FRAME = "bad_frame"
    UNSAFE_PICKLE = "unsafe_pickle"
    NO_STATS = "no_stats"
    BAD_JSON = "bad_json"
    UNKNOWN_MODALITY = "unknown_modality"
    NOT_ENABLED = "not_enabled"
    IMAGE_PLACES = "image_places"
    NO_SUBJECT = "no_subject"
    NO_ANSWER = "no_answer"
    TOO_LONG = "too_long"


_COPY_AGAIN = "Copy the file from its source again and compare sizes."

REMEDY: dict[NeuroReason, str] = {
    NeuroReason.MISSING: "Check the path, data_root, the mount and the read permission.",
    NeuroReason.EMPTY: _COPY_AGAIN,
    NeuroReason.NOT_NIFTI: "Convert the image to NIfTI, .nii or .nii.gz, e.g. with dcm2niix.",
    NeuroReason.TRUNCATED: _COPY_AGAIN,
    NeuroReason.UNSUPPORTED_TYPE: "One real number a voxel is needed: convert colour and complex images first.",
    NeuroReason.WRONG_DIMS: "A T1 and a dMRI map have three axes, an rsfMRI run has four.",
    NeuroReason.NO_RULE_FOR_4D: "Set rule_4d to mean_b0, fa or first: what shall become of a series of volumes?",
    NeuroReason.IMPOSSIBLE_SPACING: "Mend the header's voxel size, or set impossible_spacing: warn to guess it.",
    NeuroReason.NOT_FINITE: "Replace NaN and Inf, e.g. by 0 where they lie outside the head.",
    NeuroReason.CONSTANT: "The image is blank: export or compute it again.",
    NeuroReason.NO_GRADIENTS: "Put NAME.bval and NAME.bvec beside NAME.nii.gz, or set rule_4d: first.",
    NeuroReason.BAD_GRADIENTS: "bval needs one number a volume, bvec three; the tensor 6 directions and a b0.",
    NeuroReason.TOO_SHORT: "Lower sequence_length or stride_within_seq, or leave the run out.",
    NeuroReason.BAD_FRAME: "Write the folder again: frame_0.pt to frame_N.pt, tensors of one shape (H, W, D).",
    NeuroReason.UNSAFE_PICKLE: "The file wants to run code when loaded. Save plain tensors and numbers only.",
    NeuroReason.NO_STATS: "Write global_stats.pt (global_mean, global_std, global_max), or set the scaling to none.",
    NeuroReason.BAD_JSON: "Mend it: docs/multimodal.md shows what is read.",
    NeuroReason.UNKNOWN_MODALITY: "Use T1 (or sMRI), rsfMRI (or fMRI), dMRI.",
    NeuroReason.NOT_ENABLED: "Enable the modality, or leave the sample out.",
    NeuroReason.IMAGE_PLACES: "Write <image> once for each image of the sample, or not at all.",
    NeuroReason.NO_SUBJECT: "Give subject_id: the split into train, val and test goes by subject.",
    NeuroReason.NO_ANSWER: "Training needs an answer; leave the sample out.",
    NeuroReason.TOO_LONG: "Raise max_length, shorten the text, or use larger patches (fewer image tokens).",
}


class NeuroFileError(UnreadableInput):
    """An image or a sample that cannot be used: `reason`, `detail` (what was found), `message` (and how to mend it)."""

    def __init__(self, reason: NeuroReason, detail: str) -> None:
        super().__init__(reason, detail)  # the arguments, so that the error survives pickling
        self.reason, self.detail = reason, detail

    @property
    def message(self) -> str:
        """What was found and how to mend it."""
        return f"{self.detail}. {REMEDY[self.reason]}"

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
