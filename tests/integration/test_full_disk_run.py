"""A disk that another program fills up in mid-run: training goes on, and nothing that was durable is harmed."""

import re

import pytest

from oct_foundation.runtime.exits import ExitCode
from tests.checkpoints.small_disk import mounted

# The state of the smoke model takes some 100 MB; one save has room, and what is left then is taken.
DISK = "size=400m"
EVERY = 4
LONG = ("train.max_steps=200", "train.epochs=200", "train.val_every_steps=null", "train.log_every_steps=1")


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", DISK) as disk:
        monkeypatch.setenv("FILL", str(disk / "another-program"))
        yield disk


def test_a_disk_that_fills_up_ends_the_run_only_after_three_saves_have_failed(train, small_disk):
    filled_at = EVERY + 2
    run = train(small_disk / "run", *LONG, f"checkpoint.every_steps={EVERY}", "checkpoint.keep_last=2",
                fault=f"fill:{filled_at}", code=ExitCode.STORAGE)  # fmt: skip
    assert (small_disk / "another-program").stat().st_size > 0
    assert "Traceback" not in run.output
    assert "Error in sys.excepthook" not in run.output
    failed = [line for line in run.output.splitlines() if "of 3 failures in a row" in line]
    assert len(failed) == 3, run.output[-4000:]
    assert run.output.count("rows wait in memory") == 1
    assert run.state()["step"] == EVERY  # read back whole, checksums compared
    last_shown = max(int(number) for number in re.findall(r"^step +(\d+)/", run.output, re.MULTILINE))
    assert last_shown >= filled_at + 2 * EVERY, "training went on between the failures"
    on_file = list(run.curve("train/loss"))  # whole lines only, or it would not be read
    assert on_file == list(range(1, len(on_file) + 1))
    assert filled_at <= len(on_file) < last_shown, "those that still went into the last block of the file"


@pytest.mark.slow
def test_a_disk_that_gets_room_again_lacks_no_row_and_the_run_ends_well(train, small_disk, monkeypatch):
    monkeypatch.setenv("FREE_AFTER", "9")  # two saves later
    run = train(small_disk / "run", *LONG[1:], "train.max_steps=20", f"checkpoint.every_steps={EVERY}",
                "checkpoint.keep_last=1", fault=f"fill:{EVERY + 2}")  # fmt: skip
    assert "1 of 3 failures in a row" in run.output, "the disk was full when a save was due"
    assert run.output.count("rows wait in memory") == 1
    assert "can be written again" in run.output
    assert list(run.curve("train/loss")) == list(range(1, 21))
    assert run.state()["step"] == 20
