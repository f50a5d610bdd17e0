"""How far are the phantoms from real scans?  python -m benchmarks.domain_gap SCANS [--json FILE]

For each kind of feature: the distance of a real scan to its nearest phantom, over that of a phantom to its nearest
other phantom; medians. 1: a real scan lies among the phantoms; far above: the phantoms say nothing of it in this
space. Features of an encoder that was trained on phantoms, of the same network untrained, and of voxels.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from benchmarks.recipes import MILD
from benchmarks.report import machine_facts, versions
from benchmarks.short_run import start, train
from benchmarks.study import NUM_TRAIN, NUM_VAL, TRAINING_EYES_SEED, configuration, features, judged_eyes
from data_setup.index import PreparedSet
from data_setup.phantom_benchmark import BenchmarkSettings, write_benchmark
from data_setup.prepare import PrepareSettings, prepare
from data_setup.sources import DirectorySource
from oct_foundation.diagnostics.voxel_controls import voxel_controls
from pretraining.tasks.vjepa import VJEPATask


def gap(phantoms: np.ndarray, scans: np.ndarray) -> float:
    """Features float [M, F] and [K, F], each standardised by the phantoms; the ratio of median distances."""
    scaler = StandardScaler().fit(phantoms)
    known, asked = scaler.transform(phantoms), scaler.transform(scans)
    neighbours = NearestNeighbors(n_neighbors=2).fit(known)
    among = neighbours.kneighbors(known)[0][:, 1]  # the nearest of all is itself
    return float(np.median(neighbours.kneighbors(asked, 1)[0]) / np.median(among))


def real_scans(folder: Path, image_size: tuple[int, int, int], work: Path) -> np.ndarray:
    """All scans of a folder that can be read, resized as for training: uint8 [K, D, H, W]."""
    settings = PrepareSettings(image_size=image_size, include_nonvolumetric=True)
    prepared = prepare(DirectorySource(folder), work, settings, num_workers=1)
    return np.stack([prepared.volume(row) for row in prepared.accepted()])


def main(argv: Sequence[str] | None = None) -> None:
    """Trains an encoder on phantoms, as the study does, and prints a gap per kind of feature."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="a folder of real OCT scans (DICOM)")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "eyes"
        settings = BenchmarkSettings(num_volumes=NUM_TRAIN + NUM_VAL, seed=TRAINING_EYES_SEED, ranges=MILD)
        write_benchmark(root, settings, num_train=NUM_TRAIN, num_val=NUM_VAL)
        config = configuration("vjepa", 1, arguments.steps, root)
        _, eyes = judged_eyes()
        scans = torch.from_numpy(real_scans(arguments.scans, config.model.image_size, Path(temporary) / "scans"))[
            :, None
        ]
        task = VJEPATask(config, PreparedSet.load(root))
        state = start(task, config)
        gaps = {
            "untrained encoder": gap(*(features(state.model.target_encoder, some).pooled for some in (eyes, scans)))
        }
        train(task, config, state, arguments.steps)
        gaps["trained encoder"] = gap(*(features(state.model.target_encoder, some).pooled for some in (eyes, scans)))
    together = torch.cat([eyes, scans])[:, 0].numpy()
    controls = voxel_controls(together, range(len(together)), config.grid, num_components=1)
    for name in ("patch_means", "intensity"):
        gaps[name] = gap(controls[name].pooled[: len(eyes)], controls[name].pooled[len(eyes) :])
    found = {"num_scans": len(scans), "num_phantoms": len(eyes), "steps": arguments.steps, "gaps": gaps}
    for name, value in gaps.items():
        print(f"{name:20} {value:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "machine": machine_facts(), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
