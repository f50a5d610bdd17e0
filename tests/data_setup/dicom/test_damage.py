"""Cut and mutated files: whatever the damage, the answer is a volume or a BadFile, and never another exception."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_setup.dicom import BadFile, Reason, read_volume

NUM_CUTS, NUM_MUTANTS = 300, 600
CUT_REASONS = {
    Reason.EMPTY_FILE,
    Reason.NOT_DICOM,
    Reason.HEADER_TRUNCATED,
    Reason.NO_PIXEL_DATA,
    Reason.PIXEL_DATA_TRUNCATED,
    Reason.UNSUPPORTED_SOP_CLASS,
}


def judge(path: Path, data: bytes) -> str:
    """The reason code, or `accepted`; any other exception fails the test that calls it."""
    path.write_bytes(data)
    try:
        read_volume(path, max_bytes=1 << 24)
    except BadFile as bad:
        return bad.reason
    return "accepted"


@pytest.mark.parametrize(
    "name", ["ok_reference_3x248x384.dcm", "encaps_header2_data3.dcm", "truncated_encapsulated_60pct.dcm"]
)
def test_no_cut_file_is_accepted(test_data: Path, tmp_path: Path, name: str) -> None:
    data = (test_data / "edge" / "synthetic" / name).read_bytes()
    positions = np.unique(np.geomspace(1, len(data) - 1, NUM_CUTS // 3).astype(int))
    header_cuts = np.random.default_rng(0).integers(132, 1800, NUM_CUTS * 2 // 3)
    counts = Counter(judge(tmp_path / "cut", data[:cut]) for cut in [*positions, *header_cuts])
    assert set(counts) <= CUT_REASONS
    assert counts[Reason.HEADER_TRUNCATED] > 10 * counts[Reason.NO_PIXEL_DATA]  # 2-7 % of positions cannot be told


def test_mutated_headers_raise_bad_file_only(write_opt: Callable[..., Path], tmp_path: Path) -> None:
    data = np.frombuffer(write_opt().read_bytes(), np.uint8)
    header_bytes = data.size - 4 * 16 * 24
    rng = np.random.default_rng(1)
    counts: Counter[str] = Counter()
    for _ in range(NUM_MUTANTS):
        mutant = data.copy()
        where = rng.integers(128, header_bytes, rng.integers(1, 4))
        mutant[where] = rng.integers(0, 256, len(where), dtype=np.uint8)
        counts[judge(tmp_path / "mutant", mutant.tobytes())] += 1
    assert counts["accepted"] > 0
    assert len(counts) >= 5  # the mutants reach several checks


def test_mutated_compressed_frames_raise_bad_file_only(test_data: Path, tmp_path: Path) -> None:
    """Flips in the items, markers and streams of JPEG-LS, which its decoder survives in this process."""
    data = np.frombuffer((test_data / "edge" / "synthetic" / "jpegls_frame1_bitflips.dcm").read_bytes(), np.uint8)
    start = data.tobytes().index(b"\xfe\xff\x00\xe0")
    rng = np.random.default_rng(2)
    counts: Counter[str] = Counter()
    for _ in range(60):
        mutant = data.copy()
        where = start + rng.integers(0, 120, 2)
        mutant[where] = rng.integers(0, 256, 2, dtype=np.uint8)
        counts[judge(tmp_path / "mutant", mutant.tobytes())] += 1
    assert "accepted" not in counts
    assert len(counts) >= 2
