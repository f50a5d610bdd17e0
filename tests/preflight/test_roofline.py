import pytest

from oct_foundation.preflight.roofline import Work, all_reduce_bytes, roofline, usable_hbm_bytes
from oct_foundation.preflight.topologies import topology

V4_32 = topology("v4-32")


def work(**changes: float) -> Work:
    values = {"flops": 5.36e12, "bytes_moved": 69e9, "reduced_bytes": 0.1163e9, "num_volumes": 1}
    return Work(**values | changes)  # type: ignore[arg-type]


def test_the_prototype_of_the_design_notes_comes_out_as_they_say():
    found = roofline(work(), V4_32)
    assert found.limit == "memory"
    assert found.seconds == pytest.approx(57.5e-3)
    assert found.compute_seconds == pytest.approx(19.49e-3, rel=1e-3)
    assert found.mfu_bound == pytest.approx(0.339, abs=1e-3)
    assert found.volumes_per_second_bound == pytest.approx(16 / 57.5e-3)


def test_a_ring_sends_all_but_one_part_twice():
    assert all_reduce_bytes(160.0, 16) == 300.0
    assert all_reduce_bytes(160.0, 1) == 0.0


def test_each_of_the_three_can_be_the_limit():
    assert roofline(work(bytes_moved=1e9), V4_32).limit == "compute"
    network = roofline(work(flops=1e9, bytes_moved=1e6, reduced_bytes=16e9), V4_32)
    assert network.limit == "network"
    assert network.seconds == pytest.approx(2 * 15 / 16 * 16e9 / 300e9)


def test_work_that_is_only_compute_reaches_the_peak():
    assert roofline(work(bytes_moved=0, reduced_bytes=0), V4_32).mfu_bound == 1.0


def test_more_chips_are_more_volumes_at_the_same_time():
    one, four = (roofline(work(reduced_bytes=0), topology(name)) for name in ("v5e-1", "v5e-4"))
    assert four.seconds == one.seconds
    assert four.volumes_per_second_bound == 4 * one.volumes_per_second_bound


def test_a_tenth_of_the_memory_is_left_alone():
    assert usable_hbm_bytes(topology("v5e-8")) == int(0.9 * 16 * 2**30)
