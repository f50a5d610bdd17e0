"""What becomes of whatever a library raises."""

import pytest

from data_setup.errors import BadFile, Reason
from data_setup.formats.found import library


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (MemoryError(), Reason.TOO_LARGE),
        (KeyError("John Doe"), Reason.DECODE_FAILED),
        (OSError("/a/path"), Reason.DECODE_FAILED),
        (BadFile(Reason.COLOUR_IMAGE, "red"), Reason.COLOUR_IMAGE),
    ],
)
def test_every_error_becomes_a_bad_file_without_its_text(raised: Exception, reason: Reason) -> None:
    with pytest.raises(BadFile) as caught, library("a library"):
        raise raised
    assert caught.value.reason is reason
    assert not {"Doe", "path"} & set(f"{caught.value} {caught.value.detail}".replace("/", " ").split())


def test_an_absent_library_is_no_fault_of_the_file() -> None:
    with pytest.raises(ImportError), library("a library"):
        raise ImportError
