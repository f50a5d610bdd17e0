"""State to host memory, to a file and back: bit for bit, or refused."""

import hashlib
import io
import os
import pathlib
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from oct_foundation.checkpoints.host_state import FileDigest, check_on_host, read_state, to_host, write_state
from oct_foundation.checkpoints.store import Corrupt


def full_state() -> dict:
    """Model, optimizer after two steps, and one of each kind of value."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 7)).square().mean().backward()
        optimizer.step()
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "kinds": {str(kind): torch.arange(6).reshape(2, 3).t().to(kind) for kind in kinds},
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "step": 12,
        "none": None,
        "flag": True,
        "pi": 3.141592653589793,
        "text": "ä",
        "pair": (1, 2.5),
    }


def bits(tree: object) -> object:
    """The tree with tensors as dtype, shape and raw bytes, tuples as lists: equality is equality of bits."""
    if isinstance(tree, torch.Tensor):
        raw = tree.detach().contiguous().reshape(-1).view(torch.uint8) if tree.numel() else tree
        return (str(tree.dtype), tuple(tree.shape), bytes(raw.reshape(-1).to(torch.uint8).tolist()))
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return (type(tree).__name__, tree)


def saved(state: dict) -> tuple[io.BytesIO, FileDigest]:
    file = io.BytesIO()
    digest = write_state(state, file)
    file.seek(0)
    return file, digest


def test_state_comes_back_bit_for_bit_with_the_digest_of_its_file():
    live = full_state()
    file, digest = saved(to_host(live))
    assert digest == FileDigest(size=len(file.getvalue()), sha256=hashlib.sha256(file.getvalue()).hexdigest())
    assert bits(read_state(file, digest)) == bits(live)


def test_a_copy_does_not_follow_the_training():
    weight = torch.ones(3)
    host = to_host({"w": weight})
    weight.add_(1)
    assert host["w"].tolist() == [1, 1, 1]


def test_the_second_copy_reuses_the_memory_of_the_first_where_it_fits():
    first = to_host({"a": torch.ones(3), "b": [torch.ones(2)], "c": torch.ones(4)})
    addresses = [first["a"].data_ptr(), first["b"][0].data_ptr(), first["c"].data_ptr()]
    second = to_host({"a": torch.full((3,), 2.0), "b": [torch.full((2,), 3.0)], "c": torch.ones(5)}, first)
    assert [second["a"].data_ptr(), second["b"][0].data_ptr()] == addresses[:2]
    assert second["a"].tolist() == [2, 2, 2]
    assert second["b"][0].tolist() == [3, 3]
    assert second["c"].tolist() == [1] * 5


def test_what_has_gone_from_the_state_goes_from_its_copy():
    host = to_host({"a": torch.ones(1), "b": [1, 2]})
    assert to_host({"b": [1]}, host) == {"b": [1]}


def test_parameters_become_plain_tensors():
    host = to_host({"w": nn.Parameter(torch.ones(2))})
    assert type(host["w"]) is torch.Tensor
    assert not host["w"].requires_grad


@pytest.mark.parametrize(
    "foreign",
    [np.float64(1), np.zeros(2), np.int32(1), pathlib.Path("a"), {1, 2}, b"x", object(), torch.float32, 1j],
    ids=lambda value: type(value).__name__,
)
def test_foreign_objects_are_refused_when_saved_with_their_place(foreign):
    with pytest.raises(TypeError, match=r"state\['optimizer'\]\[1\] is a .*" + type(foreign).__name__):
        to_host({"optimizer": [0, foreign]})
    with pytest.raises(TypeError, match=r"state\['optimizer'\]\[1\]"):
        check_on_host({"optimizer": [0, foreign]})
    with pytest.raises(TypeError, match="has a key of type"):
        to_host({(1, 2): 0})


@pytest.mark.parametrize("live", [nn.Parameter(torch.ones(1)), torch.ones(1, device="meta"), (1, 2)])
def test_state_that_did_not_pass_through_to_host_is_refused(live):
    with pytest.raises(TypeError, match=r"state\['x'\]"):
        check_on_host({"x": live})
    check_on_host(OrderedDict(x=torch.ones(1)))


def test_one_flipped_bit_anywhere_is_found_where_torch_notices_nothing():
    file, digest = saved(to_host({"w": torch.randn(20_000)}))
    data = file.getvalue()
    generator = np.random.default_rng(0)
    silent = 0
    for offset in generator.integers(0, len(data), 64):
        broken = bytearray(data)
        broken[offset] ^= 1 << generator.integers(0, 8)
        with pytest.raises(Corrupt, match="sha256"):
            read_state(io.BytesIO(broken), digest)
        try:
            torch.load(io.BytesIO(broken), weights_only=True)
            silent += 1
        except Exception:
            pass
    assert silent > 32  # the hash is needed: most flips would have loaded as wrong weights


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.999])
def test_truncated_files_are_found_by_size(keep):
    file, digest = saved(to_host({"w": torch.randn(1000)}))
    data = file.getvalue()
    with pytest.raises(Corrupt, match=f"manifest says {len(data)}"):
        read_state(io.BytesIO(data[: int(len(data) * keep) if keep != 1 else 1]), digest)


class Malicious:
    """Would create the file `target` when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("through", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, through):
    target = tmp_path / "owned"
    file = io.BytesIO()
    if through == "torch":
        torch.save({"w": Malicious(str(target))}, file)
    else:
        pickle.dump({"w": Malicious(str(target))}, file, protocol=2)
    digest = FileDigest(size=len(file.getvalue()), sha256=hashlib.sha256(file.getvalue()).hexdigest())
    file.seek(0)
    with pytest.raises(Corrupt, match="torch cannot load"):
        read_state(file, digest)
    assert not target.exists()
    torch.load(io.BytesIO(file.getvalue()), weights_only=False) if through == "torch" else pickle.loads(file.getvalue())
    assert target.exists()  # it was a real attack


@pytest.mark.parametrize("room", [0, 30_000, 79_000])
def test_a_full_disk_under_torch_save_is_an_os_error(room):
    class FullAfter(io.BytesIO):
        def write(self, data) -> int:
            if self.tell() + len(data) > room:
                raise OSError(28, "No space left on device")
            return super().write(data)

    with pytest.raises(OSError, match="No space left"):
        write_state({"w": torch.ones(20_000)}, FullAfter())
