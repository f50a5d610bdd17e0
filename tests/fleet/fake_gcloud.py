"""Plays `gcloud compute tpus tpu-vm ssh`: writes each command line down and runs its --command on `workers` of its own.

A worker is a home folder: FAKE_GCLOUD/worker-N. Like gcloud, --worker=all runs all at once and mixes their output, and
a single worker gets gcloud's stdin; an unknown worker is an error. FAKE_GCLOUD/unreachable names a worker, one a line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    root = Path(os.environ["FAKE_GCLOUD"])
    with (root / "calls.jsonl").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments[:4] != ["compute", "tpus", "tpu-vm", "ssh"]:
        return fail(f"ERROR: (gcloud) Invalid choice: {' '.join(arguments[:4])!r}")
    flags = dict(item[2:].split("=", 1) for item in arguments[5:] if "=" in item)
    if unknown := flags.keys() - {"zone", "project", "worker", "command"}:
        return fail(f"ERROR: (gcloud.compute.tpus.tpu-vm.ssh) unrecognized arguments: {sorted(unknown)}")
    if "zone" not in flags:
        return fail("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) the [zone] property is not set")
    homes = sorted(root.glob("worker-*"))
    wanted = flags.get("worker", "0")
    chosen = homes if wanted == "all" else [home for home in homes if home.name == f"worker-{wanted}"]
    if not chosen:
        return fail(f"ERROR: (gcloud.compute.tpus.tpu-vm.ssh) Invalid value for [--worker]: {wanted}")
    gone = (root / "unreachable").read_text().split() if (root / "unreachable").exists() else []
    started = []
    for home in chosen:
        print(f"SSH: Attempting to connect to worker {home.name.partition('-')[2]}...", file=sys.stderr)
        if home.name in gone:
            print("ssh: connect to host 10.0.0.9 port 22: Connection timed out", file=sys.stderr)
            return fail("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].", 255)
        stdin = subprocess.DEVNULL if wanted == "all" else None
        started.append(subprocess.Popen(["bash", "-c", flags["command"]], stdin=stdin, cwd=home, env=login(home)))
    return max(process.wait() for process in started)


def login(home: Path) -> dict[str, str]:
    """What sshd gives to a command: nothing of the operator's environment but the way to programs."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "USER": "worker"}


def fail(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
