"""Nothing that names a person may leave the reader: not by errors, warnings, logs, nor by the volume itself."""

import logging
import re
import threading
import traceback
import warnings
from pathlib import Path

import pytest
from pydicom import dcmread

from data_setup.dicom import BadFile, read_volume
from data_setup.dicom.read import read_patient_id
from data_setup.prepare_file import patient_code

FAKE_PHI = re.compile("ZZTEST|DoNotLog|PHI-123|19000101|PHI-COMMENT|PRIVATE-PHI|Doe|John")


def test_no_error_of_any_file_holds_identity_path_or_uid(
    test_data: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for path in sorted(path for path in test_data.rglob("*") if path.is_file() and path.suffix != ".gz"):
            for any_sop_class in (False, True):
                try:
                    read_volume(path, any_sop_class=any_sop_class)
                except BadFile as bad:
                    texts.append("".join(traceback.format_exception(bad, chain=True)).split("BadFile", 1)[1])
                    assert path.stem not in texts[-1]
    assert heard == []
    # A thread that an earlier test has left behind may still talk, of 127.0.0.1 for example.
    ours = [record for record in caplog.records if record.thread == threading.get_ident()]
    told = "\n".join([*texts, *(record.getMessage() for record in ours), *capfd.readouterr()])
    assert len(texts) > 60
    assert not FAKE_PHI.search(told)
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", told)  # a UID
    assert str(test_data) not in told


def test_an_admitted_file_gives_no_identity_away(test_data: Path) -> None:
    path = test_data / "edge" / "synthetic" / "fake_phi_burnedin_yes.dcm"
    volume = read_volume(path, allow_burned_in=True)
    assert not FAKE_PHI.search(repr(volume))
    assert FAKE_PHI.search(repr(dcmread(path, stop_before_pixels=True)))  # the file does hold what is searched for


def test_patient_code_depends_on_the_key_and_the_patient_only(test_data: Path) -> None:
    def code_of(name: str, key: bytes = b"key") -> str | None:
        return patient_code(key, read_patient_id(test_data / name))

    phi = "edge/synthetic/fake_phi_burnedin_yes.dcm"
    code = code_of(phi)
    assert code is not None
    assert re.fullmatch("[0-9a-f]{16}", code)
    assert code == code_of(phi) != code_of(phi, b"other key")
    one, same = (f"oct/spectralis_onh_5x496x768_{syntax}.dcm" for syntax in ("rle", "jpegls"))
    one_id, same_id = (dcmread(test_data / name, stop_before_pixels=True).PatientID for name in (one, same))
    assert (code_of(one) == code_of(same)) == (one_id == same_id)
    assert code_of("edge/pydicom/empty_charset_LEI.dcm") is None
