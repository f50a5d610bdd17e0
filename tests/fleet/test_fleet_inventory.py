"""The inventory: what is refused, in words that name the key."""

from pathlib import Path

import pytest

from pretraining.config_file import ConfigError
from pretraining.fleet.commands import main
from pretraining.fleet.inventory import Inventory, load_inventory
from pretraining.fleet.transport import GcloudTransport, SshTransport

PROJECT = Path(__file__).resolve().parents[2]
SSH = "transport: ssh\nhosts: [{address: a}, {address: b, checkout: /data/octfm}]\n"
GCLOUD = "transport: gcloud\ngcloud: {name: my-pod, zone: us-central2-b, num_workers: 4}\n"


def load(folder: Path, text: str) -> Inventory:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return load_inventory(path)


def test_the_example_is_valid() -> None:
    example = load_inventory(PROJECT / "configs" / "fleet_example.yaml")
    assert example.num_workers == 4
    assert example.pass_env == ["WANDB_API_KEY"]


def test_each_host_may_have_a_checkout_of_its_own(tmp_path: Path) -> None:
    assert load(tmp_path, SSH).checkouts() == ["~/octfm", "/data/octfm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transport: ssh\n", "needs hosts:"),
        ("transport: gcloud\n", "needs gcloud: with name, zone and num_workers"),
        (GCLOUD + "hosts: [{address: a}]\n", "no hosts:"),
        ("transport: rsh\nhosts: [{address: a}]\n", "transport"),
        ("transport: ssh\nhosts: [{adress: a}]\n", "adress"),
        ("transport: ssh\nhosts: [{address: -oProxyCommand=x}]\n", "address must be a host name"),
        ("transport: ssh\nhosts: [{address: a, port: 70000}]\n", "port must be between 1 and 65535"),
        ("transport: ssh\nhosts: [{address: a, options: [-v]}]\n", "of the form Name=value"),
        (SSH + "checkout: octfm\n", "checkout must begin with / or ~/"),
        (SSH + "repository: ../octfm\n", "repository must be a URL"),
        (SSH + "env: {WANDB_API_KEY: abc}\n", "env.WANDB_API_KEY has the name of a secret"),
        (SSH + "env: {hf_Token: abc}\n", "env.hf_Token has the name of a secret"),
        (SSH + "env: {DB_PASSWORD: abc}\n", "env.DB_PASSWORD has the name of a secret"),
        (SSH + "repository: https://me:abc@example.org/octfm.git\n", "the value of repository looks like a secret"),
        (SSH + "env: {'A B': abc}\n", "names of environment variables"),
        (SSH + "rendezvous_port: 0\n", "rendezvous_port must be between"),
        ("transport: gcloud\ngcloud: {name: p, zone: z, num_workers: 0}\n", "num_workers must be at least 1"),
        ("transport: gcloud\ngcloud: {name: --help, zone: z, num_workers: 1}\n", "gcloud.name must be a name"),
    ],
)
def test_a_wrong_inventory_is_one_readable_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.yaml: ") as refused:
        load(tmp_path, text)
    assert message in str(refused.value)
    assert "abc" not in str(refused.value)


def test_a_missing_inventory_is_an_error_of_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--inventory", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err


def test_a_secret_among_the_overrides_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, SSH)
    command = ["start", "--inventory", str(tmp_path / "fleet.yaml"), "configs/a.yaml", "wandb.api_key=4711"]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert "wandb.api_key looks like a secret (not shown)" in shown
    assert "4711" not in shown


def test_ssh_asks_nothing_and_gives_up(tmp_path: Path) -> None:
    inventory = load(tmp_path, "transport: ssh\nhosts: [{address: a, port: 2222, user: me, options: [ProxyJump=b]}]\n")
    command = SshTransport(inventory.hosts, inventory.connect_timeout_s).command_line(0, "true")
    assert command[-3:] == ["--", "a", "true"]
    joined = " ".join(command)
    assert "-o BatchMode=yes" in joined
    assert "-o ConnectTimeout=20" in joined
    assert "-p 2222 -l me -o ProxyJump=b" in joined


def test_gcloud_is_called_for_one_worker_at_a_time(tmp_path: Path) -> None:
    inventory = load(tmp_path, GCLOUD)
    assert inventory.gcloud is not None
    command = GcloudTransport(inventory.gcloud).command_line(3, "true")
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-pod"]
    assert command[6:] == ["--zone=us-central2-b", "--quiet", "--worker=3", "--command=true"]
