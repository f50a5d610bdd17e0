import pytest

from oct_foundation.runtime.exits import ExitCode, ExitRecord, clear_exits, combined_code, read_exits


def write(folder, rank, code, *, cause=True, time=1.0, reason="because"):
    ExitRecord(rank=rank, code=code, reason=reason, cause=cause, time=time).write(folder)


def test_the_first_record_of_a_rank_stays(tmp_path):
    write(tmp_path / "exits", 3, 74, reason="the bucket is gone")
    write(tmp_path / "exits", 3, 1, reason="an error that followed")
    (record,) = read_exits(tmp_path / "exits")
    assert (record.rank, record.code, record.reason, record.step) == (3, 74, "the bucket is gone", None)
    assert [file.name for file in (tmp_path / "exits").iterdir()] == ["rank-0003.json"], "no temporary file is left"


def test_causes_come_before_consequences_whatever_the_clocks_say(tmp_path):
    write(tmp_path, 0, 71, cause=False, time=1.0)
    write(tmp_path, 1, 71, time=5.0)
    write(tmp_path, 2, 74, time=4.0)
    assert [record.rank for record in read_exits(tmp_path)] == [2, 1, 0]
    assert combined_code(read_exits(tmp_path)) == 74


def test_the_code_of_a_job_is_that_of_what_went_wrong(tmp_path):
    assert combined_code(read_exits(tmp_path)) is None, "nobody has written anything"
    write(tmp_path, 0, 0)
    assert combined_code(read_exits(tmp_path)) == 0
    write(tmp_path, 1, 75, time=2.0)
    assert combined_code(read_exits(tmp_path)) == 75


def test_a_new_start_clears_the_records_and_nothing_else(tmp_path):
    write(tmp_path, 0, 1)
    (tmp_path / "notes.txt").touch()
    clear_exits(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    clear_exits(tmp_path / "absent")


@pytest.mark.parametrize("code", list(ExitCode))
def test_only_what_may_end_otherwise_is_worth_a_restart(code):
    assert code.worth_a_restart == (code in {1, 71, 75, 76, 130})
