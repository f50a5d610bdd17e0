import numpy as np
import pytest
import torch

from data_setup.arrays import write_prepared
from data_setup.datasets import PreparedVolumes
from data_setup.index import IndexRow
from data_setup.masking import MaskGenerator, MaskSettings
from oct_foundation.geometry import PatchGrid
from pretraining.held_out import MAX_POSITIONS, NUM_VIEWS, HeldOut, otsu

GRID = PatchGrid(image_size=(8, 32, 48), patch_size=(4, 8, 16))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> PreparedVolumes:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 40, GRID.image_size, dtype=np.uint8) for _ in range(3)]
    for array in arrays:
        array[:, 8:16] += 100  # tissue: the second row of patches
    rows = [
        IndexRow(id=f"v{n}", status="accepted", vendor=f"maker {n % 2}", split="val", spacing_mm=(0.4, 0.01, 0.02))
        for n in range(3)
    ]
    return PreparedVolumes(write_prepared(tmp_path_factory.mktemp("set"), rows, arrays), "val")


def held_out(volumes, seed=1, num_volumes=9) -> HeldOut:
    return HeldOut(volumes, MaskGenerator(GRID, MaskSettings()), num_volumes=num_volumes, seed=seed)


def test_masks_and_positions_depend_on_the_seed_alone(volumes):
    one, again, other = held_out(volumes), held_out(volumes), held_out(volumes, seed=2)
    assert all(np.array_equal(one.hidden(n), again.hidden(n)) for n in range(3))
    assert np.array_equal(one.compared, again.compared)
    assert not all(np.array_equal(one.hidden(n), other.hidden(n)) for n in range(3))


def test_foreground_is_the_row_of_patches_that_shows_tissue(volumes):
    expected = np.zeros(GRID.grid, bool)
    expected[:, 1] = True
    for number in range(3):
        assert np.array_equal(held_out(volumes).foreground(number), expected.ravel())


def test_a_slot_is_where_a_hidden_position_stands_among_the_targets(volumes):
    found = held_out(volumes)
    look = found.look([2, 0])
    for row, number in enumerate((2, 0)):
        hidden = found.hidden(number)
        for place, position in enumerate(look.positions[row].tolist()):
            slot = int(look.slots[row, place])
            assert slot == (look.target_idx[row].tolist().index(position) if hidden[position] else 0)
    assert torch.equal(look.volume[1, 0], torch.from_numpy(np.array(volumes[0])))


def test_views_hide_other_patches_each_time(volumes):
    views = list(held_out(volumes).views([0, 1]))
    assert len(views) == NUM_VIEWS
    assert len({tuple(view[0].tolist()) for view in views}) == NUM_VIEWS


def test_the_middle_layer_is_the_raster_of_one_depth(volumes):
    found = held_out(volumes)
    depths = GRID.coordinates()[found.middle_layer]
    assert set(depths[:, 0].tolist()) == {GRID.grid[0] // 2}
    assert len(found.middle_layer) == GRID.grid[1] * GRID.grid[2]
    assert len(found.compared) == min(MAX_POSITIONS, GRID.num_patches)


def test_the_aspect_is_that_of_the_scan_in_mm(volumes):
    assert held_out(volumes).aspect(0) == pytest.approx(32 * 0.01 / (48 * 0.02))


def test_without_a_volume_there_is_nothing_to_hold_out(volumes):
    none = PreparedVolumes(volumes._prepared, "test")
    with pytest.raises(ValueError, match="no volume to hold out"):
        held_out(none)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_finds_the_cut_that_separates_best(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(20, 5, 300), rng.normal(90, 20, 100)])

    def between(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return 0.0 if len(high) == 0 else len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert between(otsu(values)) == pytest.approx(max(map(between, values)), rel=1e-12)
