"""Row 21: everything at once, in an order drawn at random, over hundreds of small saves."""

import random
from dataclasses import replace

from oct_foundation.checkpoints.manifest import MANIFEST_FILE, STATE_FILE, CheckpointName
from oct_foundation.checkpoints.store import Full
from tests.faults.fault_proxy import Fault
from tests.faults.matrix.at_rest import damage
from tests.faults.matrix.full_disk import limited
from tests.faults.matrix.kills import kill_one, random_moment
from tests.faults.matrix.oracle import SMALL, Watch, open_manager, save
from tests.faults.matrix.passing import Death, Mortal
from tests.faults.matrix.places import BucketPlace, Place, enter, open_store
from tests.faults.matrix.record import Record

SAVES_OF_A_PLAN = 500
WEIGHTS = {
    "nothing": 70,
    "start anew": 5,
    "death at a call": 7,
    "full disk": 7,
    "damage at rest": 4,
    "kill -9": 3,
    "network": 6,  # of a bucket only
}
_NETWORK = (
    Fault(match="^(POST|PUT) .*upload", action="status", status=503),
    Fault(match="^(POST|PUT) .*upload", action="status", status=429),
    Fault(match="^(POST|PUT) .*upload", action="cut", after=300),
    Fault(match="^(POST|PUT) .*upload", action="lose_reply"),
    Fault(match="^(POST|PUT) .*upload", action="lose_reply", skip=1),
    Fault(match="^GET ", action="status", status=503),
    Fault(match="^GET ", action="cut", after=20),
    Fault(match="^DELETE ", action="lose_reply"),
)


class Plan:
    """One run through its faults. `step` is that of its last save, `num_saves` how many it has tried."""

    def __init__(self, place: Place, rng: random.Random, record: Record) -> None:
        self.place, self.rng, self.record = place, rng, record
        self.watch = Watch(place, record)
        self.num_saves = 0
        self.start_anew()

    def start_anew(self) -> None:
        """The next start of the run: another attempt, which goes on from what it finds."""
        self.store = Mortal(open_store(self.place.address))
        self.manager = open_manager(self.store, keep_last=self.rng.randint(1, 3))
        found = self.manager.restore()
        self.step = 0 if found is None else found[1].step
        self.record.require(self.step >= self.watch.newest, f"started from {self.step} after {self.watch.newest}")

    def save(self) -> None:
        """The next save; raises what it raises."""
        self.num_saves += 1
        save(self.manager, self.step + 1, SMALL)
        self.step += 1
        self.watch.acknowledge(self.step)

    def meet(self, kind: str) -> None:
        """Makes one thing of the plan happen, around a save, and counts it if it did."""
        match kind:
            case "nothing":
                self.save()
                return
            case "start anew":
                self.start_anew()
                happened = True
            case "death at a call":
                happened = self._die()
            case "full disk":
                happened = self._fill_disk()
            case "damage at rest":
                happened = self._damage()
            case "kill -9":
                self.watch.acknowledge(kill_one(self.place, random_moment(self.rng), SMALL)[1])
                self.start_anew()
                happened = True
            case _:
                happened = self._break_network()
        self.record.fired[kind] += happened
        self.watch.look()

    def _die(self) -> bool:
        self.store.last, self.store.after = len(self.store.calls) + self.rng.randrange(8), self.rng.random() < 0.5
        name = CheckpointName(step=self.step + 1, attempt=self.manager.attempt)
        try:
            self.save()
        except Death:
            if f"commit {name.key(MANIFEST_FILE)}" in self.store.done:
                self.watch.acknowledge(name.step)
        happened = self.store.has_died
        self.start_anew()
        return happened

    def _fill_disk(self) -> bool:
        with limited(self.rng.randrange(4 * SMALL)):
            try:
                self.save()
            except Full:
                return True
        return False

    def _damage(self) -> bool:
        """Spoils the newest of at least two intact ones: the next start has to go on from the one before it."""
        intact = sorted(item.name for item in self.manager.survey(verify=False) if not item.trouble)
        if len(intact) < 2:
            return False
        *_, older, newest = intact
        how = self.rng.choice(("empty", "cut", "longer", "missing", "binary"))
        damage(self.place, newest.key(self.rng.choice((STATE_FILE, MANIFEST_FILE))), how, self.rng)
        self.watch.spoilt.add(newest)
        self.watch.newest = older.step
        self.start_anew()
        return self.record.require(self.step == older.step, f"{how}: went on from {self.step}, not {older.step}")

    def _break_network(self) -> bool:
        """A start that reaches the bucket through the proxy, and a save that meets the fault there."""
        assert isinstance(self.place, BucketPlace)
        enter(replace(self.place, through_proxy=True).environment)
        self.start_anew()
        proxy = self.place.emulator.proxy
        proxy.inject(self.rng.choice(_NETWORK))
        self.save()
        happened = not proxy.unused()
        proxy.inject()
        enter(self.place.environment)
        self.start_anew()
        return happened


def run_random_plan(place: Place, rounds: int, rng: random.Random, record: Record) -> None:
    """Plans of 500 saves each, `rounds` saves in all."""
    kinds = [kind for kind in WEIGHTS if kind != "network" or isinstance(place, BucketPlace)]
    for first in range(0, rounds, SAVES_OF_A_PLAN):
        plan = Plan(place.fresh(), rng, record)
        while plan.num_saves < min(SAVES_OF_A_PLAN, rounds - first):
            plan.meet(rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0])
        plan.watch.look()
        record.rounds += plan.num_saves
    if rounds >= SAVES_OF_A_PLAN:
        for kind in kinds[1:]:
            record.require_fired(kind, 3)
    record.facts.append(", ".join(f"{times} {kind}" for kind, times in record.fired.items()))
