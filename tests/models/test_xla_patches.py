import pytest
import torch
from torch.nn import functional as F

from oct_foundation.geometry import PatchGrid
from oct_foundation.models.attention import gather_tokens
from oct_foundation.models.xla_patches import cut_lateral_first, kernel_lateral_first


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("patch_size", [(4, 16, 16), (2, 8, 4)])
def test_cut_for_tpus_times_its_kernel_is_the_convolution(num_channels: int, patch_size: tuple[int, int, int]):
    torch.manual_seed(0)
    grid = PatchGrid(image_size=(8, 32, 48), patch_size=patch_size)
    volume = torch.randn(2, num_channels, *grid.image_size, dtype=torch.float64)
    kernel = torch.randn(5, num_channels, *patch_size, dtype=torch.float64, requires_grad=True)
    tokens = cut_lateral_first(volume, grid) @ kernel_lateral_first(kernel).T
    expected = F.conv3d(volume, kernel, stride=patch_size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-11)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((tokens * weights).sum(), kernel)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), kernel)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-10)


def test_uint8_stays_uint8():
    grid = PatchGrid(image_size=(4, 16, 32), patch_size=(4, 16, 16))
    volume = torch.arange(4 * 16 * 32).remainder(251).to(torch.uint8).view(1, 1, 4, 16, 32)
    patches = cut_lateral_first(volume, grid)
    assert patches.dtype == torch.uint8
    assert patches[0, 1, :64].tolist() == volume[0, 0, :, :, 16].flatten().tolist()  # the second patch's first column


def test_rows_are_taken_as_torch_gather_takes_elements():
    torch.manual_seed(0)
    tokens = torch.randn(3, 10, 4, dtype=torch.float64, requires_grad=True)
    idx = torch.stack([torch.randperm(10)[:6] for _ in range(3)])
    rows, expected = gather_tokens(tokens, idx), tokens.gather(1, idx.unsqueeze(-1).expand(-1, -1, 4))
    assert torch.equal(rows, expected)
    weights = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((taken * weights).sum(), tokens)[0] for taken in (rows, expected))
    assert torch.equal(found, wanted)
