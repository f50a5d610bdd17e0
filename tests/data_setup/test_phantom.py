import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_setup.dicom import BadFile, Reason, read_volume
from data_setup.phantom import BROKEN_KINDS, PhantomSettings, write_phantoms
from data_setup.phantom_anatomy import DEPTH_MM, FIELD_MM, FLUID, Anatomy, random_anatomy, render, surfaces

SHAPE = (24, 190, 120)
HEALTHY = Anatomy(
    laterality="R",
    thickness_um=320.0,
    fovea_mm=(0.0, 0.0),
    drusen=(),
    fluid=(),
    vessels=(),
    tilt=(0.0, 0.0),
    depth_mm=1.1,
)


def bright(anatomy: Anatomy) -> np.ndarray:
    """The volume without most of its speckle: the mean of 12 drawings."""
    return np.mean([render(anatomy, SHAPE, np.random.default_rng(seed)) for seed in range(12)], axis=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("phantoms")
    return folder, write_phantoms(folder, PhantomSettings(num_volumes=6, scale=0.5))


def labels(paths: list[Path]) -> list[dict[str, str]]:
    with open(paths[0].parents[1] / "labels.csv") as file:
        return list(csv.DictReader(file))


def test_every_file_is_read_as_a_volume_with_its_header(written):
    _, paths = written
    vendors = set()
    for path, label in zip(paths, labels(paths), strict=True):
        volume = read_volume(path)
        assert volume.volumetric is True
        assert volume.laterality == label["laterality"]
        assert volume.vendor == label["vendor"]
        extent = np.multiply(volume.spacing_mm, volume.voxels.shape)
        np.testing.assert_allclose(extent, [FIELD_MM, DEPTH_MM, FIELD_MM], rtol=0.01)
        vendors.add((volume.vendor, volume.voxels.shape))
    assert len(vendors) == 3


def test_compressed_and_plain_files_are_among_them(written):
    syntaxes = {pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.name for path in written[1]}
    assert syntaxes == {"RLE Lossless", "Explicit VR Little Endian"}


def test_equal_settings_write_nothing_twice_and_equal_bytes_elsewhere(written, tmp_path):
    folder, paths = written
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert write_phantoms(folder, PhantomSettings(num_volumes=6, scale=0.5)) == paths
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    elsewhere = write_phantoms(tmp_path, PhantomSettings(num_volumes=6, scale=0.5))
    assert [path.read_bytes() for path in elsewhere] == [path.read_bytes() for path in paths]


def test_another_seed_gives_other_eyes(written, tmp_path):
    other = write_phantoms(tmp_path, PhantomSettings(num_volumes=6, scale=0.5, seed=1))
    assert [row["thickness_um"] for row in labels(other)] != [row["thickness_um"] for row in labels(written[1])]


def test_broken_files_are_broken_in_every_way_and_as_many_as_asked_for(tmp_path):
    settings = PhantomSettings(num_volumes=12, scale=0.3, broken_fraction=0.25)
    reasons = []
    for path in write_phantoms(tmp_path, settings):
        try:
            read_volume(path)
        except BadFile as bad:
            reasons.append(bad.reason)
    assert len(reasons) == 3 == len(BROKEN_KINDS)
    assert set(reasons) == {Reason.PIXEL_DATA_TRUNCATED, Reason.EMPTY_FILE, Reason.NOT_DICOM}


def test_eyes_of_one_patient_share_an_id(tmp_path):
    paths = write_phantoms(tmp_path, PhantomSettings(num_volumes=4, volumes_per_patient=2, scale=0.3))
    ids = [pydicom.dcmread(path, stop_before_pixels=True).PatientID for path in paths]
    assert ids == ["PHANTOM-0001", "PHANTOM-0001", "PHANTOM-0002", "PHANTOM-0002"]


def test_layers_are_in_order_and_as_thick_as_labelled():
    for seed in range(20):
        borders = surfaces(random_anatomy(np.random.default_rng(seed)), SHAPE)
        assert all((below >= above).all() for above, below in itertools.pairwise(borders))
    borders = surfaces(HEALTHY, SHAPE)
    far = (borders[-1] - borders[0])[0, :]  # first B-scan, 2.9 mm from the fovea: no pit, nasal side thicker
    assert far.mean() == pytest.approx(0.320, rel=0.02)


def test_the_fovea_is_a_pit_where_the_label_says():
    anatomy = replace(HEALTHY, fovea_mm=(0.5, -0.7))
    borders = surfaces(anatomy, SHAPE)
    inner = borders[4] - borders[0]
    d, w = np.unravel_index(inner.argmin(), inner.shape)
    assert ((d + 0.5) / SHAPE[0] - 0.5) * FIELD_MM == pytest.approx(0.5, abs=0.3)
    assert ((w + 0.5) / SHAPE[2] - 0.5) * FIELD_MM == pytest.approx(-0.7, abs=0.2)


def test_the_image_shows_the_thickness_that_the_label_states():
    def measured(thickness_um: float) -> float:
        column = bright(replace(HEALTHY, thickness_um=thickness_um))[1, :, 50:70].mean(axis=1)
        vitreous, step = column[:40].mean(), DEPTH_MM / SHAPE[1]
        top = int(np.argmax(column > vitreous + 25))
        z = (1.5 / SHAPE[0] - 0.5) * FIELD_MM  # the eye is curved: here Bruch's membrane lies 0.006 z^2 mm deeper
        return (HEALTHY.depth_mm + 0.006 * z**2 - top * step) * 1000

    for thickness_um in (260.0, 320.0, 380.0):
        assert measured(thickness_um) == pytest.approx(thickness_um, abs=2.5 * 1000 * DEPTH_MM / SHAPE[1])


def test_vessels_cast_shadows_and_drusen_lift_and_fluid_is_dark():
    plain = bright(HEALTHY)
    shadow = bright(replace(HEALTHY, vessels=((0.125, 0.0, 0.0, 0.2),)))
    depth = round(1.2 / DEPTH_MM * SHAPE[1])
    assert shadow[12, depth].mean() < 0.75 * plain[12, depth].mean()
    assert shadow[0, depth].mean() == pytest.approx(plain[0, depth].mean(), rel=0.05)
    lifted = surfaces(replace(HEALTHY, drusen=((0.125, 1.5, 0.3, 0.08),)), SHAPE)
    assert (surfaces(HEALTHY, SHAPE)[-2] - lifted[-2]).max() == pytest.approx(0.08, rel=0.1)
    wet = replace(HEALTHY, fluid=((1.5, 1.5, 0.5, 0.06),))
    where = (18, round((surfaces(wet, SHAPE)[4][18, 90] + 1.3 * 0.06) / DEPTH_MM * SHAPE[1]), 90)
    assert bright(wet)[where] < np.sqrt(2 * FLUID) * 190 < plain[where]


def test_labels_state_volumes_of_what_was_drawn():
    anatomy = replace(HEALTHY, fluid=((0.0, 0.0, 0.5, 0.06),), drusen=((1.0, 1.0, 0.2, 0.05),))
    assert anatomy.fluid_mm3 == pytest.approx(4 / 3 * np.pi * 0.25 * 0.06)
    fine = (600, 10, 600)
    lift = surfaces(HEALTHY, fine)[-2] - surfaces(replace(anatomy, fluid=()), fine)[-2]
    assert anatomy.drusen_load_mm3 == pytest.approx(lift.sum() * (FIELD_MM / 600) ** 2, rel=0.01)


@pytest.mark.parametrize("wrong", [{"num_volumes": 0}, {"scale": 9}, {"broken_fraction": 1.0}])
def test_impossible_settings_are_refused_by_key(wrong):
    with pytest.raises(ValueError, match=f"data.phantom.{next(iter(wrong))}"):
        PhantomSettings(**wrong)
