"""The rows of the fault matrix, by the numbers of section 8 of the design.

A row is a function that makes its fault happen and fills a Record; one that is better played by a whole run may start
a subprocess.
"""

from tests.faults.matrix.at_rest import run_damages, run_flips, run_hostile_pickle
from tests.faults.matrix.deaths import run_deaths
from tests.faults.matrix.full_disk import run_full_disk
from tests.faults.matrix.kills import run_kills
from tests.faults.matrix.network import run_downloads, run_lost_replies, run_trouble
from tests.faults.matrix.outages import run_revoked, run_slow_and_dead
from tests.faults.matrix.plan import run_random_plan
from tests.faults.matrix.record import Row
from tests.faults.matrix.start import run_start
from tests.faults.matrix.writers import run_reader, run_two_writers

ROWS = (
    Row(
        number=1,
        title="kill -9 at random moments of a save",
        expected="nothing committed is lost, leftovers go after a day",
        run=run_kills,
        rounds={"local": 200, "gcs": 50},
        quick=5,
    ),
    Row(
        number=3,
        title="death before and after each call of a save to its store",
        expected="nothing committed is lost, the next start saves on",
        run=run_deaths,
        rounds={"local": 3, "gcs": 3},
        quick=1,
    ),
    Row(
        number=5,
        title="disk full at 0, 30 and 99 % of a save",
        expected="the save fails as Full and leaves nothing, the next one works",
        run=run_full_disk,
        rounds={"local": 10, "gcs": 10},
        quick=1,
    ),
    Row(
        number=6,
        title="bursts of 503 and 429, connections cut at random offsets",
        expected="retried, saved, whole",
        run=run_trouble,
        rounds={"gcs": 50},
        quick=3,
        breaks_network=True,
    ),
    Row(
        number=7,
        title="reply lost: chunk, manifest, hint, delete, owner",
        expected="success, one state and one manifest",
        run=run_lost_replies,
        rounds={"gcs": 20},
        quick=1,
        breaks_network=True,
    ),
    Row(
        number=8,
        title="store slow, store dead, store back",
        expected="saves skipped, then failed, then made; training stalls < 0.5 s",
        run=run_slow_and_dead,
        rounds={"local": 3, "gcs": 3},
        quick=1,
        breaks_network=True,
    ),
    Row(
        number=9,
        title="start with an unusable ckpt_dir",
        expected="refused before work, by name",
        run=run_start,
        rounds={"local": 3, "gcs": 3},
        quick=1,
        breaks_network=True,
    ),
    Row(
        number=10,
        title="permission, bucket, folder gone in mid-run",
        expected="the run is told to end after 3 failed saves",
        run=run_revoked,
        rounds={"local": 3, "gcs": 3},
        quick=1,
        breaks_network=True,
    ),
    Row(
        number=11,
        title="download cut, truncated, flipped, refused",
        expected="asked for once more; an error if for ever",
        run=run_downloads,
        rounds={"gcs": 20},
        quick=1,
        breaks_network=True,
    ),
    Row(
        number=12,
        title="one bit flipped at rest, in state and manifest",
        expected="found before unpickling, quarantined, the older one used",
        run=run_flips,
        rounds={"local": 64, "gcs": 64},
        quick=8,
    ),
    Row(
        number=13,
        title="files empty, cut, longer, missing, random, foreign; all bad",
        expected="the older one used; all bad: an error, never from scratch",
        run=run_damages,
        rounds={"local": 5, "gcs": 5},
        quick=1,
    ),
    Row(
        number=14,
        title="two writers; a sleeper wakes after a takeover",
        expected="the second is refused, the sleeper ends, the newer run goes on",
        run=run_two_writers,
        rounds={"local": 20, "gcs": 20},
        quick=1,
    ),
    Row(
        number=15,
        title="reading while another process saves and prunes",
        expected="always a whole one, never an older one",
        run=run_reader,
        rounds={"local": 200, "gcs": 200},
        quick=20,
    ),
    Row(
        number=19,
        title="a committed pickle that runs code",
        expected="refused, the code does not run, the older one used",
        run=run_hostile_pickle,
        rounds={"local": 3, "gcs": 3},
        quick=1,
    ),
    Row(
        number=21,
        title="a random plan of all these over small saves",
        expected="nothing committed is lost",
        run=run_random_plan,
        rounds={"local": 2000, "gcs": 1000},
        quick=25,
    ),
)
