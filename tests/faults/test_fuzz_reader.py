"""The reader answers damaged files with a volume or a reason; and the fuzzer would notice if it did not."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from data_setup.dicom import read_volume
from data_setup.dicom.header import COMPRESSED_SYNTAXES, NATIVE_SYNTAXES
from data_setup.errors import BadFile, Reason
from data_setup.volume import Volume
from tests.faults import fuzz_reader
from tests.faults.fuzz_reader import EDGE, KINDS, Batch, Run, Verdict, fuzz, mutant, outcome_of, write_seeds

_PLANTED_ABORT, _PLANTED_HANG, _PLANTED_ERROR = 203, 205, 7


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """400 mutants of the scans that the fuzzer writes itself."""
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return Batch(folder, None, 3, 0, 400)


def test_there_is_a_seed_that_is_accepted_for_every_syntax_but_htj2k(batch: Batch) -> None:
    paths = sorted(batch.folder.glob("*.seed"))
    for path in paths:
        assert outcome_of(lambda path=path: read_volume(path)) == "accepted", path.name
    found = {dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths}
    wanted = {
        syntax for syntax in NATIVE_SYNTAXES | COMPRESSED_SYNTAXES if not syntax.name.startswith("High-Throughput")
    }
    assert found == wanted | {"1.2.840.10008.1.2.1.99"}  # deflated


def test_seeds_are_written_alike_each_time(batch: Batch, tmp_path: Path) -> None:
    write_seeds(tmp_path)
    again = {path.name: path.read_bytes() for path in tmp_path.glob("*.seed")}
    assert again == {path.name: path.read_bytes() for path in batch.folder.glob("*.seed")}


def test_a_number_makes_the_same_mutant_again_and_all_kinds_occur(batch: Batch) -> None:
    made = [mutant(batch, number) for number in range(batch.count)]
    fuzz_reader.seeds.cache_clear()
    assert [mutant(batch, number) for number in range(batch.count)] == made
    assert {one.kind for one in made} == set(KINDS)
    whole = {path.name: path.read_bytes() for path in batch.folder.glob("*.seed")}
    for kind in KINDS:
        changed = [one.content != whole[one.source] for one in made if one.kind == kind]
        assert np.mean(changed) > 0.6, kind  # zeroes over zeroes, the same syntax: a few stay as they were


def volume(**changed: object) -> Volume:
    """A sound volume [2, 3, 4], but for what is changed."""
    sound = {
        "voxels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "bits_stored": 8,
        "spacing_mm": (0.1, None, 0.01),
        "laterality": "R",
        "vendor": None,
        "model": None,
        "protocol": None,
        "volumetric": None,
    }
    return Volume(**{**sound, **changed})  # type: ignore[arg-type]


def raising(error: BaseException) -> Volume:
    raise error


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def test_outcomes_tell_refusals_from_defects() -> None:
    assert outcome_of(volume) == "accepted"
    assert outcome_of(lambda: raising(BadFile(Reason.TOO_LARGE, "x"))) == "too_large"
    assert outcome_of(lambda: raising(StopIteration())) == "raised StopIteration"
    assert outcome_of(lambda: raising(Panic())) == "raised Panic"


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({"voxels": np.arange(12).reshape(3, 4)}, "unsound array"),
        ({"voxels": np.arange(24, dtype=">u2").reshape(2, 3, 4)}, "unsound array"),
        ({"voxels": np.arange(24, dtype=np.uint8).reshape(4, 3, 2).T}, "unsound memory order"),
        ({"voxels": np.zeros((2, 3, 4), np.uint8)}, "unsound content"),
        ({"bits_stored": 12}, "unsound bits"),
        ({"spacing_mm": (0.0, None, None)}, "unsound spacing"),
        ({"spacing_mm": (None, float("nan"), None)}, "unsound spacing"),
        ({"laterality": "B"}, "unsound laterality"),
        ({"volumetric": "YES"}, "unsound volumetric"),
    ],
)
def test_an_accepted_volume_must_be_sound(changed: dict[str, object], outcome: str) -> None:
    assert outcome_of(lambda: volume(**changed)) == outcome


def planted(batch: Batch) -> list[Verdict]:
    """A job with one defect, one death and one hang at known numbers; runs in the child."""
    verdicts = []
    for number in range(batch.first, batch.first + batch.count):
        if number == _PLANTED_ABORT:
            os.abort()
        if number == _PLANTED_HANG:
            time.sleep(60)
        outcome = "raised ValueError" if number == _PLANTED_ERROR else "accepted"
        verdicts.append(Verdict(number, "zero", "seed", outcome, 0.0))
    return verdicts


def test_defects_deaths_and_hangs_are_pinned_to_their_file_and_saved(tmp_path: Path) -> None:
    run = Run(count=210, seed=5, workers=1, edge=None, findings=tmp_path, slowest_s=0.5)
    tally = fuzz(run, planted)
    assert tally.outcomes == {"accepted": 207, "raised ValueError": 1, "died exit code -6": 1, "hangs": 1}
    assert sorted(int(name.split("-")[1]) for name in tally.defects) == [_PLANTED_ERROR, _PLANTED_HANG]
    assert [int(name.split("-")[1]) for name in tally.deaths] == [_PLANTED_ABORT]
    assert {path.name for path in tmp_path.iterdir()} == {*tally.defects, *tally.deaths}


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    arguments = f"--count 40 --seed 2 --edge {tmp_path / 'absent'} --findings {tmp_path} --json {figures}"
    code = fuzz_reader.main(arguments.split())
    found = json.loads(figures.read_text())
    assert code == (1 if found["defects"] else 0)
    assert sum(found["outcomes"].values()) == sum(found["kinds"].values()) == 40
    assert found["machine"]["cores"] == os.cpu_count()
    printed = capsys.readouterr().out
    assert "ABSENT" in printed
    assert f"{len(found['defects'])} defects" in printed


def fuzzed(count: int, seed: int, findings: Path) -> fuzz_reader.Tally:
    """A real run; its table is what pytest shows on failure."""
    tally = fuzz(Run(count, seed, 1, EDGE if EDGE.is_dir() else None, findings))
    print(fuzz_reader.table(tally))
    assert tally.outcomes.total() == count
    assert tally.outcomes["accepted"] > count // 20, "mutants that are all refused at once test little"
    assert len(set(tally.outcomes) & fuzz_reader.REASONS) >= 12, "too few checks were reached"
    return tally


def test_1500_damaged_files_give_a_volume_or_a_reason(tmp_path: Path) -> None:
    assert fuzzed(1500, 0, tmp_path).defects == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_50000_damaged_files_give_a_volume_or_a_reason(tmp_path: Path) -> None:
    assert fuzzed(50_000, 1, tmp_path).defects == {}
