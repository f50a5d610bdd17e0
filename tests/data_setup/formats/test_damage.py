"""Cut and mutated files: the answer is a volume or a BadFile, soon, silently, and without a word of the file's own."""

import gzip
import logging
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_setup.errors import BadFile
from data_setup.formats.converter import read_e2e, read_topcon
from data_setup.formats.heyex import read_heyex_vol, read_heyex_xml
from data_setup.formats.nifti import read_nifti
from data_setup.volume import ReadOptions
from tests.data_setup.formats.conftest import (
    e2e_file,
    e2e_patient,
    e2e_volume,
    topcon_facts,
    topcon_file,
    topcon_jpegs,
    topcon_raw,
)

NUM_CUTS, NUM_MUTANTS = 60, 200
TIME_S = 20.0  # for 260 files of 2 to 120 kB; 0.2 to 2 s on a quiet core
OPTIONS = ReadOptions(include_nonvolumetric=True, max_bytes=1 << 22)
TOLD = re.compile("Doe|John|Study-01|P-7|ID-9|mutant")


def judge(read: Callable, path: Path, data: bytes) -> str:
    """The reason code, or `accepted`; any other exception fails the test that calls it."""
    path.write_bytes(data)
    try:
        found = read(path, OPTIONS)
    except BadFile as bad:
        return "identity told" if TOLD.search(f"{bad} {bad.detail}") else bad.reason
    for volume, _ in found:
        assert volume.voxels.ndim == 3
        assert volume.voxels.dtype in (np.uint8, np.uint16)
        assert all(spacing is None or 0 < spacing < 1e6 for spacing in volume.spacing_mm)
    return "accepted"


def fuzz(
    read: Callable,
    path: Path,
    data: bytes,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
    header_bytes: int | None = None,
    only: bytes = bytes(range(256)),
    new: bytes = bytes(range(256)) + 100 * b"\0\1\x7f\xff",
) -> Counter[str]:
    """Reasons of mutants: 1 to 8 bytes, of those in `only`, become `new` ones; half of the mutants suffer in the first
    `header_bytes`. Cut copies are judged too.
    """
    caplog.set_level(logging.DEBUG)
    rng = np.random.default_rng(0)
    started = time.monotonic()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert judge(read, path, data) == "accepted"
        cuts = Counter(judge(read, path, data[:cut]) for cut in rng.integers(0, len(data) - 12, NUM_CUTS))
        mutants: Counter[str] = Counter()
        for number in range(NUM_MUTANTS):
            mutant = np.frombuffer(data, np.uint8).copy()
            end = len(data) if number % 2 else header_bytes or len(data)
            places = np.flatnonzero(np.isin(mutant[:end], np.frombuffer(only, np.uint8)))
            where = rng.choice(places, rng.integers(1, 9))
            mutant[where] = rng.choice(np.frombuffer(new, np.uint8), len(where))
            mutants[judge(read, path, mutant.tobytes())] += 1
    assert time.monotonic() - started < TIME_S
    assert [str(warning.message) for warning in heard] == []
    assert "".join([*capfd.readouterr(), caplog.text]) == ""
    assert "identity told" not in cuts + mutants
    assert "accepted" not in cuts
    assert len(mutants) >= 3  # they reach several checks
    return mutants


@pytest.fixture
def run(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> Callable:
    def run(read: Callable, data: bytes, *more: Any) -> Counter[str]:
        return fuzz(read, tmp_path / "mutant", data, caplog, capfd, *more)

    return run


def test_vol(test_data: Path, run: Callable) -> None:
    run(read_heyex_vol, (test_data / "oct" / "eyepy_tiny_10x40x50.vol").read_bytes(), 200)


def test_xml(test_data: Path, tmp_path: Path, run: Callable) -> None:
    folder = test_data / "oct" / "eyepy_heyex_xml_tiny" / "test_volume"
    for image in folder.glob("*.tif"):
        shutil.copyfile(image, tmp_path / image.name)
    run(read_heyex_xml, (folder / "test_dummy.xml").read_bytes(), 9000, b"0123456789.RB", b"0019-.eL")


def test_images_beside_the_xml(test_data: Path, tmp_path: Path, run: Callable) -> None:
    folder = test_data / "oct" / "eyepy_heyex_xml_tiny" / "test_volume"
    for path in folder.iterdir():
        shutil.copyfile(path, tmp_path / path.name)

    def read(mutant: Path, options: ReadOptions) -> list:
        shutil.copyfile(mutant, tmp_path / "B3.tif")
        return read_heyex_xml(tmp_path / "test_dummy.xml", options)

    data = (folder / "B3.tif").read_bytes()
    run(read, data, 300)


@pytest.mark.parametrize("packed", [False, True])
def test_nifti(test_data: Path, run: Callable, packed: bool) -> None:
    data = (test_data / "mri" / "anatomical.nii").read_bytes()
    pytest.importorskip("nibabel")
    run(read_nifti, gzip.compress(data, mtime=0) if packed else data, 60 if packed else 352)


def test_e2e(run: Callable) -> None:
    stored = np.random.default_rng(0).integers(23 << 10, 63 << 10, (5, 12, 16), dtype=np.uint16)
    chunks = [(9, (1, 0, 0), -1, e2e_patient("Doe", "ID-9"), 0), *e2e_volume(stored, (1, 2, 3), b"R")]
    run(read_e2e, e2e_file(chunks), 800)


def test_topcon(bscans: np.ndarray, run: Callable) -> None:
    run(read_topcon, topcon_file([topcon_jpegs(bscans), *topcon_facts()]), 200)
    run(read_topcon, topcon_file([topcon_raw(bscans, b"@IMG_SCAN_03"), *topcon_facts()]), 60)
