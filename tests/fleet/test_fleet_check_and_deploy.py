"""`octfm fleet check` and `deploy` on real sshd workers: what they find, refuse and name."""

import os
import socket
import sys

import pytest
from sshd_fleet import Fleet, free_port, git

from pretraining.fleet.channel import Answer
from pretraining.fleet.check import clock_offset_s


def test_check_shows_every_worker_and_finds_nothing_on_good_ones(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet.run("check") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert all(f"127.0.0.1:{port}" in shown for port in fleet.hosts.ports[:2])
    assert "all workers are fit" in shown


def test_check_names_the_worker_that_cannot_be_reached(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = free_port()
    ports = [fleet.hosts.ports[0], nobody, fleet.hosts.ports[1]]
    assert fleet.run("check", inventory=fleet.inventory(f"python: {sys.executable}", ports=ports)) == 1
    shown = capsys.readouterr()
    assert f"worker 1 (127.0.0.1:{nobody}): not reached" in shown.err
    assert "Connection refused" in shown.err
    assert "worker 0" not in shown.err
    assert f"127.0.0.1:{fleet.hosts.ports[1]}" in shown.out  # the others are told all the same


def test_check_names_the_holder_of_the_rendezvous_port(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        path = fleet.inventory(f"python: {sys.executable}")
        lines = [line for line in path.read_text().splitlines() if not line.startswith("rendezvous_port")]
        path.write_text("\n".join([*lines, f"rendezvous_port: {port}"]))
        assert fleet.run("check") == 1
    shown = capsys.readouterr().err
    assert shown.count(f"port {port} is held by pid {os.getpid()} (") == 2


@pytest.mark.parametrize(
    ("worker_s", "offset_s"),
    [(100.0, 0.0), (102.0, 0.0), (99.0, -1.0), (110.0, 8.0), (50.0, -50.0)],
)
def test_a_clock_is_off_only_as_far_as_the_round_trip_proves(worker_s: float, offset_s: float) -> None:
    """Sent at 100 s, received at 102 s: the worker read its clock somewhere in between."""
    answer = Answer(worker=0, label="a", code=0, reply={"time": worker_s}, stdout="", stderr="", sent=100, received=102)
    assert clock_offset_s(answer) == offset_s


def test_check_says_which_python_is_missing(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet.run("check", inventory=fleet.inventory("python: /nowhere/bin/python")) == 1
    assert capsys.readouterr().err.count("no Python 3.11 to 3.13 (/nowhere/bin/python)") == 2


def test_deploy_clones_on_all_workers_and_moves_them_to_the_next_commit(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("one", "two"):
        sha = fleet.commit("note.txt", text)
        assert fleet.run("deploy") == 0
        assert f"all 2 workers are at {sha}, clean" in capsys.readouterr().out
        assert [git(fleet.checkout(worker), "rev-parse", "HEAD") for worker in range(2)] == [sha] * 2
        assert (fleet.checkout(1) / "note.txt").read_text() == text
    earlier = git(fleet.clone, "rev-parse", "HEAD~1")
    assert fleet.run("deploy", "--sha", "HEAD~1") == 0
    assert git(fleet.checkout(1), "rev-parse", "HEAD") == earlier


def test_deploy_refuses_files_that_differ_here(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet.clone / "run_tpu_xla.sh").write_text("changed")
    (fleet.clone / "forgotten.py").write_text("new")
    assert fleet.run("deploy") == 2
    shown = capsys.readouterr().err
    assert "run_tpu_xla.sh, forgotten.py" in shown
    assert "commit and push" in shown
    assert not fleet.checkout(0).exists()


def test_an_inventory_in_the_clone_is_no_change(fleet: Fleet) -> None:
    inventory = fleet.clone / "fleet.yaml"
    inventory.write_text(fleet.inventory().read_text())
    assert fleet.run("deploy", inventory=inventory) == 0


def test_deploy_refuses_a_commit_that_no_remote_has(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    sha = fleet.commit("note.txt", "mine alone", push=False)
    assert fleet.run("deploy") == 2
    assert f"commit {sha[:7]} Add note.txt is on no branch of a remote: git push" in capsys.readouterr().err
    assert not fleet.checkout(0).exists()


def test_deploy_names_the_worker_whose_files_differ_and_leaves_them_alone(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet.run("deploy") == 0
    changed = fleet.checkout(1) / "run_tpu_xla.sh"
    changed.write_text("a quick fix on the pod")
    fleet.commit("note.txt", "next")
    assert fleet.run("deploy") == 1
    shown = capsys.readouterr().err
    assert "worker 1 (" in shown
    assert "has files that differ from its commit: run_tpu_xla.sh" in shown
    assert "worker 0" not in shown
    assert changed.read_text() == "a quick fix on the pod"
