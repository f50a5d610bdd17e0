"""Position tables of a grid with three different sides, against loops over tokens and channels."""

import math

import pytest
import torch

from oct_foundation.geometry import PatchGrid
from oct_foundation.models.positions import (
    RotaryPositions,
    SinCosPositions,
    rotary_tables,
    rotate,
    sincos_table,
)

GRID = (2, 3, 5)
COORDINATES = PatchGrid(image_size=GRID, patch_size=(1, 1, 1)).coordinates().tolist()


def sincos_by_loop(width):
    part = 2 * (width // 6)
    rows = []
    for coordinates in COORDINATES:
        row = []
        for position in coordinates:
            angles = [position / 10000 ** (i / (part // 2)) for i in range(part // 2)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row + [0.0] * (width - len(row)))
    return torch.tensor(rows)


def rotate_by_loop(vector, coordinates, layout):
    """One token and one head; pairs (2i, 2i+1), each member with the angle that the layout gives to it."""
    head_dim = len(vector)
    part = 2 * ((head_dim // 3) // 2)
    turned = list(vector)
    for axis, position in enumerate(coordinates):
        for channel in range(0, part, 2):
            even, odd = (axis * part + channel + member for member in (0, 1))
            for member, own, other, sign in ((0, even, odd, -1), (1, odd, even, 1)):
                i = channel // 2 if layout == "interleaved" else (channel + member) % (part // 2)
                angle = position / 10000 ** (i / (part // 2))
                turned[own] = vector[own] * math.cos(angle) + sign * vector[other] * math.sin(angle)
    return turned


@pytest.mark.parametrize("width", [6, 20, 96])
def test_sincos_table_equals_the_loop_on_a_grid_that_is_no_cube(width):
    torch.testing.assert_close(sincos_table(GRID, width), sincos_by_loop(width), rtol=0, atol=1e-6)


def test_no_two_tokens_share_a_sincos_row():
    assert len(sincos_table(GRID, 96).unique(dim=0)) == len(COORDINATES)


@pytest.mark.parametrize("layout", ["interleaved", "vjepa2"])
@pytest.mark.parametrize("head_dim", [12, 32, 64])
def test_rotation_equals_the_loop_on_a_grid_that_is_no_cube(layout, head_dim):
    channels = torch.randn(1, 30, 2, 3, head_dim, generator=torch.Generator().manual_seed(0))
    found = rotate(channels, RotaryPositions(GRID, head_dim, layout)(None, torch.float32))
    for token, coordinates in enumerate(COORDINATES):
        for part in range(2):
            expected = rotate_by_loop(channels[0, token, part, 1].tolist(), coordinates, layout)
            torch.testing.assert_close(found[0, token, part, 1], torch.tensor(expected), rtol=0, atol=1e-5)


def test_interleaved_is_a_rotation_and_vjepa2_is_not():
    channels = torch.randn(1, 30, 2, 1, 64, generator=torch.Generator().manual_seed(0))
    norms = channels.norm(dim=-1)
    stretch = {
        layout: (rotate(channels, RotaryPositions(GRID, 64, layout)(None, torch.float32)).norm(dim=-1) / norms - 1)
        .abs()
        .max()
        for layout in ("interleaved", "vjepa2")
    }
    assert stretch["interleaved"] < 1e-6
    assert stretch["vjepa2"] > 0.05


def test_interleaved_scores_depend_on_the_offset_only():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(64, generator=generator).expand(1, 30, 2, 1, 64) for _ in range(2))
    rotation = RotaryPositions(GRID, 64, "interleaved")(None, torch.float32)
    turned_query, turned_key = rotate(query, rotation)[0, :, 0, 0], rotate(key, rotation)[0, :, 0, 0]
    scores = turned_query @ turned_key.T
    # (d, h, w) -> (d, h + 1, w + 2), from two different places
    places = [
        (COORDINATES.index([0, 0, 0]), COORDINATES.index([0, 1, 2])),
        (COORDINATES.index([1, 1, 2]), COORDINATES.index([1, 2, 4])),
    ]
    torch.testing.assert_close(scores[places[0]], scores[places[1]], rtol=1e-5, atol=1e-5)
    assert (scores[0, 1] - scores[places[0]]).abs() > 1e-3


def test_each_volume_gets_the_rows_of_its_own_tokens():
    idx = torch.tensor([[3, 0, 29], [7, 7, 1]])
    table = sincos_table(GRID, 96)
    rows = SinCosPositions(GRID, 96)(idx)
    cos, sin = rotary_tables(GRID, 64, "interleaved")
    rotation = RotaryPositions(GRID, 64, "interleaved")(idx, torch.float32)
    for volume in range(2):
        for place in range(3):
            token = idx[volume, place]
            assert torch.equal(rows[volume, place], table[token])
            assert torch.equal(rotation.cos[volume, place, 0, 0], cos[token])
            assert torch.equal(rotation.sin[volume, place, 0, 0], sin[token])


def test_bfloat16_rounds_the_sines_and_not_the_angles():
    """At position 23 an angle in bfloat16 would be off by 0.03 rad; rounding the sine costs at most 2^-9."""
    exact = rotary_tables((24, 1, 1), 64, "interleaved")[1]
    rounded = RotaryPositions((24, 1, 1), 64, "interleaved")(None, torch.bfloat16).sin[0, :, 0, 0]
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() <= 2**-9


def test_tables_are_not_part_of_the_saved_state():
    assert not SinCosPositions(GRID, 96).state_dict()
    assert not RotaryPositions(GRID, 64, "vjepa2").state_dict()


@pytest.mark.parametrize("build", [lambda: sincos_table(GRID, 5), lambda: RotaryPositions(GRID, 4, "interleaved")])
def test_a_width_without_room_for_three_axes_is_refused(build):
    with pytest.raises(ValueError, match="too small for 3-D positions; at least 6"):
        build()


def test_an_odd_head_width_is_refused():
    with pytest.raises(ValueError, match="head width 9 must be even"):
        RotaryPositions(GRID, 9, "interleaved")
