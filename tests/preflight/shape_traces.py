"""Traces of a tiny autoencoder in shares on 4 devices, from values and from shapes alone, in a process of its own:
`python -m tests.preflight.shape_traces FOLDER`.
"""

import os
import sys
from pathlib import Path

import torch

from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import load_as
from pretraining.preflight.trace import trace
from pretraining.tasks.autoencoder_objective import AutoencoderObjective

CONFIG = Path(__file__).parents[2] / "configs" / "autoencoder_phantom.yaml"
NUM_CHIPS = 4
TINY = (
    "model.preset=tiny", "train.sharding=full", "batch.per_core_batch_size=1", f"batch.global_batch_size={NUM_CHIPS}",
)  # fmt: skip


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, from_shapes in (("values", False), ("shapes", True)):
        objective = AutoencoderObjective(load_as(AutoencoderRunConfig, CONFIG, TINY))
        objective.builds_from_shapes = from_shapes
        (folder / name).mkdir()
        trace(objective.config, objective, NUM_CHIPS, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # before anything can run what is still pending
