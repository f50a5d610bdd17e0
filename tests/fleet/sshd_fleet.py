"""Workers played by real sshd processes on loopback: their inventory, their clones, and the operator's clone."""

import os
import random
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pretraining.fleet.commands import main
from pretraining.fleet.on_worker.processes import tagged

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Hosts:
    """Ports of the servers and the key that opens them."""

    folder: Path
    ports: list[int]

    @property
    def options(self) -> list[str]:
        return ["StrictHostKeyChecking=no", f"UserKnownHostsFile={self.folder}/known_hosts", "LogLevel=ERROR"]


@dataclass(frozen=True)
class Fleet:
    """An operator's clone, the bare repository it pushes to, and the workers' clones."""

    folder: Path
    hosts: Hosts
    num_workers: int = 4

    @property
    def clone(self) -> Path:
        return self.folder / "operator"

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    def checkout(self, worker: int) -> Path:
        return self.folder / f"worker-{worker}" / "octfm"

    def inventory(self, *more: str, ports: list[int] | None = None) -> Path:
        """Writes fleet.yaml outside of the clone and returns it; `more`: further lines."""
        lines = ["transport: ssh", f"repository: {self.origin}", f"rendezvous_port: {free_port()}", "hosts:"]
        for worker, port in enumerate(ports or self.hosts.ports[: self.num_workers]):
            options = ", ".join(self.hosts.options)
            lines.append(f"  - {{address: 127.0.0.1, port: {port}, checkout: {self.checkout(worker)},")
            lines.append(f"     identity_file: {self.hosts.folder}/user_key, options: [{options}]}}")
        path = self.folder / "fleet.yaml"
        path.write_text("\n".join([*lines, "min_free_disk_gb: 0.001", "connect_timeout_s: 60", *more]) + "\n")
        return path

    def commit(self, name: str, text: str, *, push: bool = True) -> str:
        """Commits a file in the operator's clone and returns the SHA."""
        path = self.clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        git(self.clone, "add", "--all")
        git(self.clone, "commit", "--quiet", "-m", f"Add {name}")
        if push:
            git(self.clone, "push", "--quiet", "origin", "main")
        return git(self.clone, "rev-parse", "HEAD")

    def wait_for_jobs_to_say(self, word: str) -> None:
        """Returns when the newest log of each worker has the word: jobs are shells, and slow to begin where all is."""
        deadline = time.monotonic() + 120
        while not all(word in self._newest_log(worker) for worker in range(self.num_workers)):
            assert time.monotonic() < deadline, f"a job has not said {word!r}"
            time.sleep(0.05)

    def _newest_log(self, worker: int) -> str:
        logs = self.checkout(worker).glob("runs/.fleet/*/output.log")
        return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()

    def processes(self) -> dict[str, list[int]]:
        """Tag -> living processes of the jobs that these workers have records of."""
        jobs = {path.parent.name for path in self.folder.glob("worker-*/octfm/runs/.fleet/*/job.json")}
        return {tag: pids for tag, pids in tagged().items() if tag.partition("/")[0] in jobs}

    def run(self, action: str, *arguments: str, inventory: Path | None = None) -> int:
        """`octfm fleet ACTION` in the operator's clone."""
        before = Path.cwd()
        os.chdir(self.clone)
        try:
            return main([action, "--inventory", str(inventory or self.folder / "fleet.yaml"), *arguments])
        finally:
            os.chdir(before)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run([*command, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    """A port below those that the kernel gives out by itself: nobody else takes it before it is used."""
    while True:
        port = random.randrange(20_000, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
