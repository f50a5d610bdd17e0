"""`octfm fleet start`: the same command on every worker, after a look that nothing is in its way."""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretraining.config_file import ConfigError
from pretraining.fleet.channel import Answer
from pretraining.fleet.inventory import Inventory, refuse_secrets
from pretraining.fleet.status import state_of
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_troubles, short

# Most wrong starts end within this time: a missing module, a wrong key, a port that is taken.
SETTLE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """arguments: of run_tpu_xla.sh; started: OCTFM_STARTED, the time in the run folder's name, the same everywhere."""

    arguments: tuple[str, ...]
    started: str

    @property
    def device(self) -> str:
        """What the command line says, `auto` where it says nothing."""
        joined = " ".join(self.arguments)
        given = re.findall(r"(?:--device[ =]|runtime\.device=)(\w+)", joined)
        return given[-1] if given else "auto"


def start(workers: Workers, arguments: Sequence[str], *, again: bool) -> int:
    """Starts the job; returns 1 where a worker is not ready or its process ends at once.

    again: the last job's command and run folder, and `arguments` behind them. Raises ConfigError for a secret on the
    command line, for pass_env that is not set, for workers that would each train alone.
    """
    refuse_secrets(arguments)
    secret = workers.inventory.secrets()
    answers = workers.ask("survey", timeout_s=60, ports=workers.inventory.ports)
    if print_troubles(workers, answers) or _in_the_way(workers, answers):
        complain("not started, on no worker")
        return TROUBLE
    wanted = _wanted(answers, arguments, again)
    sha = answers[0].reply["clone"]["sha"]
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    print(f"starting job {name} at {short(sha)}: run_tpu_xla.sh {' '.join(wanted.arguments)}", flush=True)
    rendezvous = _rendezvous(workers.inventory, answers, wanted.device)
    each = [
        {
            "job": {
                "name": name,
                "worker": worker,
                "sha": sha,
                "arguments": wanted.arguments,
                "started": wanted.started,
            },
            "environment": {**_python(workers.inventory), **workers.inventory.env, **secret, **rendezvous[worker]},
        }
        for worker in range(len(answers))
    ]
    troubles = print_troubles(workers, workers.ask("start", timeout_s=60, each=each))
    time.sleep(SETTLE_S)
    troubles += _not_running(workers, workers.ask("status", timeout_s=60, num_lines=10), name)
    if troubles:
        complain("the job does not run on all workers: octfm fleet stop, mend it, octfm fleet start --again")
        return TROUBLE
    print(f"job {name} runs on all {len(answers)} workers. octfm fleet status, octfm fleet logs -f")
    return DONE


def _wanted(answers: Sequence[Answer], arguments: Sequence[str], again: bool) -> Wanted:
    if not again:
        return Wanted(arguments=tuple(arguments), started=time.strftime("%Y%m%d-%H%M%S"))
    last = answers[0].reply["last"]
    if last is None:
        raise ConfigError("--again: worker 0 has no earlier job; give a configuration")
    return Wanted(arguments=(*last["arguments"], *arguments), started=last["started"])


def _in_the_way(workers: Workers, answers: Sequence[Answer]) -> bool:
    """Names jobs that run, clones that are absent or changed, commits that differ, ports that are taken."""
    found = []
    for answer in answers:
        reply, who = answer.reply, workers.name(answer.worker)
        found += [f"{who}: job {tag} runs; octfm fleet stop" for tag in reply["jobs"]]
        found += [f"{who}: {held}" for held in reply["ports_held"]]
        if reply["clone"] is None:
            found.append(f"{who}: there is no clone; octfm fleet deploy")
        elif reply["clone"]["dirty"]:
            found.append(
                f"{who}: {len(reply['clone']['dirty'])} files differ from its commit; octfm fleet deploy names them"
            )
    commits = {answer.worker: answer.reply["clone"]["sha"] for answer in answers if answer.reply["clone"]}
    if len(set(commits.values())) > 1:
        listing = ", ".join(f"worker {worker} {short(sha)}" for worker, sha in commits.items())
        found.append(f"the workers are at different commits: {listing}; octfm fleet deploy")
    for line in found:
        complain(line)
    return bool(found)


def _python(inventory: Inventory) -> Mapping[str, str]:
    return {"OCTFM_PYTHON": inventory.python} if inventory.python else {}


def _rendezvous(inventory: Inventory, answers: Sequence[Answer], device: str) -> list[Mapping[str, str]]:
    """Per worker what oct_foundation/runtime/native.py reads; nothing for a TPU, whose ranks find one another.

    Raises ConfigError where every worker would silently train alone.
    """
    facts: list[Mapping[str, Any]] = [answer.reply for answer in answers]
    tpu = [device in ("auto", "xla") and fact["num_chips"] > 0 for fact in facts]
    if all(tpu) or len(facts) == 1:
        return [{}] * len(facts)
    if any(tpu):
        raise ConfigError(f"workers without TPU chips: {[worker for worker, has in enumerate(tpu) if not has]}")
    if device == "xla" or (device == "auto" and not all(fact["num_gpus"] for fact in facts)):
        raise ConfigError(
            f"--device {device}, and there are no TPU chips: each worker would train alone. Give --device cpu or cuda"
        )
    if device != "cpu" and any(fact["num_gpus"] > 1 for fact in facts):
        raise ConfigError(
            "hosts with several GPUs: fleet starts one rank per host, and the other GPUs would be idle. Start them "
            "by torchrun, with --nnodes and --rdzv-endpoint"
        )
    address = inventory.master_address or (inventory.hosts[0].address if inventory.hosts else None)
    if address is None:
        raise ConfigError("set master_address: in the inventory, the address of worker 0 as the other workers see it")
    common = {"WORLD_SIZE": str(len(facts)), "LOCAL_RANK": "0"}
    common |= {"MASTER_ADDR": address, "MASTER_PORT": str(inventory.rendezvous_port)}
    return [{**common, "RANK": str(worker)} for worker in range(len(facts))]


def _not_running(workers: Workers, answers: Sequence[Answer], name: str) -> int:
    """Names each worker whose new process has ended already, with its last lines; returns how many."""
    troubles = print_troubles(workers, answers)
    for answer in answers:
        reply = answer.reply
        if reply.get("job") == name and reply["state"] != "running" and reply["code"] != 0:
            troubles += 1
            complain(f"{workers.name(answer.worker)}: {state_of(reply)}")
            for line in reply["lines"]:
                complain(f"    {line}")
    return troubles
