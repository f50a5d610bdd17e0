"""Rows 14 and 15: a second writer, a sleeper that wakes after it was replaced, and a reader beside a writer."""

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.context import ForkServerProcess as Process
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import torch

from oct_foundation.checkpoints.manager import CheckpointManager, new_attempt
from oct_foundation.checkpoints.manifest import QUARANTINE_FILE
from oct_foundation.checkpoints.owner import OwnedElsewhere, Ownership, TakenOver
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.checkpoints.writer import Writer
from tests.faults.matrix.children import fork_context
from tests.faults.matrix.oracle import SMALL, Watch, is_right, open_manager, save
from tests.faults.matrix.places import Place, enter, open_store
from tests.faults.matrix.record import Record

# As in a run, but for the times: there 20 and 60 s.
_RENEW_S, _PATIENCE_S = 0.3, 2.0
# Of a start that must not need it, however busy the machine is.
_LONG_PATIENCE_S = 10.0
_PATIENCE_WITH_CHILD_S = 60.0
_MOST_SAVES = 50  # times what is wanted


def own_and_save(address: str, variables: dict[str, str], host: str, patience_s: float, pipe: Connection) -> None:
    """A run that takes the place and saves without pause until it is told to stop; says what becomes of it.

    host: where it claims to run, "" for this machine: only on one machine can a start know that the owner is dead.
    """
    torch.set_num_threads(1)
    enter(variables)
    store, attempt = open_store(address), new_attempt()
    writer = Writer(host=host, kernel=host, pid=os.getpid(), started=0) if host else None
    ownership = Ownership(store, attempt, renew_s=_RENEW_S, patience_s=patience_s, writer=writer)
    try:
        ownership.claim()
    except OwnedElsewhere as refusal:
        pipe.send(("refused", str(refusal)))
        return
    ownership.start_renewing()
    wishes = CheckpointSettings(every_steps=1, keep_last=2, keep_best=0)
    manager = CheckpointManager(store, wishes, "run", attempt, ownership=ownership)
    found = manager.restore()
    step = 0 if found is None else found[1].step
    pipe.send(("owner", attempt))
    try:
        while not pipe.poll():
            step = save(manager, step + 1, SMALL)
            pipe.send(("saved", step))
        ownership.release()
        pipe.send(("stopped", step))
    except TakenOver as error:
        pipe.send(("taken over", str(error)))


class Child(NamedTuple):
    """A started run and the way to it."""

    process: Process
    pipe: Connection

    def hear(self, *words: str) -> tuple[str, Any]:
        """The next of these words with what belongs to it; others are passed over.

        ("dead", code) where it has ended without a word, ("goes on", what it said last) where none of these comes.
        """
        deadline, last = time.monotonic() + _PATIENCE_WITH_CHILD_S, None
        while True:
            if time.monotonic() > deadline or not self.pipe.poll(_PATIENCE_WITH_CHILD_S):
                return "goes on", last
            try:
                word, what = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                return "dead", self.process.exitcode
            if word in words:
                return word, what
            last = word, what

    def hear_saves(self, number: int) -> int:
        """Waits for so many saves; the step of the last one, 0 where it ends before."""
        step = 0
        for _ in range(number):
            word, what = self.hear("saved", "taken over", "stopped")
            if word != "saved":
                return 0
            step = what
        return step

    def end(self) -> None:
        """Kills it where it has not ended by itself."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def start_run(context: ForkServerContext, place: Place, host: str, patience_s: float = _LONG_PATIENCE_S) -> Child:
    """Starts a run that claims to be on `host` and follows an owner that is silent for `patience_s`."""
    ours, theirs = context.Pipe()
    arguments = (place.address, place.environment, host, patience_s, theirs)
    process = context.Process(target=own_and_save, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return Child(process, ours)


def run_two_writers(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` times: a second start is refused; the owner sleeps, is replaced, wakes and ends; one is killed."""
    context = fork_context()
    for _ in range(rounds):
        watch = Watch(place.fresh(), record)
        first = start_run(context, watch.place, "" if rng.random() < 0.5 else "first-host")
        children = [first]
        try:
            watch.acknowledge(first.hear_saves(3))
            for host in ("", "second-host"):
                second = start_run(context, watch.place, host)
                children.append(second)
                word, what = second.hear("refused", "owner")
                if record.require(word == "refused", f"a second run on {host or 'this host'} got: {word} {what}"):
                    record.fired["second writer refused"] += 1
            watch.acknowledge(first.hear_saves(2))
            time.sleep(rng.uniform(0.0, 2 * _RENEW_S))
            third = start_run_while_asleep(context, watch.place, first)
            children.append(third)
            if _is_replaced(watch, first, third):
                _kill_and_go_on(context, watch, third, children)
        finally:
            for child in children:
                child.end()
        watch.look()
        record.rounds += 1
    record.require_fired("second writer refused", 2 * rounds)
    record.require_fired("sleeper taken over", rounds)
    record.require_fired("killed owner replaced at once", rounds)


def start_run_while_asleep(context: ForkServerContext, place: Place, sleeper: Child) -> Child:
    """Stops the owner as SIGSTOP or a suspended machine does, and starts a run on another host."""
    assert sleeper.process.pid is not None
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    return start_run(context, place, "third-host", _PATIENCE_S)


def _is_replaced(watch: Watch, sleeper: Child, newer: Child) -> bool:
    """Lets the newer run take over and wakes the sleeper: True if that one ends and the newer one saves on."""
    record = watch.record
    word, what = newer.hear("owner", "refused")
    if not record.require(word == "owner", f"nobody may replace a sleeper: {word} {what}"):
        return False
    watch.acknowledge(newer.hear_saves(2))
    assert sleeper.process.pid is not None
    os.kill(sleeper.process.pid, signal.SIGCONT)
    word, what = sleeper.hear("taken over", "stopped")
    sleeper_ended = record.require(word == "taken over", f"the sleeper woke: {word} {what}")
    step = newer.hear_saves(5)
    watch.acknowledge(step)
    is_saving = record.require(step > 0, "the newer run was stopped by the sleeper")
    record.fired["sleeper taken over"] += sleeper_ended and is_saving
    return is_saving


def _kill_and_go_on(context: ForkServerContext, watch: Watch, owner: Child, children: list[Child]) -> None:
    """The owner stops in good order, the next one is killed: the start after it, on this host, need not wait."""
    owner.pipe.send("stop")
    word, what = owner.hear("stopped", "taken over")
    watch.record.require(word == "stopped", f"the newer run did not end in good order: {word} {what}")
    killed = start_run(context, watch.place, "")
    children.append(killed)
    watch.acknowledge(killed.hear_saves(2))
    killed.end()
    begun = time.monotonic()
    last = start_run(context, watch.place, "")
    children.append(last)
    word, what = last.hear("owner", "refused")
    seconds = time.monotonic() - begun
    if watch.record.require(
        word == "owner" and seconds < _LONG_PATIENCE_S,
        f"after a kill the next start: {word} in {seconds:.1f} s, {what}",
    ):
        watch.record.fired["killed owner replaced at once"] += 1


def save_many(address: str, variables: dict[str, str], number: int, enough: Event, last: Any) -> None:
    """A run that resumes, saves `number` times and on until it is `enough`, keeps one, and says its `last` step."""
    torch.set_num_threads(1)
    enter(variables)
    manager = open_manager(open_store(address), keep_last=1)
    found = manager.restore()
    assert found is not None
    first = found[1].step + 1
    for step in range(first, first + _MOST_SAVES * number):
        last.value = save(manager, step, SMALL)
        if step >= first + number - 1 and enough.is_set():
            return


def run_reader(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """Restores without pause beside a run that saves `rounds` times, or more where this reader gets little time; it
    keeps one besides the one resumed from.
    """
    context, watch = fork_context(), Watch(place, record)
    watch.acknowledge(save(open_manager(watch.store), 1, SMALL))
    enough, last, wanted = context.Event(), context.Value("i"), min(10, rounds // 10)
    arguments = (place.address, place.environment, rounds, enough, last)
    process = context.Process(target=save_many, args=arguments, daemon=True)
    process.start()
    seen, num_reads = {1}, 0
    while process.is_alive():
        found = open_manager(watch.store).restore()
        num_reads += 1
        if found is None or found[1].step < watch.newest:
            record.lose("went back", f"the reader saw {found and found[1].step} after {watch.newest}")
            continue
        if not is_right(found[0], found[1].step, found[1].attempt):
            record.lose("undetected", f"the reader got other values at step {found[1].step}")
        watch.acknowledge(found[1].step)
        seen.add(found[1].step)
        if len(seen) > wanted:
            enough.set()
    process.join()
    record.require(process.exitcode == 0, f"the writer ended with {process.exitcode}")
    record.require(watch.look() == last.value, f"the last step is {watch.newest}, not {last.value}")
    record.rounds += last.value - 1
    record.fired["newer step seen while reading"] += len(seen) - 1
    record.require_fired("newer step seen while reading", wanted)
    record.facts.append(f"{num_reads} reads, {len(seen)} of {last.value} steps seen")
    names = place.names()
    record.require(any(name.startswith("step-00000001-") for name in names), "the one resumed from was pruned")
    record.require(not [name for name in names if QUARANTINE_FILE in name], f"the reader judged: {names}")
