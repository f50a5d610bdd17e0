import numpy as np
import pytest

from data_setup.arrays import write_prepared
from data_setup.index import IndexRow, PreparedSet

ROWS = [IndexRow(id=f"v{n}", status="accepted", vendor="maker", split="train") for n in (1, 0)]
VOLUMES = [np.full((2, 4, 4), n, np.uint8) for n in (1, 0)]


def test_arrays_come_back_as_a_prepared_set(tmp_path):
    written = write_prepared(tmp_path, ROWS, VOLUMES)
    loaded = PreparedSet.load(tmp_path)
    assert loaded.rows == written.rows
    assert [row.id for row in loaded.rows] == ["v0", "v1"]
    for row in loaded.rows:
        assert np.array_equal(loaded.volume(row), np.full((2, 4, 4), int(row.id[1]), np.uint8))
        assert row.shape == (2, 4, 4)
    assert loaded.info["split"] == {"train": 2, "val": 0, "test": 0}
    assert loaded.info["vendors"] == {"maker": 2}


@pytest.mark.parametrize(
    ("rows", "volumes", "expected"),
    [
        (ROWS, VOLUMES[:1], "found 2 and 1"),
        ([], [], "at least one"),
        (ROWS, [VOLUMES[0], np.zeros((2, 4, 5), np.uint8)], r"v0 is uint8 \[2, 4, 5\]; uint8 \[2, 4, 4\] is wanted"),
        (ROWS, [VOLUMES[0], VOLUMES[1].astype(np.float32)], "v0 is float32"),
    ],
)
def test_what_does_not_fit_is_refused(rows, volumes, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        write_prepared(tmp_path, rows, volumes)
