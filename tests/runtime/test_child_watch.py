import multiprocessing
import os
import re
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from oct_foundation.runtime import child_watch
from oct_foundation.runtime.child_watch import ChildWatch, cgroup_folders, cgroup_limit, oom_kills

SPAWN = multiprocessing.get_context("spawn")
MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="NO /proc: sizes of killed processes were NOT tested")


@pytest.fixture(autouse=True)
def host_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the host's own: a neighbour on it that runs out of memory must not change what is said here."""
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 12\noom_kill 3\n")
    monkeypatch.setattr(child_watch, "HOST_COUNTERS", counters)
    return counters


def hold(size_bytes: int) -> None:
    held = bytearray(os.urandom(4096)) * (size_bytes // 4096)
    time.sleep(300)
    del held


def seen_alive(watch: ChildWatch, number: int = 1, least_bytes: int = 1) -> BaseProcess:
    """A child of at least this size, once the watch has seen it and `number` in all: nothing else can be named."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        sizes = {child: size for child, size in watch._resident.copy().items() if size}
        large = [child for child, size in sizes.items() if size >= least_bytes]
        if len(sizes) >= number and large:
            return large[0]
        time.sleep(0.02)
    raise AssertionError(f"the watch has seen {sizes}")


def break_a_pool(watch: ChildWatch, signal_number: int, size_bytes: int) -> None:
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        pool.submit(hold, 0)
        broken = pool.submit(hold, size_bytes)
        child = seen_alive(watch, 2, size_bytes)
        pool.submit(hold, 0)  # CPython 3.11 may not watch the process it has started last until it is woken once more
        os.kill(child.pid, signal_number)
        broken.result()


def watch_a_pool_die(watch: ChildWatch, signal_number: int, size_bytes: int = 100 * MIB) -> str | None:
    with watch, pytest.raises(BrokenProcessPool):
        break_a_pool(watch, signal_number, size_bytes)
    return watch.post_mortem()


@linux
def test_a_child_that_is_killed_under_a_pool_is_named_with_its_size():
    found = watch_a_pool_die(ChildWatch(look_s=0.1, cgroups=[]), signal.SIGKILL)
    assert found is not None
    size = re.match(
        r"process \d+ \(with (\d+\.\d+) GiB resident; host memory \d+\.\d+ GiB\) "
        r"was killed by signal 9 \(SIGKILL\): (likely out of memory|by the kernel for lack of memory, or by someone)",
        found,
    )
    assert size, found
    assert 100 * MIB <= float(size[1]) * 2**30 <= 250 * MIB
    assert found.count("process ") == 1, "not the other child, which the pool itself has ended"
    assert "data.loader.num_workers" in found
    assert "batch.per_core_batch_size" in found


@linux
def test_a_crash_is_named_by_its_signal_and_not_taken_for_lack_of_memory():
    found = watch_a_pool_die(ChildWatch(look_s=0.1), signal.SIGSEGV, MIB)
    assert found is not None
    assert found.endswith("was killed by signal 11 (SIGSEGV).")


def fake_cgroup(folder: Path, limit: str, kills: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 4\noom 1\noom_kill {kills}\noom_group_kill 0\n")
    return folder


@linux
def test_a_kill_that_the_cgroup_has_counted_is_out_of_memory_for_certain(tmp_path):
    cgroup = fake_cgroup(tmp_path, str(4096 * MIB), kills=1)
    with ChildWatch(look_s=0.05, cgroups=[cgroup]) as watch:
        child = SPAWN.Process(target=hold, args=(0,))
        child.start()
        seen_alive(watch)
        fake_cgroup(tmp_path, str(4096 * MIB), kills=2)
        child.kill()
        child.join()
        found = watch.post_mortem()
    assert f"process {child.pid} " in found
    assert "limit of the cgroup 4.00 GiB" in found
    assert "(SIGKILL): out of memory, by the cgroup's own count of such kills" in found


@linux
@pytest.mark.parametrize(
    ("limit", "host_kills", "said"),
    [
        (16 * MIB, 3, "likely out of memory, since all ranks"),
        (2**40, 3, "by the kernel for lack of memory, or by someone"),
        (2**40, 4, "likely out of memory, since the kernel has killed a process of this host"),
    ],
)
def test_without_a_count_sizes_and_then_the_host_decide_what_is_likely(
    tmp_path, host_counters, limit, host_kills, said
):
    with ChildWatch(look_s=0.05, cgroups=[fake_cgroup(tmp_path, str(limit), kills=1)]) as watch:
        child = SPAWN.Process(target=hold, args=(0,))
        child.start()
        seen_alive(watch)
        host_counters.write_text(f"pgfault 13\noom_kill {host_kills}\n")
        child.kill()
        child.join()
    assert said in watch.post_mortem()


def test_children_that_end_by_themselves_are_no_news():
    with ChildWatch(look_s=0.05) as watch:
        children = [SPAWN.Process(target=sys.exit, args=(code,)) for code in (0, 75)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0, 75]
    assert watch.post_mortem() is None


def test_a_child_that_was_only_asked_to_end_is_named_when_nothing_else_happened():
    with ChildWatch(look_s=0.05) as watch:
        child = SPAWN.Process(target=hold, args=(0,))
        child.start()
        seen_alive(watch)
        child.terminate()
        child.join()
    assert "was killed by signal 15 (SIGTERM)." in watch.post_mortem()


@linux
def test_the_watch_leaves_the_reaping_to_the_spawner():
    with ChildWatch(look_s=0.01):
        child = SPAWN.Process(target=sys.exit, args=(3,))
        child.start()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        time.sleep(0.2)  # twenty looks at the zombie
        assert os.waitpid(child.pid, 0) == (child.pid, 3 << 8), "the zombie was still there"


def test_limits_of_a_cgroup_of_version_2_are_read_up_to_the_top(tmp_path):
    own = fake_cgroup(tmp_path / "cgroup" / "pod" / "container", "max", kills=7)
    fake_cgroup(tmp_path / "cgroup" / "pod", str(300 * MIB), kills=9)
    (tmp_path / "membership").write_text("0::/pod/container\n")
    folders = cgroup_folders(tmp_path / "cgroup", tmp_path / "membership")
    assert folders == [own, own.parent, own.parent.parent]
    assert cgroup_limit(folders) == 300 * MIB
    assert oom_kills(folders) == 7


def test_limits_of_a_cgroup_of_version_1_are_read_where_the_memory_controller_is(tmp_path):
    own = tmp_path / "cgroup" / "memory" / "job"
    own.mkdir(parents=True)
    (own / "memory.limit_in_bytes").write_text(f"{200 * MIB}\n")
    (own / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (own.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "membership").write_text("9:name=systemd:/\n4:cpu,memory:/job\n0::/\n")
    folders = cgroup_folders(tmp_path / "cgroup", tmp_path / "membership")
    assert folders == [own, own.parent]
    assert cgroup_limit(folders) == 200 * MIB
    assert oom_kills(folders) == 3


def test_a_container_that_sees_only_the_top_of_the_hosts_cgroups_finds_its_limit_there(tmp_path):
    top = fake_cgroup(tmp_path / "cgroup", str(500 * MIB), kills=1)
    (tmp_path / "membership").write_text("0::/host/docker/4711\n")
    folders = cgroup_folders(tmp_path / "cgroup", tmp_path / "membership")
    assert folders == [top]
    assert cgroup_limit(folders) == 500 * MIB


def test_a_host_without_cgroups_has_no_limit(tmp_path):
    assert cgroup_folders(tmp_path, tmp_path / "absent") == []
    assert cgroup_limit([]) is None
    assert oom_kills([]) == 0
