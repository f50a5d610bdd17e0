import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from oct_foundation.runtime.native import NativeRuntime, cpu_has_bf16
from oct_foundation.runtime.select import choose_kind, launch, native_ranks


@dataclass(frozen=True)
class OneTensor:
    value: torch.Tensor

    def to(self, device, non_blocking=False):
        return OneTensor(self.value.to(device))


def report_ranks(runtime, folder: Path) -> int:
    """Worker of two processes: everything that ranks exchange, written down by each of them."""
    seen = {
        "gathered": runtime.gather({"rank": runtime.rank}),
        "mean": runtime.mean_over_ranks({"loss": float(runtime.rank)}),
    }
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, float(runtime.rank + 1))
    replica = runtime.replicate(model, torch.optim.SGD(model.parameters()))
    with runtime.accumulation(replica):
        replica(torch.ones(1, 2)).sum().backward()
    replica(torch.full((1, 2), float(runtime.rank))).sum().backward()
    seen |= {"weight": model.weight.tolist(), "grad": model.weight.grad.tolist()}
    dropped = {}
    for step in (5, 6, 5):  # the last one as after a resume
        runtime.seed_step(0, step)
        dropped.setdefault(step, []).append(torch.nn.functional.dropout(torch.ones(64)).tolist())
    seen["dropped"] = dropped
    runtime.barrier()
    (folder / f"{runtime.rank}.json").write_text(json.dumps(seen))
    return 0


def test_two_gloo_ranks_exchange_objects_means_weights_and_gradients(tmp_path):
    assert launch("cpu", report_ranks, tmp_path, num_processes=2) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    masks = [rank.pop("dropped") for rank in (first, second)]
    assert all(mask["5"][0] == mask["5"][1] != mask["6"][0] for mask in masks)
    assert masks[0]["5"] != masks[1]["5"], "two ranks with one mask: half of its randomness is lost"
    assert first == second, "ranks disagree"
    assert first["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert first["mean"] == {"loss": 0.5}
    assert first["weight"] == [[1.0, 1.0]], "rank 0's weights are everybody's"
    # Each rank: 1 (accumulated) + its rank; reduced once, at the last micro-step: mean(1 + 0, 1 + 1).
    assert first["grad"] == [[1.5, 1.5]]


def fail_on_rank_1(runtime, folder: Path) -> int:
    if runtime.rank == 1:
        raise ValueError("the reason, in rank 1")
    runtime.barrier()
    return 0


def test_a_failing_rank_takes_the_others_down_with_its_reason(tmp_path, capfd):
    assert launch("cpu", fail_on_rank_1, tmp_path, num_processes=2) == 1
    assert "ValueError: the reason, in rank 1" in capfd.readouterr().err


def test_a_single_process_needs_no_group():
    runtime = NativeRuntime("cpu")
    assert (runtime.rank, runtime.world_size) == (0, 1)
    assert runtime.gather("x") == ["x"]
    assert not torch.distributed.is_initialized()


def test_batches_arrive_all_and_in_order():
    batches = [OneTensor(torch.tensor(i)) for i in range(5)]
    assert [int(b.value) for b in NativeRuntime("cpu").batches(iter(batches))] == [0, 1, 2, 3, 4]


class Stream:
    """One of CUDA's, as far as it can be had without a GPU: writes down what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@dataclass(frozen=True)
class Numbered:
    number: int
    log: list[str]

    def map(self, change):
        assert change is torch.Tensor.pin_memory
        return self

    def to(self, device, non_blocking=False):
        assert non_blocking
        self.log.append(f"copy {self.number}")
        return self


def test_on_cuda_a_batch_is_on_its_way_while_the_one_before_it_is_worked_on(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("work", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for batch in NativeRuntime("cuda").batches(Numbered(number, log) for number in range(3)):
        batch.log.append(f"step {batch.number}")
    before, after = "copying waits for work", "work waits for copying"
    assert log == [
        before, "copy 0", after,
        before, "copy 1", "step 0", after,
        before, "copy 2", "step 1", after,
        "step 2",
    ]  # fmt: skip


def test_fetch_gives_floats_by_name():
    assert NativeRuntime("cpu").fetch({"a": torch.tensor(1.5), "b": torch.tensor(2)}) == {"a": 1.5, "b": 2.0}


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [("bf16", True, torch.bfloat16), ("bf16", False, torch.float32), ("fp32", True, torch.float32)],
)
def test_matrix_work_is_bf16_where_that_is_wanted_and_not_emulated(precision, has_bf16, expected):
    runtime = NativeRuntime("cpu")
    runtime.has_bf16 = has_bf16
    with runtime.autocast(precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert ("fp32 takes its place" in runtime.describe()) != has_bf16


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 sha_ni", True),  # AMD since Zen 4
        ("flags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16 amx_tile", True),  # Intel since Sapphire Rapids
        ("flags\t\t: fpu avx2 avx512f avx512bw", False),
        ("Features\t: fp asimd sve bf16 i8mm", True),  # Arm: Graviton 3
        ("Features\t: fp asimd crc32", False),
    ],
)
def test_the_kernel_says_whether_the_processor_has_bf16(tmp_path, cpuinfo, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n")
    assert cpu_has_bf16(tmp_path / "cpuinfo") == expected
    assert not cpu_has_bf16(tmp_path / "not there")


@pytest.mark.parametrize(("wanted", "expected"), [(None, 3), (2, 2)])
def test_a_host_gets_a_rank_for_each_visible_gpu_or_as_many_as_are_wanted(monkeypatch, wanted, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert native_ranks("cuda", wanted) == expected
    with pytest.raises(ValueError, match=r"4 processes are wanted, one per GPU, and torch sees 3"):
        native_ranks("cuda", 4)
    assert (native_ranks("cpu"), native_ranks("cpu", 4)) == (1, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present here: its absence cannot be tested")
def test_a_device_that_is_not_there_is_an_error_that_says_what_is():
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_kind("cuda")


def test_auto_prefers_xla_to_plain_cpu_without_an_accelerator():
    if torch.cuda.is_available():
        assert choose_kind("auto") == "cuda"
    else:
        assert choose_kind("auto") in ("xla", "cpu")
