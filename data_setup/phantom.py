"""Writes OCT volumes of known anatomy as OPT DICOM files: the embedded data set, for smoke runs, tests and benchmarks.

The files pass through the same reader as real scans. Three makers' shapes, spacings and transfer syntaxes take turns.
"""

import csv
import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from data_setup.phantom_anatomy import DEPTH_MM, FIELD_MM, Anatomy, random_anatomy, render, vessel_map
from data_setup.randomness import Purpose, sample_rng

OPT_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
BROKEN_KINDS = ("truncated", "empty", "not_dicom")
_FORMAT = 1  # a change of what is written for equal settings


class Maker(NamedTuple):
    """Name, model, protocol; frames, rows, columns of its scans at scale 1; whether pixels are compressed."""

    name: str
    model: str
    protocol: str
    shape: tuple[int, int, int]
    compressed: bool


# A quarter of the sizes that AI-READI lists for these devices, in every direction.
MAKERS = (
    Maker("Heidelberg Engineering", "Spectralis", "PPole-Mac-HR", (15, 124, 192), True),
    Maker("Topcon", "Maestro2", "3D Macula", (32, 221, 128), False),
    Maker("Carl Zeiss Meditec", "Cirrus", "Macular Cube", (32, 256, 128), False),
    Maker("Topcon", "Triton", "3D(H)", (64, 248, 128), True),
)


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """num_volumes, made by these devices in turn, of which broken_fraction are damaged files; scale 4 gives the
    devices' true sizes.
    """

    num_volumes: int = 10
    devices: tuple[str, ...] = ("Spectralis", "Maestro2", "Cirrus")
    volumes_per_patient: int = 1
    scale: float = 1.0
    broken_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))
        known = [maker.model for maker in MAKERS]
        if not self.devices or not set(self.devices) <= set(known):
            raise ValueError(f"data.phantom.devices must be some of {', '.join(known)}; found {list(self.devices)}")
        for name, least in (("num_volumes", 1), ("volumes_per_patient", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.phantom.{name} must be at least {least}; found {getattr(self, name)}")
        if not 0.1 <= self.scale <= 4:
            raise ValueError(f"data.phantom.scale must be from 0.1 to 4; found {self.scale}")
        if not 0 <= self.broken_fraction < 1:
            raise ValueError(f"data.phantom.broken_fraction must be from 0 to below 1; found {self.broken_fraction}")


def write_phantoms(folder: Path, settings: PhantomSettings) -> list[Path]:
    """Writes the files and `labels.csv` below a folder of these settings, where they are not there yet.

    Returns the DICOM files, sorted. Equal settings give equal bytes on every machine.
    """
    target = labels_file(folder, settings).parent / "volumes"
    paths = [target / f"phantom-{number:05d}.dcm" for number in range(settings.num_volumes)]
    target.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        if not path.exists():
            _write(path, _file_bytes(number, settings))
    _write(labels_file(folder, settings), _labels(settings, [path.name for path in paths]).encode())
    return paths


def labels_file(folder: Path, settings: PhantomSettings) -> Path:
    """Where `write_phantoms` puts the truth about its files."""
    digest = hashlib.sha256(json.dumps([_FORMAT, asdict(settings)], sort_keys=True).encode()).hexdigest()[:12]
    return folder / digest / "labels.csv"


def anatomy_of(number: int, settings: PhantomSettings) -> Anatomy:
    """The truth about phantom `number`."""
    return random_anatomy(sample_rng(settings.seed, 0, number, Purpose.PHANTOM))


def maker_of(number: int, settings: PhantomSettings) -> Maker:
    """Devices take turns."""
    device = settings.devices[number % len(settings.devices)]
    return next(maker for maker in MAKERS if maker.model == device)


def shape_of(number: int, settings: PhantomSettings) -> tuple[int, int, int]:
    """[D, H, W] of phantom `number`."""
    d, h, w = (max(2, round(side * settings.scale)) for side in maker_of(number, settings).shape)
    return d, h, w


def _file_bytes(number: int, settings: PhantomSettings) -> bytes:
    """A DICOM file, or what is left of it where `number` is among the broken ones."""
    # Spread evenly: file n is broken where the running share passes a whole number.
    share = settings.broken_fraction
    broken_before, broken_now = int(number * share), int((number + 1) * share)
    whole = _dicom(number, settings)
    if broken_now == broken_before:
        return whole
    match BROKEN_KINDS[broken_before % len(BROKEN_KINDS)]:
        case "truncated":
            return whole[: len(whole) * 6 // 10]
        case "empty":
            return b""
        case _:
            return b"<html><body>403 Forbidden</body></html>"


def _dicom(number: int, settings: PhantomSettings) -> bytes:
    maker, shape = maker_of(number, settings), shape_of(number, settings)
    anatomy = anatomy_of(number, settings)
    voxels = render(anatomy, shape, sample_rng(settings.seed, 1, number, Purpose.PHANTOM))
    dataset = _header(number, settings, maker, anatomy, shape)
    dataset.PixelData = voxels.tobytes()
    if maker.compressed:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _header(
    number: int, settings: PhantomSettings, maker: Maker, anatomy: Anatomy, shape: tuple[int, int, int]
) -> Dataset:
    """What AI-READI's files hold: functional groups for geometry, blank names, an id that is no person's."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = OPT_STORAGE
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["octfm phantom", str(settings), str(number)])
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = OPT_STORAGE, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.ImageType = "OPT", ["DERIVED", "PRIMARY"]
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.ProtocolName = maker[:3]
    dataset.PatientID = f"PHANTOM-{number // settings.volumes_per_patient + 1:04d}"
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "", "", ""
    dataset.ImageLaterality, dataset.BurnedInAnnotation = anatomy.laterality, "NO"
    dataset.InConcatenationNumber = 1
    dataset.OphthalmicVolumetricPropertiesFlag = "YES"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    distance = FIELD_MM / shape[0]
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [round(DEPTH_MM / shape[1], 6), round(FIELD_MM / shape[2], 6)]
    measures.SliceThickness = round(distance, 6)
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_group(index * distance) for index in range(shape[0])]
    return dataset


def _frame_group(position_mm: float) -> Dataset:
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = [0, round(position_mm, 6), 0]
    group.PlanePositionSequence = [position]
    return group


def _labels(settings: PhantomSettings, names: list[str]) -> str:
    """The truth as CSV, one row a file."""
    rows = []
    for number, name in enumerate(names):
        anatomy, shape = anatomy_of(number, settings), shape_of(number, settings)
        rows.append(
            {
                "file": name,
                "vendor": maker_of(number, settings).name,
                "laterality": anatomy.laterality,
                "thickness_um": round(anatomy.thickness_um, 2),
                "fovea_z_mm": round(anatomy.fovea_mm[0], 4),
                "fovea_x_mm": round(anatomy.fovea_mm[1], 4),
                "drusen_count": len(anatomy.drusen),
                "drusen_load_mm3": round(anatomy.drusen_load_mm3, 5),
                "fluid_mm3": round(anatomy.fluid_mm3, 5),
                "vessel_density": round(float(np.mean(vessel_map(anatomy, shape) > 0.5)), 4),
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, and not again where it is there already."""
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
