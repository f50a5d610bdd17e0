"""Chooses the runtime and starts one worker per device.

The parent never touches a device: `xmp.spawn` fails once it has been touched, and a check that fails early is free.
"""

import glob
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

from oct_foundation.runtime.base import Runtime, RuntimeKind, Sharding
from oct_foundation.runtime.child_watch import ChildWatch
from oct_foundation.runtime.exits import ExitCode
from oct_foundation.runtime.stopping import SignalListener, forward_to_ranks, signals_blocked

DeviceChoice = Literal["auto", "xla", "cuda", "cpu"]
T = TypeVar("T")
Worker = Callable[[Runtime, T], int]

log = logging.getLogger(__name__)


def tpu_present() -> bool:
    """Whether this host has TPU chips, told by their device files (v4 and older: accel; v5 and newer: vfio)."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def choose_kind(choice: DeviceChoice) -> RuntimeKind:
    """TPU if there is one, else CUDA, else XLA on the CPU where torch-xla exists, else plain CPU.

    Raises ValueError when the wanted device is not there.
    """
    import importlib.util

    import torch

    has_xla = importlib.util.find_spec("torch_xla") is not None
    match choice:
        case "auto":
            if has_xla and tpu_present():
                return "xla"
            return "cuda" if torch.cuda.is_available() else "xla" if has_xla else "cpu"
        case "xla" if not has_xla:
            raise ValueError(
                "device xla: torch-xla is not installed (it exists for Linux x86-64 only); use cpu or cuda"
            )
        case "cuda" if not torch.cuda.is_available():
            raise ValueError("device cuda: torch finds no CUDA device here; use --device cpu")
        case _:
            return choice


def native_ranks(kind: Literal["cuda", "cpu"], wanted: int | None = None) -> int:
    """Ranks of this host where torchrun has not started them: `wanted`, else one per visible GPU, one on a CPU.

    Raises ValueError where more are wanted than there are GPUs.
    """
    if kind == "cpu":
        return wanted or 1
    import torch

    present = torch.cuda.device_count()
    if wanted is not None and wanted > present:
        raise ValueError(f"{wanted} processes are wanted, one per GPU, and torch sees {present} GPU(s) here")
    return wanted or present


def launch(
    kind: RuntimeKind, worker: Worker[T], argument: T, num_processes: int | None = None, sharding: Sharding = "none"
) -> int:
    """Runs `worker(runtime, argument)` once per device and returns the exit code, 0 if all ranks returned 0.

    xla: xmp.spawn, all chips of this host, or one process of XLA on the CPU. cuda, cpu: `native_ranks` processes, or
    this one where there is one, or where torchrun has started it. Sharded on XLA: this process is the rank, and
    drives all chips of this host.
    """
    if kind == "xla":
        return _run_spmd(worker, argument) if sharding == "full" else _spawn_xla(worker, argument)
    if "RANK" not in os.environ and (count := native_ranks(kind, num_processes)) > 1:
        return _spawn_native(kind, worker, argument, count, sharding)
    if SignalListener.installed is not None:
        SignalListener.installed.divert(_leave_before_training)
    return _run(_native_runtime(kind, sharding), worker, argument)


def _native_runtime(kind: Literal["cuda", "cpu"], sharding: Sharding) -> Runtime:
    """Of a rank that torchrun's environment describes; one that is alone has nothing to shard over."""
    from oct_foundation.runtime.native import NativeRuntime

    if sharding == "full" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from oct_foundation.runtime.sharded import ShardedRuntime

        return ShardedRuntime(kind)
    if sharding == "full":
        log.info("train.sharding=full: there is one process and nothing to shard over, the model stays whole")
    return NativeRuntime(kind)


def _leave_before_training(name: str) -> None:
    """While a rank waits for the others, in C, where no exception reaches it; there is nothing to save yet."""
    print(f"{name} while waiting for the other ranks", file=sys.stderr, flush=True)
    os._exit(ExitCode.STOPPED)


@contextmanager
def _ranks_watched() -> Iterator[None]:
    """Around a spawn: a rank that is killed is named with its memory; where this process listens to stop signals, ranks
    are born deaf to them and hear of them by this process only.
    """
    listener = SignalListener.installed
    if listener is not None:
        listener.divert(forward_to_ranks())
    with ChildWatch() as watch, signals_blocked() if listener else nullcontext():
        try:
            yield
        finally:
            if found := watch.post_mortem():
                log.error("%s", found)


def _spawn_xla(worker: Worker[T], argument: T) -> int:
    on_tpu = tpu_present()
    os.environ.setdefault("PJRT_DEVICE", "TPU" if on_tpu else "CPU")
    import torch_xla.distributed.xla_multiprocessing as xmp

    nprocs = None if os.environ["PJRT_DEVICE"] == "TPU" else 1
    try:
        with _ranks_watched():
            xmp.spawn(_xla_worker, args=(worker, argument), nprocs=nprocs)
    except SystemExit as ended:  # sys.exit of a rank, brought here by the pool
        return ended.code if isinstance(ended.code, int) else 1
    except BrokenProcessPool:  # a rank left without a word to the pool; it has written down why, or was killed
        return 1
    return 0


def _xla_worker(_index: int, worker: Worker[T], argument: T) -> None:
    from oct_foundation.runtime.xla import XlaRuntime

    code = _run(XlaRuntime(), worker, argument)
    if code:
        sys.exit(code)


def _run_spmd(worker: Worker[T], argument: T) -> int:
    os.environ.setdefault("PJRT_DEVICE", "TPU" if tpu_present() else "CPU")
    from oct_foundation.runtime.spmd import SpmdRuntime

    if SignalListener.installed is not None:
        SignalListener.installed.divert(_leave_before_training)
    return _run(SpmdRuntime(), worker, argument)


def _spawn_native(kind: Literal["cuda", "cpu"], worker: Worker[T], argument: T, count: int, sharding: Sharding) -> int:
    import torch.distributed as dist
    import torch.multiprocessing

    # Here, and not in rank 0, which would bind seconds after somebody had found the port free.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    try:
        with _ranks_watched():
            torch.multiprocessing.spawn(
                _native_worker, args=(kind, worker, argument, count, store.port, sharding), nprocs=count
            )
    except torch.multiprocessing.ProcessExitedException as ended:  # the rank has said why
        return ended.exit_code if ended.exit_code > 0 else 1
    return 0


def _native_worker(
    rank: int,
    kind: Literal["cuda", "cpu"],
    worker: Worker[T],
    argument: T,
    count: int,
    port: int,
    sharding: Sharding,
) -> None:
    import torch

    rendezvous = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in rendezvous.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is there: rank 0 makes none
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    code = _run(_native_runtime(kind, sharding), worker, argument)
    if code:
        sys.exit(code)


def _run(runtime: Runtime, worker: Worker[T], argument: T) -> int:
    """The top of a worker that has none of its own: a rank that raises shows its traceback and leaves at once.

    Others would wait in a collective for a rank that only raised; a spawn parent shows it as BrokenProcessPool.
    """
    try:
        code = worker(runtime, argument)
    except BaseException:
        if runtime.world_size == 1:
            raise
        print(f"rank {runtime.rank} of {runtime.world_size} failed:", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    runtime.close()
    return code
