"""Which files of a folder count as inputs, and in which order."""

from pathlib import Path

import pytest

from data_setup.sources import DirectorySource, InputFile


def test_every_regular_file_counts_but_macos_shadows(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "b/1.vol", "a.json", "._a.json", "b/._2.dcm", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files = DirectorySource(tmp_path).files()
    assert [file.key for file in files] == [".hidden", "a.json", "b/1.vol", "b/2.dcm"]
    assert files[3] == InputFile("b/2.dcm", str(tmp_path / "b" / "2.dcm"))


def test_links_to_files_count_and_a_dangling_one_is_a_missing_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "elsewhere").touch()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "loop").symlink_to(root)
    assert [file.key for file in DirectorySource(root).files()] == ["dangling", "link"]


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_a_source_without_files_says_how_to_mend_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.root .* give the folder that holds the DICOM files"):
        DirectorySource(tmp_path / name).files()
