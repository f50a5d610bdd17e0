"""`octfm fleet deploy`: one pushed commit on all workers, and the proof that it is the same everywhere."""

from pathlib import Path

from pretraining.config_file import ConfigError
from pretraining.fleet.on_worker.processes import Refused
from pretraining.fleet.on_worker.repository import FETCH_S, git, listed
from pretraining.fleet.workers import DONE, TROUBLE, Workers, complain, print_table, print_troubles, short


def deploy(workers: Workers, here: Path, revision: str | None, inventory: Path) -> int:
    """Brings all workers to `revision` of the clone `here` (None: its HEAD). `inventory` may lie there untracked.

    Raises ConfigError for what is not pushed.
    """
    sha = pushed_commit(here, revision, inventory)
    print(f"deploying {sha}: {git(here, 'log', '-1', '--format=%s', sha)}", flush=True)
    answers = workers.ask("deploy", timeout_s=2 * FETCH_S, repository=workers.inventory.repository, sha=sha)
    troubles = print_troubles(workers, answers)
    rows = []
    for answer in answers:
        if answer.trouble:
            continue
        clone = answer.reply["clone"]
        rows.append((str(answer.worker), answer.label, short(clone["sha"]), "changes" if clone["dirty"] else "clean"))
        if clone["sha"] != sha or clone["dirty"]:
            complain(f"{workers.name(answer.worker)}: is at {clone['sha']}, {listed(clone['dirty']) or 'clean'}")
            troubles += 1
    print_table(("worker", "host", "commit", "tree"), rows)
    if troubles:
        complain(f"not deployed: {troubles} of {len(answers)} workers have not got {short(sha)}")
        return TROUBLE
    print(f"all {len(answers)} workers are at {sha}, clean")
    return DONE


def pushed_commit(here: Path, revision: str | None, inventory: Path) -> str:
    """The full SHA of what may be deployed; raises ConfigError for files that differ and for what no remote has."""
    try:
        here = Path(git(here, "rev-parse", "--show-toplevel"))
        sha = git(here, "rev-parse", "--verify", "--quiet", f"{revision or 'HEAD'}^{{commit}}")
        changes = git(here, "status", "--porcelain").splitlines()
        own = [
            line for line in changes if line.startswith("?? ") and (here / line[3:]).resolve() == inventory.resolve()
        ]
        if dirty := [line for line in changes if line not in own]:
            raise ConfigError(
                f"{here} has files that differ from its commit: {listed(dirty)}. The workers would not get them: "
                "commit and push, or git stash -u"
            )
        if not git(here, "remote"):
            raise ConfigError(
                f"{here} has no remote, so the workers have nowhere to fetch from: git remote add origin URL"
            )
        git(here, "fetch", "--quiet", timeout_s=FETCH_S)
        if not git(here, "branch", "--remotes", "--contains", sha):
            subject = git(here, "log", "-1", "--format=%h %s", sha)
            raise ConfigError(f"commit {subject} is on no branch of a remote: git push, then deploy again")
    except Refused as refusal:
        raise ConfigError(str(refusal)) from None
    return sha
