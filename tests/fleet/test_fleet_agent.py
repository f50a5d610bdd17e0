"""What the agent reads on a worker (holders of chips and ports, the kernel's log, ends of files), and its language."""

import ast
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretraining.fleet.on_worker import outcome, processes, records

AGENT = Path(outcome.__file__).parent


@pytest.mark.parametrize("path", sorted(AGENT.glob("*.py")), ids=lambda path: path.stem)
def test_the_agent_is_python_3_8_and_standard_library(path: Path) -> None:
    """The Python of a TPU VM's base image is older than ours, and has none of our packages."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or name.startswith("pretraining.fleet.on_worker"), name
    if "def " in path.read_text():
        assert "from __future__ import annotations" in path.read_text(), "annotations would be evaluated, by 3.8 too"


def test_a_process_that_holds_a_chip_is_named(tmp_path: Path) -> None:
    chip = tmp_path / "accel0"
    chip.touch()
    assert processes.chip_holders((f"{tmp_path}/accel*",)) == []
    with subprocess.Popen(["bash", "-c", f"exec 7<{chip}; echo ready; sleep 60"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = processes.chip_holders((f"{tmp_path}/accel*",))
        holder.kill()
    assert any(f"accel0 is held by pid {holder.pid} (" in line for line in found), found


def test_a_process_that_holds_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = processes.port_holders([port])
        assert found.startswith(f"port {port} is held by pid ")
    assert processes.port_holders([port]) == []


def wait_for_remains(pid: int) -> None:
    while processes.start_ticks(pid) is not None:
        time.sleep(0.01)


def test_a_recycled_pid_is_not_the_job() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        record = {"pid": process.pid, "start_ticks": processes.start_ticks(process.pid), "boot_id": processes.boot_id()}
        assert records.first_process_lives(record)
        assert not records.first_process_lives({**record, "start_ticks": record["start_ticks"] - 1})
        assert not records.first_process_lives({**record, "boot_id": "before the reboot"})
        process.kill()
        wait_for_remains(process.pid)
        assert not records.first_process_lives(record)
        assert processes.start_ticks(process.pid, remains_too=True) == record["start_ticks"]
        process.wait()
        assert not records.first_process_lives(record)


def test_only_a_memory_kill_since_the_start_of_the_job_is_told() -> None:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    log = f"[{uptime - 50:12.6f}] Out of memory: Killed process 77 (python)\n[{uptime - 1:12.6f}] eth0: link up\n"
    assert outcome.last_memory_kill(log, time.time() - 100) == "Out of memory: Killed process 77 (python)"
    assert outcome.last_memory_kill(log, time.time() - 10) is None


@pytest.mark.parametrize(
    ("arguments", "config", "expected"),
    [
        (["job.yaml", "output_dir=runs/mine"], "output_dir: runs/other\n", "runs/mine"),
        (["job.yaml"], "name: x\noutput_dir: runs/other # here\n", "runs/other"),
        (["job.yaml"], "name: x\noutput_dir: null\n", "runs/x-20260101-000000"),
        (["job.yaml"], "name: x\n", "runs/x-20260101-000000"),
    ],
)
def test_the_run_folder_is_found_as_the_configuration_names_it(
    tmp_path: Path, arguments: list[str], config: str, expected: str
) -> None:
    for name in ("mine", "other", "x-20260101-000000", "y-20260101-111111"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "job.yaml").write_text(config)
    record = {"arguments": arguments, "started": "20260101-000000"}
    assert outcome.run_folder(tmp_path, record) == tmp_path / expected


def test_the_last_lines_of_a_long_log_are_whole(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)) + "bar 1\rbar 2\r")
    assert records.last_lines(log, 3) == ["line 99999", "bar 1", "bar 2"]
    assert records.last_lines(tmp_path / "none", 3) == []


def test_the_agent_runs_without_our_packages(tmp_path: Path) -> None:
    """`-I -S`: no site packages, no working folder; what is sent must be all it needs."""
    from pretraining.fleet.channel import _sent
    from pretraining.fleet.on_worker.agent import MARK

    assert importlib.util.find_spec("rich"), "the environment of the test has packages to be missed"
    code = "import json, sys; exec(json.loads(sys.stdin.readline()))"
    sent = _sent({"action": "tail", "checkout": str(tmp_path), "num_lines": 5})
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.decode().startswith(MARK + '{"time": ')
