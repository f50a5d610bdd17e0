"""Diffusion series: the tensor fit against known tensors, and gradients in every form that files have."""

from pathlib import Path

import numpy as np
import pytest

from data_setup.neuro.diffusion import Gradients, fractional_anisotropy, read_gradients, reduced
from data_setup.neuro.errors import NeuroFileError
from data_setup.neuro.nifti import open_nifti
from data_setup.neuro.volumes import VolumeSettings, check_volume, read_volume


def gradients(num: int = 30, b: float = 1000.0) -> Gradients:
    directions = np.random.default_rng(1).normal(size=(num, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Gradients(np.r_[0.0, np.full(num, b)], np.r_[np.zeros((1, 3)), directions])


def signal(eigenvalues, scheme: Gradients, seed: int = 2) -> np.ndarray:
    """S0 exp(-b g'Dg) for a tensor of these eigenvalues, um2/ms, turned at random; [1, 1, 1, N]."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    tensor = turn @ np.diag(eigenvalues) @ turn.T
    weighting = np.einsum("ni,ij,nj->n", scheme.directions, tensor, scheme.directions)
    return (800 * np.exp(-scheme.b_values / 1000 * weighting))[None, None, None]


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ((0.7, 0.7, 0.7), 0.0),
        ((1.0, 0.0, 0.0), 1.0),
        ((1.7, 0.3, 0.3), np.sqrt(1.5 * (0.93333**2 + 2 * 0.46667**2) / (1.7**2 + 2 * 0.3**2))),
    ],
)
def test_the_fit_finds_the_anisotropy_of_a_known_tensor(eigenvalues, expected: float) -> None:
    scheme = gradients()
    for seed in range(3):
        assert float(fractional_anisotropy(signal(eigenvalues, scheme, seed), scheme).item()) == pytest.approx(
            expected, abs=1e-4
        )


def test_strong_weighting_is_left_out_and_darkness_is_0() -> None:
    scheme = gradients()
    strong = Gradients(np.r_[scheme.b_values, 5000.0], np.r_[scheme.directions, [[1.0, 0, 0]]])
    series = np.concatenate([signal((1.7, 0.3, 0.3), scheme), np.full((1, 1, 1, 1), 1e5)], axis=-1)
    series = np.concatenate([series, np.zeros_like(series)])
    found = fractional_anisotropy(series, strong)
    assert found[0].item() == pytest.approx(fractional_anisotropy(signal((1.7, 0.3, 0.3), scheme), scheme).item())
    assert found[1].item() == 0


def test_too_few_directions_are_refused() -> None:
    scheme = gradients(5)
    with pytest.raises(NeuroFileError, match=r"bad_gradients.*5 directions"):
        fractional_anisotropy(signal((1.7, 0.3, 0.3), scheme), scheme)


@pytest.fixture
def series(write_nifti) -> Path:
    """Two volumes without weighting (10 and 20), 7 with (100), and gradients as rows."""
    path = write_nifti(np.stack([np.full((4, 4, 4), v) for v in (10.0, 20.0, *[100.0] * 7)], -1), "d.nii.gz")
    scheme = gradients(7)
    np.savetxt(path.with_name("d.bval"), np.r_[5, 0, scheme.b_values[1:]][None])
    np.savetxt(path.with_name("d.bvec"), np.r_[scheme.directions[:1], scheme.directions].T)
    return path


def test_bvecs_may_be_rows_or_columns_and_of_any_length_but_0(series: Path) -> None:
    rows = read_gradients(series, 9)
    np.savetxt(series.with_name("d.bvec"), 1.02 * np.loadtxt(series.with_name("d.bvec")).T)
    columns = read_gradients(series, 9)
    np.testing.assert_allclose(rows.directions, columns.directions, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(columns.directions, axis=1), [0, 0, *[1] * 7])


def test_mean_b0_takes_what_is_hardly_weighted(series: Path) -> None:
    np.testing.assert_allclose(reduced(open_nifti(series), series, "mean_b0"), 15)
    np.testing.assert_allclose(reduced(open_nifti(series), series, "first"), 10)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("d.bval", None, "no_gradients"),
        ("d.bvec", None, "no_gradients"),
        ("d.bval", "0 1000", "bad_gradients"),
        ("d.bvec", "a b c", "bad_gradients"),
        ("d.bval", "5 0 nan 1 1 1 1 1 1", "bad_gradients"),
        ("d.bvec", "0 0 0\n" * 9, "bad_gradients"),
    ],
)
def test_gradients_that_do_not_fit_are_refused_before_training(series: Path, file, text, reason) -> None:
    settings = VolumeSettings(rule_4d="fa")
    check_volume(series, settings)
    target = series.with_name(file)
    target.unlink() if text is None else target.write_text(text)
    with pytest.raises(NeuroFileError, match=reason):
        check_volume(series, settings)


def test_without_b0_there_is_no_mean(series: Path) -> None:
    np.savetxt(series.with_name("d.bval"), np.full((1, 9), 1000.0))
    np.savetxt(series.with_name("d.bvec"), np.tile([[1.0, 0, 0]], (9, 1)))
    with pytest.raises(NeuroFileError, match="no b0 volume"):
        read_volume(series, VolumeSettings(rule_4d="mean_b0"))


def test_real_white_matter_is_anisotropic_and_real_tables_are_read_in_both_forms(test_data: Path) -> None:
    rows, columns = test_data / "mri" / "small_101D.nii.gz", test_data / "mri" / "small_64D.nii"
    for path, num_volumes in ((rows, 102), (columns, 65)):
        scheme = read_gradients(path, num_volumes)
        lengths = np.linalg.norm(scheme.directions, axis=1)
        np.testing.assert_allclose(lengths, scheme.b_values > 50, atol=1e-9)  # the first bvec of 64D is nan nan nan
    found = fractional_anisotropy(open_nifti(columns).voxels(), scheme)
    assert found.min() >= 0
    assert found.max() <= 1
    assert 0.1 < np.median(found) < 0.6
    weighted = scheme.directions[1:]
    shuffled = np.r_[scheme.directions[:1], weighted[np.random.default_rng(0).permutation(len(weighted))]]
    wrong = fractional_anisotropy(open_nifti(columns).voxels(), Gradients(scheme.b_values, shuffled))
    assert np.median(wrong) < 0.7 * np.median(found), "directions that belong to other volumes see no fibres"


def test_anisotropy_is_the_same_with_axes_and_directions_permuted_together() -> None:
    scheme = gradients()
    series = np.concatenate([signal((1.7, 0.3, 0.3), scheme, s) for s in range(4)], axis=1)
    order = [2, 0, 1]
    turned = fractional_anisotropy(
        series.transpose(*order, 3), Gradients(scheme.b_values, scheme.directions[:, order] * [1, -1, 1])
    )
    # Signals belong to stored axes: turning only the directions leaves eigenvalues alone.
    np.testing.assert_allclose(turned, fractional_anisotropy(series, scheme).transpose(order), atol=1e-6)
