"""Prepared codes and text: padding is not learnt, nothing is made up, no pickle is opened."""

from pathlib import Path

import numpy as np
import pytest

from data_setup.neuro.stimuli import read_audio_codes, read_text_embeddings


@pytest.fixture
def write(tmp_path: Path):
    """write(name, **arrays) -> path of an .npz file."""

    def save(name="a.npz", **arrays) -> Path:
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


def codes_of(books: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, (30, books, 7))


def test_as_many_codebooks_as_the_file_has(write) -> None:
    codes = codes_of(4)
    read = read_audio_codes(write(codes=codes.astype(np.int16), tr=1.5), num_codes=1024, tr=1.5)
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, codes)


def test_codebooks_of_padding_are_left_out_and_named(write, caplog) -> None:
    """A codec of 4 books padded with zeros to 8: half of what is 'learnt' would be 0."""
    padded = np.concatenate([codes_of(4), np.zeros((30, 4, 7), np.int64)], axis=1)
    read = read_audio_codes(write(codes=padded), num_codes=1024, tr=1.5)
    np.testing.assert_array_equal(read, padded[:, :4])
    assert "codebooks [4, 5, 6, 7]" in caplog.text
    with pytest.raises(ValueError, match="each of the 4 codebooks"):
        read_audio_codes(write(codes=padded[:, 4:]), num_codes=1024, tr=1.5)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"codes": codes_of(4) - 1}, "from -1 to"),
        ({"codes": codes_of(4) + 1024}, "allows 0 to 1023"),
        ({"codes": codes_of(4).astype(float)}, "float64"),
        ({"codes": codes_of(4)[0]}, r"\[4, 7\]"),
        ({"code": codes_of(4)}, "holds code, not codes"),
        ({"codes": codes_of(4), "tr": 2.0}, "TR of 2 s; data.tr is 1.5"),
    ],
)
def test_other_codes_are_refused(write, arrays, said) -> None:
    with pytest.raises(ValueError, match=said):
        read_audio_codes(write(**arrays), num_codes=1024, tr=1.5)


def test_text_keeps_its_values(write) -> None:
    text = np.random.default_rng(0).normal(size=(30, 5))
    read = read_text_embeddings(write(embeddings=text), tr=1.5)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, text, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"embeddings": np.ones((3, 4), int)}, "int64"),
        ({"embeddings": np.ones(4)}, r"\[4\]"),
        ({"embeddings": np.array([[1.0, np.nan], [1, 2], [np.inf, 1]])}, "2 of 3 TRs hold NaN"),
        ({}, "holds nothing"),
    ],
)
def test_other_text_is_refused(write, arrays, said) -> None:
    with pytest.raises(ValueError, match=said):
        read_text_embeddings(write(**arrays), tr=1.5)


def test_a_missing_or_broken_file_says_how_to_make_it_and_nothing_is_made_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text model and write numpy.savez"):
        read_text_embeddings(tmp_path / "none.npz", tr=1.5)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04cut")
    with pytest.raises(ValueError, match=r"run EnCodec over the film's sound"):
        read_audio_codes(tmp_path / "cut.npz", num_codes=9, tr=1.5)


class _Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_does_not_run(write, tmp_path: Path) -> None:
    path = write(embeddings=np.array([_Runs(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match=r"no plain \.npz"):
        read_text_embeddings(path, tr=1.5)
    assert not (tmp_path / "ran").exists()
