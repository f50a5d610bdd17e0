"""`python -m pretraining.train` with one fault built in from outside: FAULT=crash:STEP or FAULT=nan:STEP.

crash: the process raises at the start of the update after STEP. nan: from that update on the loss is not a number.
"""

import os
import sys

import pretraining.loop
import pretraining.tasks.vjepa
from pretraining.train import main

kind, _, number = os.environ["FAULT"].partition(":")
healthy_step, healthy_loss = pretraining.loop.train_step, pretraining.tasks.vjepa.VJEPATask.loss
updates = 0


def step(*args, **kwargs):
    global updates
    if kind == "crash" and updates == int(number):
        raise RuntimeError("injected crash")
    updates += 1
    return healthy_step(*args, **kwargs)


def loss(self, model, batch):
    value, extra = healthy_loss(self, model, batch)
    return (value * float("nan") if kind == "nan" and updates > int(number) else value), extra


pretraining.loop.train_step = step
pretraining.tasks.vjepa.VJEPATask.loss = loss
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
