"""The inventory of a fleet: YAML -> where its workers are and how they are reached, or one readable error."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oct_foundation.tracking.redact import is_secret, looks_secret
from pretraining.config_file import ConfigError, load_settings

TPU_PORTS = (8476, 8477, 8478, 8479)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class SshHost:
    """One worker that is reached by ssh. options: as for `ssh -o`, for example ProxyJump=bastion."""

    address: str
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None
    options: list[str] = field(default_factory=list)
    checkout: str | None = None

    def __post_init__(self) -> None:
        if not self.address or self.address.startswith("-") or self.address != self.address.strip():
            raise ValueError(f"hosts: address must be a host name or an IP address; found {self.address!r}")
        if self.port is not None:
            _check_port("hosts: port", self.port)
        for option in self.options:
            if "=" not in option:
                raise ValueError(f"hosts: options are of the form Name=value, as for ssh -o; found {option!r}")


@dataclass(frozen=True, kw_only=True)
class GcloudPod:
    """One TPU VM, reached by gcloud: a v4-32 has 4 workers."""

    name: str
    zone: str
    num_workers: int
    project: str | None = None
    internal_ip: bool = False

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("zone", self.zone), ("project", self.project)):
            if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:@_-]*", value):
                raise ValueError(f"gcloud.{key} must be a name of letters, digits and hyphens; found {value!r}")
        if self.num_workers < 1:
            raise ValueError(f"gcloud.num_workers must be at least 1 (v4-32: 4); found {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Workers, their clones, and what a job gets there.

    repository: where the workers clone from. python: becomes OCTFM_PYTHON, null: run_tpu_xla.sh makes .venv. env: plain
    variables of the job, no secrets; pass_env: names of the operator's own, sent through the connection's stdin.
    master_address: where the others find worker 0 when there is no TPU; null: its address above.
    """

    transport: Literal["ssh", "gcloud"]
    hosts: list[SshHost] = field(default_factory=list)
    gcloud: GcloudPod | None = None
    checkout: str = "~/octfm"
    repository: str | None = None
    python: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    pass_env: list[str] = field(default_factory=list)
    master_address: str | None = None
    rendezvous_port: int = 12355
    min_free_disk_gb: float = 10.0
    connect_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        match self.transport:
            case "ssh" if not self.hosts or self.gcloud is not None:
                raise ValueError("transport ssh needs hosts: (a list with at least one address:), and no gcloud:")
            case "gcloud" if self.gcloud is None or self.hosts:
                raise ValueError("transport gcloud needs gcloud: with name, zone and num_workers, and no hosts:")
        for checkout in self.checkouts():
            if not checkout.startswith(("/", "~/")):
                raise ValueError(f"checkout must begin with / or ~/, it is a folder on the workers; found {checkout!r}")
        if self.repository is not None and not re.match(r"/|[\w+]+://|[\w.-]+@[\w.-]+:", self.repository):
            raise ValueError(
                f"repository must be a URL, user@host:path or a path from /, as the workers see it; "
                f"found {self.repository!r}"
            )
        for name in (*self.env, *self.pass_env):
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"env and pass_env take names of environment variables; found {name!r}")
        _check_port("rendezvous_port", self.rendezvous_port)
        if not 1 <= self.connect_timeout_s <= 600:
            raise ValueError(f"connect_timeout_s must be between 1 and 600; found {self.connect_timeout_s}")

    @property
    def num_workers(self) -> int:
        """Hosts, not chips."""
        return len(self.hosts) if self.gcloud is None else self.gcloud.num_workers

    def checkouts(self) -> list[str]:
        """Folder of the clone, per worker."""
        if self.gcloud is not None:
            return [self.checkout] * self.gcloud.num_workers
        return [host.checkout or self.checkout for host in self.hosts]

    @property
    def ports(self) -> list[int]:
        """Ports that a job needs on every worker: those of libtpu, and gloo's."""
        return [*TPU_PORTS, self.rendezvous_port]

    def secrets(self) -> dict[str, str]:
        """The operator's variables of pass_env; raises ConfigError naming those that are not set."""
        if absent := [name for name in self.pass_env if name not in os.environ]:
            raise ConfigError(f"pass_env names {', '.join(absent)}, which is not set here: export it, or take it out")
        return {name: os.environ[name] for name in self.pass_env}


def load_inventory(path: Path) -> Inventory:
    """Reads and checks the file; raises ConfigError with one readable message."""
    if not path.is_file():
        raise ConfigError(
            f"inventory {path} does not exist: cp configs/fleet_example.yaml fleet.yaml and fill it in, or name one "
            "by --inventory"
        )
    return load_settings(Inventory, path, [])


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a secret in key=value: everybody on the worker reads command lines in ps."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if (equals and is_secret(key, value)) or looks_secret(argument):
            name = key if equals else "an argument"
            raise ConfigError(
                f"{name} looks like a secret (not shown) and would stand on the job's command line, for all to read. "
                "Set its environment variable on the workers, or name that under pass_env: in the inventory"
            )


def _check_port(key: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"{key} must be between 1 and 65535; found {port}")
