"""Writes small OPT files whose every element a test may change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

OPT = "1.2.840.10008.5.1.4.1.1.77.1.5.4"


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: one item per named sequence."""
    outer = Dataset()
    for keyword, values in sequences.items():
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(outer, keyword, Sequence([item]))
    return outer


def opt_dataset(voxels: np.ndarray, patient: str = "TEST-1") -> Dataset:
    """A valid raster OPT of [D, H, W] unsigned voxels, planes 0.03 mm apart, voxels 0.004 x 0.01 mm, right eye."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = OPT
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[patient])
    dataset.PatientID = patient
    dataset.Manufacturer, dataset.ManufacturerModelName = "Heidelberg Engineering", "Spectralis"
    dataset.ImageLaterality = "R"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = voxels.shape[:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = voxels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.BurnedInAnnotation = "NO"
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
                PixelMeasuresSequence={"PixelSpacing": [0.004, 0.01], "SliceThickness": 0.03},
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            group(PlanePositionSequence={"ImagePositionPatient": [0, 0, round(0.03 * frame, 6)]})
            for frame in range(len(voxels))
        ]
    )
    dataset.PixelData = voxels.tobytes() + b"\0" * (voxels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if voxels.dtype.itemsize == 1 else "OW"
    return dataset


@pytest.fixture
def voxels() -> np.ndarray:
    """uint8 [4, 16, 24] of noise."""
    return np.random.default_rng(0).integers(0, 256, (4, 16, 24), dtype=np.uint8)


@pytest.fixture
def write_opt(tmp_path: Path, voxels: np.ndarray) -> Callable[..., Path]:
    """write_opt(change=None, fragments=None, syntax=..., **elements) -> path of an OPT file.

    change edits the data set; fragments replace the pixels, compressed; elements are set, or removed if None.
    """

    def write(
        change: Callable[[Dataset], None] | None = None,
        *,
        fragments: list[bytes] | None = None,
        syntax: str = ExplicitVRLittleEndian,
        pixels: np.ndarray = voxels,
        patient: str = "TEST-1",
        path: Path = tmp_path / "scan.dcm",
        **elements: Any,
    ) -> Path:
        dataset = opt_dataset(pixels, patient)
        dataset.file_meta.TransferSyntaxUID = syntax
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if change is not None:
            change(dataset)
        if fragments is not None:
            dataset.PixelData = encapsulate(fragments, has_bot=False)
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write
