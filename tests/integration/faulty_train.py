"""`python -m pretraining.train` with one fault built in from outside: FAULT=KIND:STEP or KIND@RANK:STEP.

At the start of the update after STEP: crash raises, hang never comes back, kill is SIGKILL to the rank itself, term is
SIGTERM to the launcher. nan: from that update on the loss is not a number. vanish: the folder of checkpoints is gone.
fill: once a checkpoint is durable, the file FILL takes all that is free on its disk; it is gone FREE_AFTER updates
later, where that is set. shrink: from that update on features say next to nothing. unreadable: a volume cannot be
read when the rank validates next, and once only.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import pretraining.loop
import pretraining.tasks.vjepa
import pretraining.tasks.vjepa_objective
from data_setup.datasets import BadVolume
from pretraining.train import main

kind, _, number = os.environ["FAULT"].partition(":")
kind, _, rank = kind.partition("@")
healthy_step, healthy_loss = pretraining.loop.train_step, pretraining.tasks.vjepa_objective.VJEPAObjective.loss
healthy_batches = pretraining.tasks.vjepa.validation_batches
updates = 0


def never_come_back() -> None:
    while True:
        time.sleep(1)


def break_something() -> None:
    match kind:
        case "crash":
            raise RuntimeError("injected crash")
        case "hang":
            never_come_back()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(int(os.environ["LAUNCHER_PID"]), signal.SIGTERM)
        case "vanish":
            folder = Path(os.environ["VANISH"])
            while not folder.is_file():  # a save that is under way may make the folder anew
                with suppress(OSError):
                    folder.rename(folder.with_name(f"gone-{time.monotonic_ns()}"))
                    folder.write_text("a file where the folder was")
        case "unreadable":
            pretraining.tasks.vjepa.validation_batches = unreadable_once
        case "fill":
            while not list(Path(os.environ["FILL"]).parent.glob("*/checkpoints/latest.json")):
                time.sleep(0.1)
            with open(os.environ["FILL"], "wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(file.name).free)


def step(*args, **kwargs):
    global updates
    if updates == int(number) and rank in ("", os.environ.get("RANK", "0")):
        break_something()
    if kind == "fill" and "FREE_AFTER" in os.environ and updates == int(number) + int(os.environ["FREE_AFTER"]):
        os.unlink(os.environ["FILL"])
    updates += 1
    metrics = healthy_step(*args, **kwargs)
    if kind == "shrink" and updates > int(number):
        shrink(args[1])
    return metrics


def unreadable_once(*_args, **_kwargs):
    pretraining.tasks.vjepa.validation_batches = healthy_batches
    raise BadVolume("a-scan", "FileNotFoundError")


def shrink(model):
    """Features of all scans become nearly one vector."""
    with torch.no_grad():
        for encoder in (model.context_encoder, model.target_encoder):
            encoder.norm.weight.fill_(1e-3)


def loss(self, model, batch):
    value, extra = healthy_loss(self, model, batch)
    return (value * float("nan") if kind == "nan" and updates > int(number) else value), extra


pretraining.loop.train_step = step
pretraining.tasks.vjepa_objective.VJEPAObjective.loss = loss
if __name__ == "__main__":
    os.environ["LAUNCHER_PID"] = str(os.getpid())
    sys.exit(main(sys.argv[1:]))
