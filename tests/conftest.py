"""For all tests: what hypothesis does, the order of files, and where real scans are found."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

PROJECT = Path(__file__).resolve().parents[1]

# A busy machine is no failure (the default allows an example 0.2 s), and a commit gets the same examples each time.
settings.register_profile("octfm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octfm")


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
