"""Row 3: death right before and right after every call that a save makes to its store."""

import random

from oct_foundation.checkpoints.manifest import MANIFEST_FILE, CheckpointName
from tests.faults.matrix.oracle import SMALL, Watch, open_manager, save
from tests.faults.matrix.passing import Death, Mortal
from tests.faults.matrix.places import Place, open_store
from tests.faults.matrix.record import Record


def run_deaths(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """`rounds` times: a save that dies at its first call, one at its second, and so on until one is through."""
    for _ in range(rounds):
        watch = Watch(place.fresh(), record)
        for kind in ("before a call", "after a call"):
            number = 0
            while die_at(watch, number, kind == "after a call"):
                record.fired[kind] += 1
                record.rounds += 1
                number += 1
            record.require(number > 5, f"a save makes {number} calls only: has it saved and pruned at all?")
    record.facts.append(f"{number} calls in the last save")


def die_at(watch: Watch, number: int, after: bool) -> bool:
    """A start that restores, saves two steps, and dies at call `number` of its third save; False if it lives on."""
    store = Mortal(open_store(watch.place.address))
    manager = open_manager(store)
    manager.restore()
    for step in (watch.newest + 1, watch.newest + 2):
        watch.acknowledge(save(manager, step, SMALL))
    store.last, store.after = len(store.calls) + number, after
    name = CheckpointName(step=watch.newest + 1, attempt=manager.attempt)
    try:
        watch.acknowledge(save(manager, name.step, SMALL))
    except Death:
        if f"commit {name.key(MANIFEST_FILE)}" in store.done:  # durable, though nobody was told
            watch.acknowledge(name.step)
    watch.look()
    return store.has_died
