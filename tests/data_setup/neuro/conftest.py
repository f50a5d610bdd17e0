"""Writes small NIfTI files, frame folders and records."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_setup.neuro.conversations import Conversation, ImageRef
from data_setup.neuro.modalities import IMAGE_TOKENS


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """write_nifti(array, name="a.nii.gz", affine=2 mm RAS, tr=None, units=("mm", "sec")) -> path."""

    def write(array, name="a.nii.gz", affine=None, tr=None, units=("mm", "sec")) -> Path:
        image = nib.Nifti1Image(np.asarray(array), np.diag([2, 2, 2, 1]) if affine is None else affine)
        if tr is not None:
            image.header.set_zooms((*image.header.get_zooms()[:3], tr))
        image.header.set_xyzt_units(*units)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def write_frames(tmp_path: Path) -> Callable[..., Path]:
    """write_frames(frames, stats=(mean, std, max) or None, name="func", first=0) -> folder."""

    def write(frames, stats=(100.0, 10.0, 200.0), name="func", first=0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            torch.save(torch.as_tensor(frame), folder / f"frame_{number + first}.pt")
        if stats is not None:
            names = ("global_mean", "global_std", "global_max")
            torch.save(dict(zip(names, map(torch.tensor, stats), strict=True)), folder / "global_stats.pt")
        return folder

    return write


def record(*modalities: str, number: int = 0, answer: str = "left", question: str = "Where?") -> Conversation:
    """A record with an image of each modality."""
    tokens = "".join(f"{IMAGE_TOKENS[modality]}\n" for modality in modalities)
    return Conversation(
        sample_id=f"{'-'.join(modalities) or 'text'}-{number}",
        subject_id=f"s{number}",
        images=tuple(ImageRef(modality, f"phantom:{number}") for modality in modalities),
        prompt=tokens + question,
        answer=answer,
    )


@pytest.fixture
def make_record() -> Callable[..., Conversation]:
    """make_record("T1", number=3) -> Conversation."""
    return record
