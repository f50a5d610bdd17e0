"""Prepared stimulus features, one row a TR: the codec's codes and the text embeddings, from .npz files.

What is missing is an error that says how to make it. Nothing is ever made up in its place.
"""

import logging
import zipfile
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

MAKE_CODES = (
    "run EnCodec over the film's sound, cut its codes at the TRs and write numpy.savez(FILE, codes=C), "
    "C: integers [TRs, codebooks, codes per TR]"
)
MAKE_TEXT = (
    "embed what is said or described in each TR with a text model and write numpy.savez(FILE, embeddings=E), "
    "E: floats [TRs, text_dim]"
)


def read_audio_codes(path: Path, *, num_codes: int, tr: float) -> np.ndarray:
    """int64 [T, codebooks, codes_per_tr], from the array `codes`, as many books as the file truly has.

    A book that says one code all through is padding: 8 books out of a codec of 4, as at 3 kbps, would count as
    learnt. It is left out, with a warning. Raises ValueError for other shapes, types or codes, and where all is
    padding.
    """
    codes = _array(path, "codes", tr, MAKE_CODES)
    if codes.ndim != 3 or codes.dtype.kind not in "iu" or not codes.size:
        raise ValueError(f"{path.name}: codes is {codes.dtype} {list(codes.shape)}; to make it, {MAKE_CODES}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"{path.name}: codes are from {low} to {high}; data.num_codes={num_codes} allows 0 to {num_codes - 1}"
        )
    speaks = (codes != codes[:1, :, :1]).any(axis=(0, 2))
    if not speaks.any():
        raise ValueError(f"{path.name}: each of the {len(speaks)} codebooks says one code all through: {MAKE_CODES}")
    if not speaks.all():
        padding = np.flatnonzero(~speaks).tolist()
        log.warning("%s: codebooks %s say one code all through: padding, left out", path.name, padding)
    return codes[:, speaks].astype(np.int64)


def read_text_embeddings(path: Path, *, tr: float) -> np.ndarray:
    """float32 [T, text_dim], from the array `embeddings`; raises ValueError for other shapes, types or values."""
    text = _array(path, "embeddings", tr, MAKE_TEXT)
    if text.ndim != 2 or text.dtype.kind != "f" or not text.size:
        raise ValueError(f"{path.name}: embeddings is {text.dtype} {list(text.shape)}; to make it, {MAKE_TEXT}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf
        text = text.astype(np.float32)
    if not np.isfinite(text).all():
        bad = int(len(text) - np.isfinite(text).all(axis=1).sum())
        raise ValueError(f"{path.name}: {bad} of {len(text)} TRs hold NaN or infinite values; write 0 where no text is")
    return text


def _array(path: Path, name: str, tr: float, how: str) -> np.ndarray:
    """The array `name` of an .npz file; where the file states its `tr`, that must be ours. Raises ValueError.

    A pickle can run any code when it is loaded, so object arrays are refused.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds one array without a name, as numpy.save writes it")
        with file:
            arrays = {key: file[key] for key in (name, "tr") if key in file.files}
            found = ", ".join(file.files) or "nothing"
    except (zipfile.BadZipFile, OSError, EOFError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path.name} is no plain .npz file ({error}); to make it, {how}") from None
    if name not in arrays:
        raise ValueError(f"{path.name} holds {found}, not {name}; to make it, {how}")
    stated = float(arrays.get("tr", tr))
    if abs(stated - tr) > 1e-6:
        raise ValueError(f"{path.name} was made for a TR of {stated:g} s; data.tr is {tr:g}")
    return arrays[name]
