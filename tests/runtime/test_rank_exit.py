import contextlib
import os
import threading
import time

import crew
import pytest

from oct_foundation.runtime.rank_exit import PATIENCE_S, RankExit


@pytest.fixture
def served(tmp_path):
    crews = []

    def serve(duty, *arguments) -> crew.Crew:
        crews.append(crew.muster(tmp_path, 1, duty, *arguments))
        return crews[-1]

    yield serve
    for started in crews:
        started.end()


def leave_from_a_thread(exit: RankExit) -> None:
    exit.step = 12
    exit.on_leave.append(lambda record: print("told:", record.reason, end="", flush=False))
    threading.Thread(target=exit.now, args=(74, "the bucket is gone")).start()
    time.sleep(60)


def test_a_rank_leaves_from_any_thread_with_its_code_a_record_and_a_line(served):
    rank = served(leave_from_a_thread)
    assert rank.codes() == [74]
    record = rank.records()[0]
    assert (record.code, record.reason, record.step, record.cause) == (74, "the bucket is gone", 12, True)
    assert record.pid == rank.processes[0].pid
    assert rank.stderr() == "rank 0 leaves with code 74: the bucket is gone\n"


def test_what_was_printed_arrives_though_the_process_ends_at_once(served):
    rank = served(leave_from_a_thread)
    assert rank.codes() == [74]
    assert (rank.folder / "stdout-0").read_text() == "told: the bucket is gone"


def leave_without_a_place_to_write(exit: RankExit) -> None:
    exit.folder = exit.folder.parent / "stderr-0"  # a file: no record can be written below it
    exit.now(1, "the loss is not finite")


def test_a_record_that_cannot_be_written_keeps_no_rank(served):
    rank = served(leave_without_a_place_to_write)
    assert rank.codes() == [1]
    assert "on the way out, the exit record: " in rank.stderr()
    assert "rank 0 leaves with code 1: the loss is not finite" in rank.stderr()


def leave_among_bad_neighbours(exit: RankExit) -> None:
    def raise_an_error(record):
        raise ConnectionError("nobody listens")

    def hang(record):
        time.sleep(60)

    exit.on_leave += [raise_an_error, hang, lambda record: (exit.folder / "told").touch()]
    exit.now(1, "the loss is not finite")


def test_a_neighbour_that_fails_or_hangs_keeps_neither_the_rank_nor_the_news_from_the_next(served):
    rank = served(leave_among_bad_neighbours)
    assert rank.codes(limit_s=PATIENCE_S + 40) == [1]
    assert "raise_an_error: ConnectionError: nobody listens" in rank.stderr()
    assert (rank.folder / "exits" / "told").exists()


def leave_twice(exit: RankExit) -> None:
    leaving = threading.Event()

    def linger(record):
        leaving.set()
        time.sleep(0.5)

    exit.on_leave.append(linger)
    threading.Thread(target=exit.now, args=(71, "the first reason")).start()
    leaving.wait()
    exit.now(1, "the second reason")


def test_of_two_threads_that_leave_the_first_one_says_why(served):
    rank = served(leave_twice)
    assert rank.codes() == [71]
    assert rank.records()[0].reason == "the first reason"
    assert "second" not in rank.stderr()


def leave_with_a_deaf_terminal(exit: RankExit) -> None:
    """The pipe of the log is full and nobody reads it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    os.dup2(writer, 2)
    exit.now(74, f"the bucket is gone (pipe {reader})")


def test_a_log_that_nobody_reads_keeps_no_rank(served):
    rank = served(leave_with_a_deaf_terminal)
    assert rank.codes(limit_s=3 * PATIENCE_S + 40) == [74]
    assert rank.records()[0].reason.startswith("the bucket is gone")
