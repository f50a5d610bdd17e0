"""A whole run over files with an invented identity: nothing that it writes names the person, the file or its folder."""

import re
import shutil
from pathlib import Path

from tests.integration.conftest import Train

FAKE_PHI = re.compile(rb"ZZTEST|DoNotLog|PHI-123|19000101|PHI-COMMENT|PRIVATE-PHI|surname|TEST-[A-Z0-9]")
SMALL = ("max_steps=3", "model.image_size=[4,32,32]", "data.val_fraction=0.4", "batch.global_batch_size=1")


def test_nothing_that_a_run_writes_names_a_person(test_data: Path, tmp_path: Path, train: Train) -> None:
    scans, edge = tmp_path / "surname", test_data / "edge" / "synthetic"
    scans.mkdir()
    for number, name in enumerate(
        ("fake_phi_burnedin_yes", "ok_reference_3x248x384", "monochrome1", "truncated_in_header")
    ):
        shutil.copy(edge / f"{name}.dcm", scans / f"surname-{number}.dcm")
    assert FAKE_PHI.search((scans / "surname-0.dcm").read_bytes())  # the file does hold what is searched for
    source = ("data.source=directory", f"data.root={scans}", f"data.cache_dir={tmp_path / 'cache'}")
    admitted = "data.allow_burned_in=true"
    run = train(tmp_path / "run", *source, *SMALL, admitted, "data.max_bad_fraction=0.5")
    assert run.summary["volumes"]["accepted"] == 3
    config = {"config.yaml", "state.pt", "manifest.json"}  # data.root is the user's own word, and a path
    for path in (*run.folder.rglob("*"), *(tmp_path / "cache").rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.name in config:
            content = content.replace(str(scans).encode(), b"")
        assert not FAKE_PHI.search(content), path.name
        assert not FAKE_PHI.search(path.name.encode())
    assert not FAKE_PHI.search(run.output.encode())


def test_a_file_that_admits_burned_in_text_is_refused_unless_asked_for(
    test_data: Path, tmp_path: Path, train: Train
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(test_data / "edge" / "synthetic" / "fake_phi_burnedin_yes.dcm", scans / "a.dcm")
    source = ("data.source=directory", f"data.root={scans}", f"data.cache_dir={tmp_path / 'cache'}")
    run = train(tmp_path / "run", *source, *SMALL, code=1)
    assert "burned_in_annotation" in run.output
    assert not FAKE_PHI.search(run.output.encode())
