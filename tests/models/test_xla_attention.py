"""The kernels run in Pallas' interpreter here, which fills what a ragged block has beyond its array with NaN.

Oracle: softmax(q^T k / sqrt(d)) v written out in float64, its gradients from torch's autograd.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oct_foundation.models import xla_attention
from oct_foundation.models.xla_attention import flash_attention, lowering_for_tpu, runs_on_tpu
from oct_foundation.models.xla_attention_tiles import (
    KEY_TILE,
    Tiles,
    backward_cost,
    backward_tiles,
    forward_cost,
    forward_tiles,
    resident_bytes,
)

if importlib.util.find_spec("jax") is None:
    pytest.skip("JAX ABSENT (pip install 'octfm[pallas]'). The TPU kernels were NOT tested.", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

kernels = xla_attention.import_kernels()

RAGGED = [  # Nq, Nk, d, tiles
    (200, 300, 64, Tiles(queries=128, keys=256, resident=384)),
    (100, 90, 128, Tiles(queries=256, keys=256, resident=128)),  # one block and one tile, both larger than the array
    (300, 700, 96, Tiles(queries=256, keys=128, resident=256)),  # three chunks of keys, the last with a ragged tile
    (130, 513, 32, Tiles(queries=128, keys=128, resident=512)),  # the last chunk is one key
]


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """The interpreter's programs run once each: compiling them is most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(num_queries, num_keys, head_dim, *, heads=2, scale=1.0):
    """q, k, v and the gradient of the output, float64 [heads, d, n]; all are exact in bfloat16."""
    rng = np.random.default_rng(num_queries + num_keys)
    lengths = (num_queries, num_keys, num_keys, num_queries)
    parts = (scale * torch.from_numpy(rng.standard_normal((heads, head_dim, n))) for n in lengths)
    return [part.bfloat16().double() for part in parts]


def plain(query, key, value, d_out):
    """Output and the three gradients."""
    leaves = [part.clone().requires_grad_() for part in (query, key, value)]
    query, key, value = leaves
    scores = query.transpose(1, 2) @ key / query.shape[1] ** 0.5
    out = (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
    out.backward(d_out)
    return [out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def by_kernels(query, key, value, d_out, tiles, dtype=jnp.float32):
    query, key, value, d_out = (jnp.asarray(part.numpy(), dtype=dtype) for part in (query, key, value, d_out))
    out, logsumexp = kernels.forward(query, key, value, tiles=tiles, interpret=True)
    parts, d_key, d_value = kernels.backward(query, key, value, out, logsumexp, d_out, tiles=tiles, interpret=True)
    assert out.dtype == d_key.dtype == d_value.dtype == dtype
    assert logsumexp.dtype == jnp.float32
    return [np.asarray(part, dtype=np.float64) for part in (out, parts.sum(0), d_key, d_value)]


@pytest.mark.parametrize(("num_queries", "num_keys", "head_dim", "tiles"), RAGGED)
def test_output_and_gradients_equal_the_formula_in_float64(num_queries, num_keys, head_dim, tiles):
    case = draw(num_queries, num_keys, head_dim)
    for got, want in zip(by_kernels(*case, tiles), plain(*case), strict=True):
        # Sums of up to 700 fp32 terms of about 1: 700 ** 0.5 * 2 ** -24 = 1.6e-6. Seen: 5e-7.
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("num_queries", "num_keys", "head_dim", "tiles"), RAGGED[::2])
def test_bfloat16_is_as_close_as_its_eight_bits_allow(num_queries, num_keys, head_dim, tiles):
    case = draw(num_queries, num_keys, head_dim)
    for got, want in zip(by_kernels(*case, tiles, dtype=jnp.bfloat16), plain(*case), strict=True):
        # The inputs are exact. Weights, score gradients, saved output and results are each rounded to 2 ** -9 = 0.2 %.
        assert np.linalg.norm(got - want) < 4 * 2**-9 * np.linalg.norm(want)


def test_the_interpreter_poisons_what_lies_beyond_an_array():
    """Otherwise the ragged cases above would prove nothing about padding."""

    def copy_nans(array, out):
        out[...] = jnp.isnan(array[...]).astype(jnp.float32)

    block = pl.BlockSpec((8, 128), lambda step: (0, 0))
    shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    nans = pl.pallas_call(copy_nans, grid=(1,), in_specs=[block], out_specs=block, out_shape=shape, interpret=True)(
        jnp.zeros((8, 100), jnp.float32)
    )
    assert np.asarray(nans).sum(axis=1).tolist() == [28.0] * 8


def test_extreme_scores_stay_finite_and_right():
    """All scores lie near -1e4: exp(-logsumexp) overflows, and a key that is not there would have the best score, 0."""
    query, key, value, d_out = draw(130, 300, 64, scale=40.0)
    case = [query.abs(), -key.abs(), value, d_out / 40]
    for got, want in zip(by_kernels(*case, RAGGED[0][3]), plain(*case), strict=True):
        assert np.isfinite(got).all()
        # fp32 holds a score of 1e4 to 2 ** -11; exp makes that the relative error of a weight.
        assert np.linalg.norm(got - want) < 2**-8 * np.linalg.norm(want)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("num_keys", [1, 102, 3686, 9216, 16384, 50000])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_the_memory_and_cover_all_keys(head_dim, num_keys, itemsize):
    budget = resident_bytes(head_dim, itemsize)
    for tiles, bytes_per_key in (
        (forward_tiles(640, num_keys, head_dim, itemsize), 2 * itemsize * head_dim),
        (backward_tiles(640, num_keys, head_dim, itemsize), (4 * itemsize + 8) * head_dim),
    ):
        assert tiles.resident * bytes_per_key <= budget
        assert tiles.resident % 128 == 0
        assert tiles.resident >= num_keys or tiles.resident % KEY_TILE == 0


@pytest.mark.parametrize("num_keys", [3686, 9216])
def test_all_keys_of_a_pretraining_volume_stay_in_vmem(num_keys):
    for choose in (forward_tiles, backward_tiles):
        assert num_keys <= choose(num_keys, num_keys, 64, 2).resident < num_keys + 128


@pytest.mark.parametrize(("num_queries", "block"), [(9216, 512), (3686, 384), (102, 128), (5530, 512)])
def test_blocks_of_queries_are_large_and_pad_little(num_queries, block):
    assert forward_tiles(num_queries, num_queries, 64, 2).queries == block


def test_costs_are_those_counted_by_hand():
    scores, array, row = 6 * 9216 * 9216, 6 * 9216 * 64 * 2, 6 * 9216 * 4
    there = forward_cost(6, 9216, 9216, 64, 2)
    back = backward_cost(6, 9216, 9216, 64, 2)
    assert (there.flops, there.exponentials, there.hbm_bytes) == (4 * 64 * scores, scores, 4 * array + row)
    assert (back.flops, back.exponentials, back.hbm_bytes) == (10 * 64 * scores, scores, 8 * array + row)


def test_chunks_of_keys_cost_more_bytes():
    """128 channels: two chunks backward. q, out, its gradient and the row are read twice, dq leaves as two fp32."""
    array, row = 3 * 9216 * 128 * 2, 3 * 9216 * 4
    assert backward_tiles(9216, 9216, 128, 2).resident == 4608
    assert backward_cost(3, 9216, 9216, 128, 2).hbm_bytes == (2 * 3 + 4) * array + 2 * 2 * array + 2 * row


def test_wrong_inputs_are_refused():
    query, key = torch.zeros(1, 2, 5, 64), torch.zeros(1, 2, 7, 64)
    with pytest.raises(ValueError, match=r"all be float32 or all bfloat16; found .*float64"):
        flash_attention(query.double(), key.double(), key.double())
    with pytest.raises(ValueError, match=r"all be float32 or all bfloat16"):
        flash_attention(query.bfloat16(), key, key)
    with pytest.raises(ValueError, match=r"key and value \[B, H, Nk, d\]; found .*\[1, 2, 7, 32\]"):
        flash_attention(query, key, key[..., :32])


def test_tensors_on_a_cpu_never_meet_the_kernels():
    with lowering_for_tpu():
        assert not runs_on_tpu(torch.device("cpu"))
        assert runs_on_tpu(torch.device("xla"))


def test_without_jax_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError, match=r"octfm\[pallas\].*requirements/tpu\.txt"):
        xla_attention.import_kernels()


def test_the_custom_call_states_its_cost():
    shape = (6, 64, 9216)
    for payload, cost in (
        (xla_attention.forward_payload(shape, 9216, torch.bfloat16), forward_cost(6, 9216, 9216, 64, 2)),
        (xla_attention.backward_payload(shape, 9216, torch.bfloat16), backward_cost(6, 9216, 9216, 64, 2)),
    ):
        stated = json.loads(payload)["custom_call_config"]["cost_estimate"]
        assert stated == {"flops": cost.flops, "transcendentals": cost.exponentials, "bytes_accessed": cost.hbm_bytes}


def run_child(source, **environment):
    """Runs Python of its own (XLA's device is fixed at the first import) and returns the JSON of its last line."""
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", **environment}
    result = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=600,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


TRACE = """
import json, os
import torch, torch_xla
from oct_foundation.models.attention import Attention
from oct_foundation.models.xla_attention import lowering_for_tpu

private = {"torch_xla._XLAC._xla_tpu_custom_call": hasattr(torch_xla._XLAC, "_xla_tpu_custom_call")}
import jax._src.cloud_tpu_init as init
private["jax._src.cloud_tpu_init.running_in_cloud_tpu_vm"] = hasattr(init, "running_in_cloud_tpu_vm")

def hlo():
    layer = Attention(64, 2).to("xla")
    tokens = torch.zeros(2, 150, 64, device="xla", requires_grad=True)
    with torch.autocast("xla", dtype=torch.bfloat16):
        mixed = layer(tokens, None, asked=40)
    mixed.float().sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    return torch_xla._XLAC._get_xla_tensors_hlo([mixed, tokens.grad, *gradients]), list(mixed.shape)

usual, shape = hlo()
with lowering_for_tpu():
    ours, our_shape = hlo()
calls = [line.split(" custom-call(")[0].split(" = ")[1] for line in ours.splitlines() if "tpu_custom_call" in line]
print(json.dumps(dict(private=private, usual=usual.count("tpu_custom_call"), calls=calls, shapes=[shape, our_shape])))
os._exit(0)
"""


def test_a_layer_is_traced_with_the_kernels_for_a_tpu_only_and_the_private_names_are_there():
    pytest.importorskip("torch_xla", reason="TORCH_XLA ABSENT. Tracing was NOT tested.")
    seen = run_child(TRACE, PJRT_DEVICE="CPU")
    missing = [name for name, there in seen["private"].items() if not there]
    assert not missing, f"xla_attention.py leans on private names that are gone: {missing}"
    assert seen["usual"] == 0
    assert seen["shapes"] == [[2, 40, 64], [2, 40, 64]]
    forward, backward = sorted(seen["calls"], key=len)
    assert "bf16[4,32,40]" in forward
    assert "f32[4,1,40]" in forward
    assert backward.count("bf16[4,32,150]") == 2
    assert "bf16[1,4,32,40]" in backward


COMPILE = """
import json, sys
import jax, jax.numpy as jnp, torch
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from oct_foundation.models import xla_attention

kernels = xla_attention.import_kernels()
v4 = dict(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1), num_slices=1)
chip = topologies.get_topology_desc(platform="tpu", topology_name="v4:2x2x1", **v4).devices[0]
seen = []
for heads, num_queries, num_keys, head_dim, dtype in json.loads(sys.argv[1]):
    query, key, row = xla_attention.abstract_arrays((heads, head_dim, num_queries), num_keys, getattr(torch, dtype))
    calls = [(kernels.forward, (query, key, key)), (kernels.backward, (query, key, key, query, row, query))]
    for kernel, arrays in calls:
        exported = xla_attention.export_for_tpu(kernel, *arrays)
        at = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(chip)) for a in arrays]
        seen.append(jax.jit(exported.call).lower(*at).compile().cost_analysis()["flops"])
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_the_compiler_for_v4_takes_the_kernels_and_counts_their_flops():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("LIBTPU ABSENT (pip install 'octfm[tpu]'). The kernels were NOT compiled.")
    calls = [
        (6, 9216, 9216, 64, "bfloat16"),
        (6, 3686, 3686, 64, "bfloat16"),
        (3, 5530, 9216, 128, "bfloat16"),
        (2, 1000, 50000, 32, "bfloat16"),
        (2, 9216, 9216, 96, "float32"),
        (4, 40, 102, 64, "float32"),
    ]
    source = COMPILE.replace("sys.argv[1]", repr(json.dumps(calls)))
    flops = run_child(source, ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    sizes = [(*call[:4], 2 if call[4] == "bfloat16" else 4) for call in calls]
    assert flops[::2] == [pytest.approx(forward_cost(*size).flops, rel=1e-3) for size in sizes]
    assert flops[1::2] == [pytest.approx(backward_cost(*size).flops, rel=1e-3) for size in sizes]
