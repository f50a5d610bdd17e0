"""Cut and mutated files: a volume or a BadFile comes out, silently and without a word of the file's own. A library may
hang on one, which costs a task; nothing may escape.
"""

import gzip
import logging
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from data_setup.errors import BadFile
from data_setup.formats.heyex import read_e2e, read_heyex_vol, read_heyex_xml
from data_setup.formats.nifti import read_nifti
from data_setup.formats.topcon import read_topcon
from data_setup.isolate import IsolationLimits, run_isolated
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

NUM_CUTS, NUM_MUTANTS, FILES_PER_TASK = 30, 90, 20
LIMITS = IsolationLimits(timeout_s=20, memory_bytes=3 << 30)
OPTIONS = ReadOptions(include_nonvolumetric=True, max_bytes=1 << 22)
TOLD = re.compile("Doe|John|Study-01|P-7|ID-9|mutant")
ANY_BYTE = bytes(range(256))


class Task(NamedTuple):
    """Files to write one after another to `path`, each to be read by `read` from `scan`."""

    read: Callable
    path: Path
    scan: Path
    files: Sequence[bytes]


def judge(task: Task) -> list[str]:
    """The reason code, or `accepted`, of each file; anything else that a reader raises fails the task."""
    verdicts = []
    for data in task.files:
        task.path.write_bytes(data)
        try:
            found = task.read(task.scan, OPTIONS)
        except BadFile as bad:
            verdicts.append("identity told" if TOLD.search(f"{bad} {bad.detail}") else str(bad.reason))
            continue
        for volume, _ in found:
            assert volume.voxels.ndim == 3
            assert volume.voxels.dtype in (np.uint8, np.uint16)
            assert all(spacing is None or 0 < spacing < 1e6 for spacing in volume.spacing_mm)
        verdicts.append("accepted")
    return verdicts


def mutants(data: bytes, header_bytes: int, only: bytes, new: bytes) -> list[bytes]:
    """1 to 8 bytes, of those in `only`, become `new` ones; in half of the mutants in the first `header_bytes`."""
    rng = np.random.default_rng(0)
    changed = []
    for number in range(NUM_MUTANTS):
        mutant = np.frombuffer(data, np.uint8).copy()
        end = len(data) if number % 2 else header_bytes
        places = np.flatnonzero(np.isin(mutant[:end], np.frombuffer(only, np.uint8)))
        where = rng.choice(places, rng.integers(1, 9))
        mutant[where] = rng.choice(np.frombuffer(new, np.uint8), len(where))
        changed.append(mutant.tobytes())
    return changed


def run(
    read: Callable,
    path: Path,
    data: bytes,
    header_bytes: int,
    scan: Path | None = None,
    only: bytes = ANY_BYTE,
    new: bytes = ANY_BYTE + 100 * b"\0\1\x7f\xff",
) -> None:
    cuts = [data[:cut] for cut in np.random.default_rng(1).integers(0, len(data) - 12, NUM_CUTS)]
    files = [data, *cuts, *mutants(data, header_bytes, only, new)]
    tasks = [
        Task(read, path, scan or path, files[start : start + FILES_PER_TASK])
        for start in range(0, len(files), FILES_PER_TASK)
    ]
    outcomes = list(run_isolated(judge, tasks, 1, LIMITS))
    assert {outcome.failure for outcome in outcomes} <= {None, "timeout"}, [outcome.detail for outcome in outcomes]
    verdicts = [
        verdict
        for task, outcome in zip(tasks, outcomes, strict=True)
        for verdict in outcome.record or ["timeout"] * len(task.files)
    ]
    seen = Counter(verdicts)
    assert verdicts[0] == "accepted"
    assert "accepted" not in verdicts[1 : 1 + NUM_CUTS]
    assert "identity told" not in verdicts
    assert {"accepted"} < set(verdicts[1 + NUM_CUTS :]), seen  # some do no harm, some are met
    assert seen["timeout"] <= FILES_PER_TASK, seen


E2E = e2e_file(
    [
        (9, (1, 0, 0), -1, e2e_patient("Doe", "ID-9"), 0),
        *e2e_volume(
            np.random.default_rng(0).integers(23 << 10, 63 << 10, (5, 12, 16), dtype=np.uint16), (1, 2, 3), b"R"
        ),
    ]
)


def test_vol(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("eyepy", reason="EYEPY ABSENT (pip install 'octfm[formats]'): its formats were NOT tested")
    run(read_heyex_vol, tmp_path / "mutant", (test_data / "oct" / "eyepy_tiny_10x40x50.vol").read_bytes(), 200)


@pytest.fixture
def export(test_data: Path, tmp_path: Path) -> Path:
    pytest.importorskip("eyepy", reason="EYEPY ABSENT (pip install 'octfm[formats]'): its formats were NOT tested")
    for path in (test_data / "oct" / "eyepy_heyex_xml_tiny" / "test_volume").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path / "test_dummy.xml"


def test_xml(export: Path) -> None:
    run(
        read_heyex_xml,
        export.with_name("mutant.xml"),
        export.read_bytes(),
        9000,
        only=b"0123456789.RB",
        new=b"0019-.eL",
    )


def test_images_beside_the_xml(export: Path) -> None:
    image = export.with_name("B3.tif")
    run(read_heyex_xml, image, image.read_bytes(), 300, scan=export)


@pytest.mark.parametrize("packed", [False, True])
def test_nifti(test_data: Path, tmp_path: Path, packed: bool) -> None:
    data = (test_data / "mri" / "anatomical.nii").read_bytes()
    run(
        read_nifti,
        tmp_path / "mutant",
        gzip.compress(data, mtime=0) if packed else data,
        60 if packed else 352,
    )


def test_e2e(tmp_path: Path) -> None:
    pytest.importorskip("eyepy", reason="EYEPY ABSENT (pip install 'octfm[formats]'): its formats were NOT tested")
    run(read_e2e, tmp_path / "mutant", E2E, 800)


@pytest.mark.parametrize("pixels", [topcon_jpegs, topcon_raw])
def test_topcon(bscans: np.ndarray, tmp_path: Path, pixels: Callable) -> None:
    pytest.importorskip(
        "oct_converter", reason="OCT_CONVERTER ABSENT (pip install 'octfm[formats]'): its formats were NOT tested"
    )
    chunk = topcon_jpegs(bscans) if pixels is topcon_jpegs else topcon_raw(bscans, b"@IMG_SCAN_03")
    run(read_topcon, tmp_path / "mutant", topcon_file([chunk, *topcon_facts()]), 200)


def test_readers_are_silent(
    bscans: np.ndarray, export: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where eyepy logs and oct-converter prints."""
    pytest.importorskip(
        "oct_converter", reason="OCT_CONVERTER ABSENT (pip install 'octfm[formats]'): its formats were NOT tested"
    )
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "mutant"
    empty = topcon_file([topcon_jpegs(bscans)])  # without extents
    files = [(read_e2e, E2E), (read_e2e, E2E[:3000]), (read_topcon, empty), (read_topcon, empty[:-9])]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        verdicts = [judge(Task(read, path, path, [data])) for read, data in files]
        verdicts.append(judge(Task(read_heyex_xml, export, export, [export.read_bytes()])))
    assert [verdict == ["accepted"] for verdict in verdicts] == [True, False, True, False, True]
    assert [str(warning.message) for warning in heard] == []
    assert "".join([*capfd.readouterr(), caplog.text]) == ""
    assert logging.root.manager.disable == logging.NOTSET
