"""Two ways to a worker: the local command line that runs a shell command there, with stdin and stdout connected."""

import shutil
from typing import Protocol

from pretraining.config_file import ConfigError
from pretraining.fleet.inventory import GcloudPod, Inventory, SshHost


class Transport(Protocol):
    """One entry per worker in `labels`; a worker is named by its index."""

    labels: list[str]

    def command_line(self, worker: int, remote: str) -> list[str]:
        """Program and arguments, for no shell of ours; `remote` is for the shell of the worker."""
        ...


class SshTransport:
    """OpenSSH's client. Keys only: nobody is there to type a password for 32 workers."""

    def __init__(self, hosts: list[SshHost], connect_timeout_s: float) -> None:
        self._hosts, self._connect_timeout_s = hosts, connect_timeout_s
        self.labels = [host.address if host.port is None else f"{host.address}:{host.port}" for host in hosts]

    def command_line(self, worker: int, remote: str) -> list[str]:
        """A worker that falls silent is given up after 3 x 15 s."""
        host = self._hosts[worker]
        command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={round(self._connect_timeout_s)}"]
        command += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
        if host.port is not None:
            command += ["-p", str(host.port)]
        if host.user is not None:
            command += ["-l", host.user]
        if host.identity_file is not None:
            command += ["-i", host.identity_file, "-o", "IdentitiesOnly=yes"]
        for option in host.options:
            command += ["-o", option]
        return [*command, "--", host.address, remote]


class GcloudTransport:
    """`gcloud compute tpus tpu-vm ssh`, one call per worker, so that streams of workers never mix.

    For a single worker gcloud hands its own stdin on to ssh (SDK 528: `execution_utils.Exec`, Popen without stdin);
    `--worker=all` would share it between threads.
    """

    def __init__(self, pod: GcloudPod) -> None:
        self._pod = pod
        self.labels = [f"{pod.name} worker {index}" for index in range(pod.num_workers)]

    def command_line(self, worker: int, remote: str) -> list[str]:
        """`--quiet`: gcloud asks no questions."""
        pod = self._pod
        command = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", pod.name, f"--zone={pod.zone}", "--quiet"]
        if pod.project is not None:
            command.append(f"--project={pod.project}")
        if pod.internal_ip:
            command.append("--internal-ip")
        return [*command, f"--worker={worker}", f"--command={remote}"]


def open_transport(inventory: Inventory) -> Transport:
    """The transport that the inventory names; raises ConfigError where its program is not installed here."""
    program = inventory.transport
    if shutil.which(program) is None:
        raise ConfigError(f"transport {program}: there is no program {program} on this machine; install it first")
    if inventory.gcloud is not None:
        return GcloudTransport(inventory.gcloud)
    return SshTransport(inventory.hosts, inventory.connect_timeout_s)
