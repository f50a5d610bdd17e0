"""What a save takes from training, beside torch.save, dcp.async_save, safetensors: `python -m benchmarks.checkpoint`.

The state: 29.1 M trainable parameters of the default model, an EMA copy of each and AdamW's two moments, 465 MB (a run
saves 436 MB, since its predictor has no EMA copy). All contestants save the same state to the same disk, in turns, in
one process. `stall` is the time until the next step may change the weights, `durable` until the save returns or its
thread ends; ours are hashed, fsynced and named by a manifest, the others are not fsynced. `peak MB` is the resident
memory that a save adds at most, host buffers included. safetensors maps the file: its `restore` reads nothing yet.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from benchmarks.report import median, parse_arguments, peak_memory_mib, print_report
from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.host_state import num_bytes
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig

Timing = tuple[float, float]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__ or "", argv)
    state = run_state()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
        dist.init_process_group("gloo", rank=0, world_size=1)
        manager = CheckpointManager(LocalStore(folder / "ours"), CheckpointSettings(keep_last=1), run_id="b")
        saver = BackgroundSaver(manager)
        contestants: dict[str, Callable[[int], Timing]] = {
            "ours": lambda turn: save_ours(saver, turn, state),
            "torch.save": lambda turn: save_torch(folder / "state.pt", state),
            "dcp.async_save": lambda turn: save_dcp(folder / f"dcp-{turn}", state),
            "safetensors": lambda turn: save_safetensors(folder / "state.safetensors", state),
        }
        peaks = {}  # ours first, into fresh memory; it keeps its buffers, as before a run's first step
        for name, save in contestants.items():
            peaks[name] = peak_added_mb(lambda save=save: save(0))  # type: ignore[misc]
        timings: dict[str, list[Timing]] = {name: [] for name in contestants}
        for turn in range(1, 4 if arguments.quick else 8):
            for name, save in contestants.items():
                timings[name].append(save(turn))
        restores = {
            "torch.save": lambda: torch.load(folder / "state.pt", weights_only=True),
            "safetensors": lambda: load_file(folder / "state.safetensors"),
            "ours": manager.restore,
        }
        figures: dict[str, dict[str, object]] = {
            name: {
                "stall s": median([stall for stall, _ in taken]),
                "durable s": median([durable for _, durable in taken]),
                "peak MB": peaks[name],
            }
            for name, taken in timings.items()
        }
        for name, restore in restores.items():
            figures[name]["restore s"] = median([timed(restore) for _ in range(3)])
        dist.destroy_process_group()
    stalls = {name: [stall for stall, _ in taken] for name, taken in timings.items()}
    ratios = {
        f"stall of {name} / ours": median([a / b for a, b in zip(stalls[name], stalls["ours"], strict=True)])
        for name in stalls
        if name != "ours"
    }
    figures["state"] = {"MB": round(num_bytes(state) / 1e6, 1), "tensors": sum(len(group) for group in state.values())}
    print_report("checkpoint", figures, ratios)


def run_state() -> dict[str, dict[str, torch.Tensor]]:
    """Weights, EMA copies and two moments of every trainable parameter, by name."""
    model = VJEPA3D(VJEPA3DConfig(image_size=(64, 384, 384)))
    trainable = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    del model  # frees its own EMA copies: what follows takes their place, so that no save finds memory left over
    moments = {f"{name}.{kind}": torch.rand_like(value) for name, value in trainable.items() for kind in ("m", "v")}
    return {
        "model": trainable,
        "ema": {name: value.clone() for name, value in trainable.items()},
        "optimizer": moments,
    }


def peak_added_mb(save: Callable[[], object]) -> int | None:
    """Resident memory at its most during `save`, above what was there before; None where the kernel cannot tell."""
    counters = Path("/proc/self/clear_refs")
    if not counters.exists():
        return None
    counters.write_text("5")  # the peak begins anew: proc(5)
    before = peak_memory_mib()
    save()
    peak = peak_memory_mib()
    return None if before is None or peak is None else round((peak - before) * 2**20 / 1e6)


def save_ours(saver: BackgroundSaver, step: int, state: dict[str, Any]) -> Timing:
    start = time.perf_counter()
    assert saver.save(step, state, {}, {})
    stall = time.perf_counter() - start
    saver.close()
    assert saver.num_failed == 0
    return stall, time.perf_counter() - start


def save_torch(path: Path, state: dict[str, Any]) -> Timing:
    taken = timed(lambda: torch.save(state, path))
    return taken, taken


def save_dcp(folder: Path, state: dict[str, Any]) -> Timing:
    start = time.perf_counter()
    future = dcp.async_save(state, checkpoint_id=str(folder))
    stall = time.perf_counter() - start
    future.result()  # type: ignore[union-attr]
    durable = time.perf_counter() - start
    shutil.rmtree(folder)
    return stall, durable


def save_safetensors(path: Path, state: dict[str, Any]) -> Timing:
    flat = {f"{group}.{name}": tensor for group, tensors in state.items() for name, tensor in tensors.items()}
    taken = timed(lambda: save_file(flat, path))
    return taken, taken


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
