"""Where the tests find real scans: `OCTFM_TEST_DATA`, else `../shared/data` beside the checkout."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


# Their files take a minute and more each: begun last, they would leave one of two processes idle.
LONG_FIRST = ("integration", "faults", "fleet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files first that take long."""
    items.sort(key=lambda item: not any(folder in item.path.parts for folder in LONG_FIRST))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with real OCT and MRI and broken files; its users are skipped, loudly, where it is absent."""
    folder = Path(os.environ.get("OCTFM_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "oct").is_dir():
        pytest.skip(f"REAL DATA ABSENT: {folder} has no oct/; set OCTFM_TEST_DATA. These checks did NOT run.")
    return folder
