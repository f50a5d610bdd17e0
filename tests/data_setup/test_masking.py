import numpy as np
import pytest

from data_setup.masking import MaskGenerator, MaskSettings
from data_setup.randomness import Purpose, sample_rng
from oct_foundation.geometry import PatchGrid

STRATEGIES = ("random", "tube", "multiblock")
GRIDS = {"square": (4, 8, 8), "flat": (2, 5, 9)}


def generator(strategy: str, grid=GRIDS["square"], ratio=0.6) -> MaskGenerator:
    patches = PatchGrid(image_size=tuple(4 * side for side in grid), patch_size=(4, 4, 4))
    return MaskGenerator(patches, MaskSettings(strategy=strategy, ratio=ratio))


def draw(masks: MaskGenerator, number: int):
    return masks.draw(sample_rng(7, 0, number, Purpose.MASK))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_counts_are_the_same_in_every_mask(strategy, grid, ratio):
    masks = generator(strategy, grid, ratio)
    for number in range(200):
        mask, context_idx, target_idx = draw(masks, number)
        assert mask.sum() == masks.num_target == len(target_idx)
        assert len(context_idx) == masks.num_context
        np.testing.assert_array_equal(np.flatnonzero(mask), target_idx)
        assert not mask[context_idx].any(), "a context token is a target"
        assert len(np.unique(context_idx)) == masks.num_context
        assert (np.diff(context_idx) > 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ratio_is_met(strategy):
    masks = generator(strategy)
    assert abs(masks.num_target / masks.grid.num_patches - 0.6) < 1 / 64  # one column of 8 x 8


def test_counts_at_the_size_of_the_reports():
    grid = PatchGrid(image_size=(64, 384, 384), patch_size=(4, 16, 16))
    counts = {s: MaskGenerator(grid, MaskSettings(strategy=s)) for s in STRATEGIES}
    assert (counts["random"].num_target, counts["random"].num_context) == (5530, 3686)
    assert (counts["tube"].num_target, counts["tube"].num_context) == (5536, 3680)
    assert counts["multiblock"].num_target == 5530
    assert counts["multiblock"].num_context == 9216 - 5530 + 1 - 16 * 90  # the largest block: 90 of 576 columns


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_position_is_favoured(strategy):
    """Each patch is a target, and each a context token, equally often: all counts within 5 standard deviations."""
    masks, num_draws = generator(strategy), 4000
    for expected_share, pick in (
        (masks.num_target / masks.grid.num_patches, 2),
        (masks.num_context / masks.grid.num_patches, 1),
    ):
        counts = np.zeros(masks.grid.num_patches)
        for number in range(num_draws):
            counts[draw(masks, number)[pick]] += 1
        deviation = np.sqrt(num_draws * expected_share * (1 - expected_share))
        largest = np.abs(counts - num_draws * expected_share).max() / deviation
        assert largest < 5, f"{largest:.1f} standard deviations"  # chance of 5 among 256 patches: 1.5e-4


def test_the_bias_test_would_notice_lists_cut_from_the_front():
    """What the peers do: keep the first of the sorted context tokens. The last B-scan starves."""
    masks, counts = generator("random"), np.zeros(256)
    for number in range(500):
        counts[draw(masks, number).context_idx[:80]] += 1
    assert counts[-64:].sum() < 0.5 * counts[:64].sum()


def test_tubes_and_blocks_hide_whole_columns():
    mask = draw(generator("tube"), 3).mask.reshape(4, 64)
    assert (mask == mask[0]).all()
    block = draw(generator("multiblock"), 3)
    seen_anywhere = np.zeros(64, bool)
    seen_anywhere[block.context_idx % 64] = True
    hidden_anywhere = block.mask.reshape(4, 64).any(axis=0)
    assert not (seen_anywhere & hidden_anywhere).any(), "a column is hidden in one B-scan and shown in another"


def test_blocks_leave_fewer_hidden_patches_beside_visible_ones():
    def share_beside_visible(strategy):
        grid = PatchGrid(image_size=(16, 192, 192), patch_size=(4, 8, 8))
        masks, shares = MaskGenerator(grid, MaskSettings(strategy=strategy)), []
        for number in range(20):
            hidden = draw(masks, number).mask.reshape(grid.grid)
            padded = np.pad(hidden, 1, constant_values=True)
            near = np.zeros_like(hidden)
            for axis in range(3):
                for shift in (-1, 1):
                    near |= ~np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
            shares.append((near & hidden).sum() / hidden.sum())
        return np.mean(shares)

    assert share_beside_visible("random") > 0.9  # jepa notes: 94 %
    assert share_beside_visible("multiblock") < 0.45


def test_a_mask_is_a_function_of_seed_epoch_index_and_purpose():
    masks = generator("multiblock")
    first = masks.draw(sample_rng(1, 2, 3, Purpose.MASK)).mask
    np.testing.assert_array_equal(first, masks.draw(sample_rng(1, 2, 3, Purpose.MASK)).mask)
    for other in ((0, 2, 3, Purpose.MASK), (1, 0, 3, Purpose.MASK), (1, 2, 0, Purpose.MASK), (1, 2, 3, Purpose.VIEWS)):
        assert (first != masks.draw(sample_rng(*other)).mask).any()


def test_wide_numbers_cannot_collide():
    with pytest.raises(ValueError, match=r"2\^32"):
        sample_rng(2**32 + 5, 0, 0, Purpose.MASK)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match=r"mask\.ratio"):
        MaskSettings(ratio=ratio)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_ratio_that_leaves_nothing_to_see_is_refused_with_the_numbers(strategy):
    with pytest.raises(ValueError, match=r"0\.999.*to see"):
        generator(strategy, ratio=0.999)
