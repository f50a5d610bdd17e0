"""Four real sshd servers for the session, and a small repository whose job is a shell script for each test."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_fleet import Fleet, Hosts, free_port, git

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
NUM_WORKERS = 4
SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd-{port}.pid
AuthorizedKeysFile {folder}/user_key.pub
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Four sshd processes with keys, configurations and pid files of their own; ended by pid."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("SSHD ABSENT: install openssh-server and openssh-client. These checks did NOT run.")
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as root sshd wants its empty directory
    ports = [free_port() for _ in range(NUM_WORKERS)]
    servers = []
    try:
        for port in ports:
            config = folder / f"sshd_config-{port}"
            config.write_text(SSHD_CONFIG.format(port=port, folder=folder))
            log = folder / f"sshd-{port}.log"
            servers.append(subprocess.Popen([SSHD, "-D", "-E", str(log), "-f", str(config)], stdin=subprocess.DEVNULL))
        for port, server in zip(ports, servers, strict=True):
            _wait_for(port, server)
        yield Hosts(folder, ports)
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, f"sshd has ended; was port {port} taken?"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"sshd does not listen on {port}"
            time.sleep(0.05)


@pytest.fixture
def fleet(tmp_path: Path, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Two workers, and a repository whose run_tpu_xla.sh runs the shell script that is its configuration."""
    monkeypatch.setattr("pretraining.fleet.start.SETTLE_S", 0.5)  # these jobs end at once or not at all
    fleet = Fleet(tmp_path, hosts, num_workers=2)
    git(tmp_path, "init", "--quiet", "--bare", str(fleet.origin))
    git(tmp_path, "clone", "--quiet", str(fleet.origin), str(fleet.clone))
    git(fleet.clone, "checkout", "--quiet", "-B", "main")
    (fleet.clone / ".gitignore").write_text("runs/\n")
    fleet.commit("run_tpu_xla.sh", 'exec bash "$@"\n')
    fleet.inventory(f"python: {sys.executable}")
    yield fleet
    if fleet.processes():
        fleet.run("stop", "--grace", "0", inventory=fleet.inventory())
