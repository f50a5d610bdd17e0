"""The format of real and written files, by content first; what to install is said before work starts."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from data_setup.formats import sniff as sniff_module
from data_setup.formats.sniff import check_installed, sniff


def head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def test_real_files(test_data: Path) -> None:
    formats = {path.name: sniff(path, head(path)) for path in test_data.rglob("*") if path.is_file()}
    assert formats["eyepy_tiny_10x40x50.vol"] == "heyex_vol"
    assert formats["spectralis_circle_1x496x768.vol"] == "heyex_vol"
    assert formats["test_dummy.xml"] == "heyex_xml"
    for name, found in formats.items():
        if name.endswith((".nii", ".nii.gz")):
            assert found == "nifti", name
        elif not name.endswith((".vol", ".xml")):
            assert found is None, name


nifti_1 = b"\x5c\x01\0\0".ljust(344, b"\0") + b"n+1\0"


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("a", b"CMDb", "e2e"),
        ("a.sdb", b"E2EMultipleVolumeFile", "e2e"),
        ("a.fds", b"FOCTFDS", "topcon"),
        ("a.IMG", b"\x11\x22", "zeiss_img"),
        ("a.img", nifti_1, "nifti"),
        ("a.img", bytes(128) + b"DICM", None),
        ("a", nifti_1, "nifti"),
        ("a", gzip.compress(nifti_1, mtime=0), "nifti"),
        ("a", b"\x1c\x02\0\0n+2\0\r\n\x1a\n", "nifti"),
        ("a.nii.gz", b"broken", "nifti"),
        ("a", gzip.compress(b"text", mtime=0), None),
        ("a.gz", b"\x1f\x8bgarbage", None),
        ("a.xml", b'\xef\xbb\xbf<?xml version="1.0"?>\n<HEDX>', "heyex_xml"),
        ("a.xml", b"<html>", None),
        ("a.vol", b"", None),
        ("a.dcm", bytes(512), None),
    ],
)
def test_magic_outranks_names(name: str, start: bytes, expected: str | None) -> None:
    assert sniff(Path(name), start) == expected


def test_an_absent_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(["zeiss_img"])
    monkeypatch.setattr(sniff_module, "_LIBRARIES", {"nifti": "a_package_that_nobody_has", "e2e": "numpy"})
    check_installed(["e2e"])
    with pytest.raises(ValueError, match=r"for nifti.*a_package_that_nobody_has.*pip install 'octfm\[formats\]'"):
        check_installed(["e2e", "nifti"])


def test_readers_import_no_library_of_a_format_before_its_first_file() -> None:
    """They run in child processes whose address space is limited."""
    heavy = "{'torch', 'monai', 'nibabel', 'eyepy', 'oct_converter', 'cv2', 'scipy', 'pydicom'}"
    code = f"import sys; from data_setup.formats import heyex, nifti, topcon, zeiss; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
