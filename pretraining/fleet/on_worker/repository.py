"""The clone on a worker: which commit it has, whether it is clean, and bringing it to one commit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pretraining.fleet.on_worker.processes import Refused

FETCH_S = 600.0


def state(checkout: Path) -> dict[str, Any] | None:
    """sha, files that differ from it, and origin; None where there is no clone."""
    if not (checkout / ".git").exists():
        return None
    return {
        "sha": git(checkout, "rev-parse", "HEAD"),
        "dirty": git(checkout, "status", "--porcelain").splitlines(),
        "origin": git(checkout, "config", "--get", "--default", "", "remote.origin.url"),
    }


def deploy(checkout: Path, repository: str | None, sha: str) -> dict[str, Any]:
    """Clones where there is no clone, fetches, checks `sha` out, detached; returns the new `state`.

    Raises Refused for a folder that is no clone, files that differ, a clone of something else, a commit that its
    origin does not have.
    """
    before = state(checkout)
    if before is None:
        _clone(checkout, repository)
    elif before["dirty"]:
        raise Refused(
            "{} has files that differ from its commit: {}. Look at them there, then: git stash -u, or git checkout "
            "and git clean".format(checkout, listed(before["dirty"]))
        )
    elif repository is not None and before["origin"] != repository:
        raise Refused(
            "{} is a clone of {}, the inventory says {}. Move the folder away, or: git remote set-url origin {}".format(
                checkout, before["origin"], repository, repository
            )
        )
    git(checkout, "fetch", "--quiet", "--tags", "origin", timeout_s=FETCH_S)
    try:
        git(checkout, "cat-file", "-e", sha + "^{commit}")
    except Refused:
        origin = git(checkout, "config", "--get", "remote.origin.url")
        raise Refused(f"its origin {origin} has no commit {sha}; push it there") from None
    git(checkout, "checkout", "--quiet", "--detach", sha)
    after = state(checkout)
    assert after is not None
    return after


def listed(dirty: list[str], most: int = 5) -> str:
    """The first names of `git status --porcelain`, and how many more there are."""
    names = [line[3:] for line in dirty]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def git(folder: Path, *arguments: str, timeout_s: float = 60.0) -> str:
    """Output of git in `folder`; raises Refused with git's own words."""
    command = ["git", *arguments]
    # Nobody is there to answer: a repository that wants a password fails at once.
    environment = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=str(folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except FileNotFoundError:
        raise Refused("git is not installed; on Debian and Ubuntu: sudo apt-get install git") from None
    except subprocess.TimeoutExpired:
        raise Refused(f"git {arguments[0]} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise Refused("{} in {}: {}".format(" ".join(command), folder, words))
    return done.stdout.decode(errors="replace").rstrip("\n")


def _clone(checkout: Path, repository: str | None) -> None:
    """A clone under a temporary name first: one that is cut short is never taken for a clone."""
    if checkout.exists() and any(checkout.iterdir()):
        raise Refused(f"{checkout} exists and is no clone; move it away, or set checkout: in the inventory")
    if repository is None:
        raise Refused(f"there is no clone in {checkout}; set repository: in the inventory, or clone there")
    checkout.parent.mkdir(parents=True, exist_ok=True)
    partial = checkout.with_name(f".{checkout.name}.cloning-{os.getpid()}")
    try:
        git(checkout.parent, "clone", "--quiet", repository, str(partial), timeout_s=FETCH_S)
        if checkout.exists():
            checkout.rmdir()
        partial.rename(checkout)
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)
