import csv
from dataclasses import replace

import numpy as np
import pytest

from data_setup.phantom_anatomy import TISSUES, Anatomy, surfaces, tissue_map
from data_setup.phantom_benchmark import (
    FLUID_SHARE,
    LABELS_NAME,
    RANGES,
    SCANNERS,
    BenchmarkSettings,
    PhantomBenchmark,
    through_scanner,
    write_benchmark,
)

SMALL = BenchmarkSettings(num_volumes=9, image_size=(8, 48, 48), patch_size=(4, 16, 16), seed=5)


@pytest.fixture(scope="module")
def eyes() -> PhantomBenchmark:
    return PhantomBenchmark(SMALL)


def test_equal_settings_give_equal_volumes_and_another_seed_gives_others(eyes):
    assert np.array_equal(eyes[3], PhantomBenchmark(SMALL)[3])
    assert not np.array_equal(eyes[3], PhantomBenchmark(replace(SMALL, seed=6))[3])
    assert eyes[3].dtype == np.uint8
    assert eyes[3].shape == SMALL.image_size


def test_a_volume_does_not_depend_on_how_many_there_are(eyes):
    assert np.array_equal(eyes[2], PhantomBenchmark(replace(SMALL, num_volumes=3))[2])


def test_labels_are_the_truth_about_each_eye(eyes):
    labels = eyes.labels
    for number in range(len(eyes)):
        eye = eyes.anatomy(number)
        assert labels["thickness_um"][number] == eye.thickness_um
        assert labels["drusen_count"][number] == len(eye.drusen)
        assert labels["fluid"][number] ** 2 == pytest.approx(eye.fluid_mm3)
        assert labels["drusen_load"][number] ** 2 == pytest.approx(eye.drusen_load_mm3)
        assert labels["laterality"][number] == eye.laterality
    assert labels["vendor"].tolist() == [SCANNERS[number % 3].vendor for number in range(9)]


def test_what_a_scanner_adds_tells_nothing_of_the_anatomy():
    """The same grey levels, seen twice, differ in brightness by more than a tenth for some scans."""
    voxels = np.full((4, 32, 32), 120, np.uint8)
    means = [through_scanner(voxels, SCANNERS[0], np.random.default_rng(seed)).mean() for seed in range(30)]
    assert max(means) / min(means) > 1.2


def test_scanners_look_different():
    voxels = np.tile(np.array([0, 200], np.uint8), (4, 32, 16))
    a, b, c = (through_scanner(voxels, scanner, np.random.default_rng(0)).astype(float) for scanner in SCANNERS)
    assert a[..., 0].max() == 0
    assert c[..., 0].mean() > 2  # its floor
    assert abs(b.mean() - a.mean()) > 1


def test_tissue_follows_the_surfaces_voxel_by_voxel(eyes):
    eye, shape = eyes.anatomy(1), (4, 60, 20)
    tissue, borders = tissue_map(eye, shape), surfaces(eye, shape)
    inner_end = borders[4]
    for d, h, w in np.random.default_rng(0).integers(0, shape, (300, 3)):
        y = (h + 0.5) * 1.9 / shape[1]
        expected = (
            "vitreous" if y <= borders[0][d, w] else "inner retina" if y <= inner_end[d, w]
            else "outer retina" if y <= borders[-1][d, w] else "choroid"
        )  # fmt: skip
        assert TISSUES[tissue[d, h, w]] in (expected, "fluid")


def test_fluid_has_the_volume_that_its_label_states():
    eye = Anatomy(
        laterality="R", thickness_um=400, fovea_mm=(0, 0), drusen=(), fluid=((0.0, 0.0, 0.9, 0.1),), vessels=(),
        tilt=(0, 0), depth_mm=1.2,
    )  # fmt: skip
    shape = (120, 380, 120)
    voxel_mm3 = 6 / shape[0] * 1.9 / shape[1] * 6 / shape[2]
    found = (tissue_map(eye, shape) == TISSUES.index("fluid")).sum() * voxel_mm3
    assert found == pytest.approx(eye.fluid_mm3, rel=0.03)


def test_a_patch_is_named_after_what_fills_most_of_it(eyes):
    number = next(n for n in range(len(eyes)) if eyes.anatomy(n).fluid)
    tissue = tissue_map(eyes.anatomy(number), SMALL.image_size)
    labels, grid = eyes.patch_labels(number), SMALL.grid
    for token, (d, h, w) in enumerate(grid.coordinates().tolist()):
        patch = tissue[d * 4 : d * 4 + 4, h * 16 : h * 16 + 16, w * 16 : w * 16 + 16]
        counts = np.bincount(patch.ravel(), minlength=len(TISSUES))
        assert counts[labels["layer"][token]] == counts.max()
        assert labels["fluid"][token] == (counts[TISSUES.index("fluid")] >= FLUID_SHARE * patch.size)
    assert labels["fluid"].any()


def test_it_is_written_as_a_prepared_set_with_its_labels(eyes, tmp_path):
    prepared = write_benchmark(tmp_path, SMALL, num_train=5, num_val=2)
    assert [len(prepared.accepted(split)) for split in ("train", "val", "test")] == [5, 2, 2]
    rows = prepared.accepted()
    assert np.array_equal(prepared.volume(rows[4]), eyes[4])
    with (tmp_path / LABELS_NAME).open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row.id for row in rows]
    assert float(table[4]["thickness_um"]) == eyes.labels["thickness_um"][4]
    again = write_benchmark(tmp_path, SMALL, num_train=5, num_val=2)
    assert again.info == prepared.info


def test_more_to_train_than_there_are_is_refused(tmp_path):
    with pytest.raises(ValueError, match="9 to train and 1 to validate are more than 9"):
        write_benchmark(tmp_path, SMALL, num_train=9, num_val=1)


def test_ranges_bound_what_is_drawn(eyes):
    for number in range(len(eyes)):
        eye = eyes.anatomy(number)
        assert RANGES.thickness_um[0] <= eye.thickness_um <= RANGES.thickness_um[1]
        assert max(map(abs, eye.fovea_mm)) <= RANGES.fovea_mm
        assert RANGES.num_vessels[0] <= len(eye.vessels) <= RANGES.num_vessels[1]
