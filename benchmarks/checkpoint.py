"""What a save takes from training, beside torch.save, dcp.async_save, safetensors: `python -m benchmarks.checkpoint`.

The state is that of a run: 29.1 M trainable parameters, their EMA copies and AdamW's two moments. All contestants save
the same state to the same disk, in turns, in one process. `stall` is the time until the next step may change the
weights, `durable` until the bytes are where a restart finds them; ours are hashed, fsynced and named by a manifest.
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
from safetensors.torch import save_file

from benchmarks.report import median, parse_arguments, peak_memory_mib, print_report
from oct_foundation.checkpoints.background import BackgroundSaver
from oct_foundation.checkpoints.local import LocalStore
from oct_foundation.checkpoints.manager import CheckpointManager
from oct_foundation.checkpoints.retention import CheckpointSettings
from oct_foundation.models.vjepa3d import VJEPA3D, VJEPA3DConfig

Timing = tuple[float, float]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__ or "", argv)
    rounds = 3 if arguments.quick else 7
    state = run_state()
    size = sum(tensor.nbytes for group in state.values() for tensor in group.values())
    before = peak_memory_mib() or 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
        dist.init_process_group("gloo", rank=0, world_size=1)
        manager = CheckpointManager(LocalStore(folder / "ours"), CheckpointSettings(keep_last=1), run_id="b")
        saver = BackgroundSaver(manager)
        saver.save_and_wait(0, state, {}, {})  # the first copy makes the buffers, as before a run's first step
        ours_peak = (peak_memory_mib() or 0) - before
        contestants: dict[str, Callable[[int], Timing]] = {
            "ours": lambda turn: save_ours(saver, turn + 1, state),
            "torch.save": lambda turn: save_torch(folder / "state.pt", state),
            "dcp.async_save": lambda turn: save_dcp(folder / f"dcp-{turn}", state),
            "safetensors": lambda turn: save_safetensors(folder / "state.safetensors", state),
        }
        timings: dict[str, list[Timing]] = {name: [] for name in contestants}
        for turn in range(rounds):
            for name, save in contestants.items():
                timings[name].append(save(turn))
        figures = {
            name: {"stall s": median([t[0] for t in taken]), "durable s": median([t[1] for t in taken])}
            for name, taken in timings.items()
        }
        figures["restore s"] = {"ours": median([timed(manager.restore) for _ in range(3)])}
        dist.destroy_process_group()
    stalls = {name: [stall for stall, _ in taken] for name, taken in timings.items()}
    ratios = {
        f"stall of {name} / ours": median([a / b for a, b in zip(stalls[name], stalls["ours"], strict=True)])
        for name in stalls
        if name != "ours"
    }
    figures["state MB"] = {"size": round(size / 1e6, 1), "peak above state, ours": round(ours_peak * 2**20 / 1e6)}
    print_report("checkpoint", figures, ratios)


def run_state() -> dict[str, dict[str, torch.Tensor]]:
    """Weights (EMA included) and two moments per trainable parameter, by name."""
    model = VJEPA3D(VJEPA3DConfig(image_size=(64, 384, 384)))
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    moments = {f"{name}.{kind}": torch.rand_like(value.data) for name, value in named for kind in ("m", "v")}
    return {"model": {name: value.detach() for name, value in model.named_parameters()}, "optimizer": moments}


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
