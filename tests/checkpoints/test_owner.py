"""One attempt writes into a place: the dead and the silent are followed, the living are not disturbed, and who slept
through a takeover harms nothing.
"""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oct_foundation.checkpoints import owner as owner_module
from oct_foundation.checkpoints.gcs import GcsStore
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.location import GcsUri
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.owner import OWNER_KEY, OwnedElsewhere, Owner, Ownership, TakenOver
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.store import CheckpointStore, StoreError, Unavailable
from oct_foundation.checkpoints.writer import Writer
from tests.faults.gcs_emulator import GcsEmulator, gcs

__all__ = ["gcs"]

PROJECT = Path(__file__).resolve().parents[2]
HERE = Writer.this_process()
AWAY = replace(HERE, host="other-host", kernel="another kernel")
DEAD = replace(HERE, started=HERE.started - 1)  # our pid, when it was somebody else's
RENEW_S, PATIENCE_S = 0.1, 0.2
# Of a start that must not need its patience: a busy machine may be slow, but this is longer.
LONG_S = 60.0

pytestmark = pytest.mark.skipif(
    not HERE.kernel, reason="NO /proc, no owner can be known to be dead: owners were NOT tested"
)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the patience is."""
    monkeypatch.setattr(owner_module, "_LONGEST_POLL_S", 0.05)


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    if request.param == "local":
        return LocalStore(tmp_path / "run")
    emulator: GcsEmulator = request.getfixturevalue("gcs")
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    emulator.proxy.inject()
    bucket = emulator.create_bucket(f"owner-{secrets.token_hex(6)}")
    return GcsStore(GcsUri(bucket=bucket, prefix="run"), deadline_s=60)


@pytest.fixture
def own(store: CheckpointStore) -> Iterator[Callable[..., Ownership]]:
    """Makes Ownerships; ends their threads."""
    made: list[Ownership] = []

    def make(
        attempt: str, writer: Writer = HERE, place: CheckpointStore = store, patience_s: float = PATIENCE_S
    ) -> Ownership:
        made.append(Ownership(place, attempt, renew_s=RENEW_S, patience_s=patience_s, writer=writer))
        return made[-1]

    yield make
    for ownership in made:
        ownership.release()


def claims(store: CheckpointStore) -> list[str]:
    return [info.key for info in store.list(f"{OWNER_KEY}/")]


def claim_of(store: CheckpointStore) -> bytes:
    """The file of the owner; no other is left."""
    [key] = claims(store)
    return store.get_bytes(key)


def writer_of(child: subprocess.Popen[bytes]) -> Writer:
    started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return replace(HERE, pid=child.pid, started=started)


def owner_of(store: CheckpointStore) -> Owner:
    found = Owner.from_bytes(claim_of(store))
    assert found is not None
    return found


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


# --- claiming


def test_a_free_place_is_taken_and_says_by_whom(store, own):
    own("a").claim()
    owner = owner_of(store)
    assert (owner.attempt, owner.writer) == ("a", HERE)
    assert (owner.writer.pid, owner.writer.host) == (os.getpid(), os.uname().nodename)


def test_a_place_that_was_released_is_free_at_once(store, own):
    first = own("a", AWAY)
    first.claim()
    first.release()
    started = time.monotonic()
    own("b", patience_s=LONG_S).claim()
    assert time.monotonic() - started < LONG_S
    assert owner_of(store).attempt == "b"


def test_a_sleeper_that_wakes_after_its_successor_has_ended_in_good_order_ends_too(own):
    sleeper, newer = own("a", DEAD), own("b")
    sleeper.claim()
    newer.claim()
    newer.release()
    with pytest.raises(TakenOver, match="attempt b"):
        sleeper.check()


def test_a_dead_owner_of_this_host_is_followed_at_once(store, own, caplog):
    own("a", DEAD).claim()
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        own("b", patience_s=LONG_S).claim()
    assert time.monotonic() - started < LONG_S
    assert owner_of(store).attempt == "b"
    assert "which has ended: taking over" in caplog.text


def test_a_living_owner_of_this_host_is_refused_as_soon_as_it_renews_with_the_way_out(store, own):
    living = own("a")
    living.claim()
    living.start_renewing()
    started = time.monotonic()
    with pytest.raises(OwnedElsewhere) as refusal:
        own("b", patience_s=LONG_S).claim()
    assert time.monotonic() - started < LONG_S
    for part in (str(store), "attempt a", f"kill {os.getpid()}", os.uname().nodename, "another output_dir"):
        assert part in str(refusal.value)
    assert not living.lost
    assert owner_of(store).attempt == "a"


def test_an_owner_of_this_host_that_dies_while_it_is_watched_is_followed_without_the_patience(tmp_path, caplog):
    """Stopped, it stands for one that was killed and hangs in the kernel: it is there, and silent."""
    store = LocalStore(tmp_path)
    dying = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        dying.send_signal(signal.SIGSTOP)
        Ownership(store, "a", writer=writer_of(dying)).claim()
        patient = Ownership(store, "b", renew_s=RENEW_S, patience_s=LONG_S)

        def kill_when_watched() -> None:
            wait_until(lambda: "watching for" in caplog.text, "it is watched")
            dying.kill()

        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            threading.Thread(target=kill_when_watched).start()
            patient.claim()
        assert time.monotonic() - started < LONG_S
    finally:
        dying.kill()
        dying.wait()
    assert owner_of(store).attempt == "b"
    messages = [record.getMessage() for record in caplog.records]
    assert ["watching for up to 60 s" in text for text in messages] == [True, False]
    assert "which has ended: taking over" in messages[1]


def test_an_owner_elsewhere_that_renews_is_refused(store, own):
    living = own("a", AWAY)
    living.claim()
    living.start_renewing()
    with pytest.raises(OwnedElsewhere, match="other-host: kill"):
        own("b", patience_s=LONG_S).claim()
    assert not living.lost
    assert owner_of(store).attempt == "a"


def test_a_silent_owner_elsewhere_is_followed_after_the_patience_which_is_said_before(store, own, caplog):
    own("a", AWAY).claim()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        own("b").claim()
    assert time.monotonic() - started > PATIENCE_S
    assert owner_of(store).attempt == "b"
    messages = [record.getMessage() for record in caplog.records]
    assert [("watching for up to 0.2 s" in text, "taking over" in text) for text in messages] == [
        (True, False),
        (False, True),
    ]


def test_an_owner_elsewhere_that_leaves_while_it_is_watched_frees_the_place(store, own):
    leaving = own("a", AWAY)
    leaving.claim()
    threading.Timer(0.2, leaving.release).start()
    own("b", patience_s=LONG_S).claim()
    assert owner_of(store).attempt == "b"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"attempt": "old format"}'])
def test_a_file_that_nobody_can_read_is_watched_like_a_silent_owner(store, own, content, caplog):
    store.replace(f"{OWNER_KEY}/00000007.json", content)
    with caplog.at_level(logging.WARNING):
        own("b").claim()
    assert "an attempt that cannot be read" in caplog.text
    assert owner_of(store).attempt == "b"


def test_of_starts_at_the_same_time_exactly_one_goes_on(store, own):
    outcomes: list[str] = []

    def claim(ownership: Ownership) -> None:
        try:
            ownership.claim()
            ownership.start_renewing()
            outcomes.append(ownership.attempt)
        except OwnedElsewhere:
            outcomes.append("refused")

    starts = [own(f"start{i}", replace(AWAY, kernel=f"kernel {i}"), patience_s=LONG_S) for i in range(6)]
    threads = [threading.Thread(target=claim, args=(ownership,)) for ownership in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[:5] == ["refused"] * 5
    assert owner_of(store).attempt in outcomes


def test_a_place_that_cannot_be_read_is_an_error_not_a_claim(own, gcs, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    absent = GcsStore(GcsUri(bucket="no-such-bucket-here", prefix=""), deadline_s=60)
    with pytest.raises(StoreError, match="no-such-bucket-here"):
        own("a", place=absent).claim()


def test_a_patience_of_less_than_two_renewals_is_refused(tmp_path):
    with pytest.raises(ValueError, match="renew_s is 40, patience_s 60"):
        Ownership(LocalStore(tmp_path), "a", renew_s=40)


# --- keeping


def test_a_renewal_changes_the_file_every_time(store, own):
    keeper = own("a")
    keeper.claim()
    keeper.start_renewing()
    seen = set()
    wait_until(lambda: seen.add(claim_of(store)) or len(seen) > 3, "four different texts")


def test_the_renewing_thread_finds_the_new_owner_and_leaves_its_file_alone(store, own, caplog):
    old = own("a")
    old.claim()
    new = Owner(attempt="b", writer=AWAY, sequence=1, renewed_utc="now").to_bytes()
    store.commit(f"{OWNER_KEY}/00000002.json", new)
    with caplog.at_level(logging.ERROR):
        old.start_renewing()
        wait_until(lambda: "was taken over by attempt b (process" in caplog.text, "the takeover is seen and said")
    assert old.lost
    with pytest.raises(TakenOver):
        old.check()
    old.release()
    assert store.get_bytes(max(claims(store))) == new


def test_a_renewal_that_was_under_way_during_a_takeover_changes_nothing(store, own):
    """The owner slept between its look and its write: the write comes after the takeover and hits its own file only."""
    old, new = own("a", AWAY), own("b")
    old.claim()
    [key] = claims(store)
    late = store.get_bytes(key)
    new.claim()
    before = claim_of(store)
    store.replace(key, late)
    new.check()
    with pytest.raises(TakenOver, match="by attempt b"):
        old.check()
    old.release()
    assert store.get_bytes(max(claims(store))) == before


def test_after_a_takeover_and_its_end_a_third_start_is_seen_too(store, own):
    old, new, third = own("a", AWAY), own("b"), own("c")
    old.claim()
    new.claim()
    new.release()
    third.claim()
    with pytest.raises(TakenOver, match="by attempt c"):
        old.check()
    third.check()


def test_a_file_that_somebody_removed_is_written_again(store, own):
    keeper = own("a")
    keeper.claim()
    [key] = claims(store)
    store.delete(key)
    keeper.check()
    keeper.start_renewing()
    wait_until(lambda: claims(store) == [key], "the file is back")


class Flaky(LocalStore):
    """A folder that does not answer while `down`."""

    down = False
    num_refused = 0

    def replace(self, key: str, data: bytes) -> None:
        if self.down:
            self.num_refused += 1
            raise Unavailable("out for lunch")
        super().replace(key, data)


def test_an_outage_is_one_line_and_the_renewals_go_on_after_it(tmp_path, caplog):
    store = Flaky(tmp_path)
    keeper = Ownership(store, "a", renew_s=0.02, patience_s=1.0)
    keeper.claim()
    with caplog.at_level(logging.WARNING):
        store.down = True
        keeper.start_renewing()
        wait_until(lambda: store.num_refused > 3, "four renewals failed")
        store.down = False
        before = owner_of(store).sequence
        wait_until(lambda: owner_of(store).sequence > before, "renewed again")
    keeper.release()
    assert caplog.text.count("is not renewed") == 1
    assert not keeper.lost


# --- the manager asks


def test_nothing_is_committed_and_nothing_pruned_after_a_takeover(store, own):
    old, new = own("a"), own("b", AWAY)
    old.claim()
    saver = CheckpointManager(store, CheckpointSettings(keep_last=1), "run", "a", ownership=old)
    saver.save(1, {"w": torch.ones(3)}, {}, {})
    new.claim()
    before = [info.key for info in store.list()]
    with pytest.raises(TakenOver):
        saver.save(2, {"w": torch.ones(3)}, {}, {})
    with pytest.raises(TakenOver):
        saver.prune()
    assert [info.key for info in store.list()] == before
    assert old.taken_over is not None


def test_a_sleeper_that_wakes_after_the_takeover_commits_nothing(tmp_path):
    """It slept between the data and the manifest of a save, the worst moment there is."""
    command = [sys.executable, str(PROJECT / "tests" / "checkpoints" / "sleeper.py"), str(tmp_path), "sleeper"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    sleeper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert os.WIFSTOPPED(os.waitpid(sleeper.pid, os.WUNTRACED)[1]), "it ended instead of falling asleep"
        store = LocalStore(tmp_path)
        new = Ownership(store, "new", renew_s=RENEW_S, patience_s=PATIENCE_S)
        started = time.monotonic()
        new.claim()  # on its own host, too, a process that is there but silent may be one that hangs for ever
        assert time.monotonic() - started > PATIENCE_S
        saver = CheckpointManager(store, CheckpointSettings(keep_last=2), "run", "new", ownership=new)
        saver.restore()
        saver.save(2, {"w": torch.full((10,), 200.0)}, {}, {})
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        sleeper.send_signal(signal.SIGCONT)
        out, _ = sleeper.communicate(timeout=60)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["saved", "1"],
        ["TakenOver", "2"],
        ["TakenOver", "3"],
        ["TakenOver", "prune"],
    ]
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    theirs = tmp_path / "step-00000002-sleeper" / "state.pt"  # data without manifest: its own to remove
    assert after == {path: data for path, data in before.items() if path != theirs}
    new.check()


# --- processes


def test_a_process_is_alive_until_it_is_reaped_or_a_zombie():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = writer_of(child)
    assert writer.is_alive()
    assert not replace(writer, started=writer.started + 1).is_alive()  # the pid is used again
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not writer.is_alive()  # a zombie
    child.wait()
    assert not writer.is_alive()
