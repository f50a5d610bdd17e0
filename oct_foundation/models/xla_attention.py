"""Attention on TPUs through our own kernels: XLA tensors in, XLA tensors out, torch's autograd in between.

The kernels are written in jax (xla_attention_kernels.py), lowered once per shape on the host, whichever machine that
is, and put into torch_xla's graph as a custom call. jax and torch_xla are imported when the first call needs them.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from oct_foundation.models.xla_attention_tiles import backward_tiles
from oct_foundation.models.xla_manual_sharding import ManualSharding

_lowering_for_tpu = False


@contextmanager
def lowering_for_tpu() -> Iterator[None]:
    """Inside it, XLA graphs are traced as for a TPU on any machine; such a graph can be compiled, not run, there."""
    global _lowering_for_tpu
    before, _lowering_for_tpu = _lowering_for_tpu, True
    try:
        yield
    finally:
        _lowering_for_tpu = before


def runs_on_tpu(device: torch.device) -> bool:
    """Whether tensors on `device` belong to a program for a TPU; XLA on a CPU cannot run the kernels."""
    if device.type != "xla":
        return False
    if _lowering_for_tpu:
        return True
    import torch_xla.runtime as xr

    return xr.device_type() == "TPU"


def flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v: what F.scaled_dot_product_attention gives, in memory that grows with N, not N^2.

    query: XLA float32 or bfloat16 [B, H, Nq, d]; key, value: [B, H, Nk, d], any Nq and Nk. Returns [B, H, Nq, d].
    Raises ValueError for other or unequal dtypes and for unequal shapes, ImportError when jax is missing.
    """
    check_inputs(query, key, value)
    num_volumes, num_heads, num_queries, head_dim = query.shape
    # Tokens along the lanes, see the kernels. XLA gives the projection before and after this layout: no copies.
    heads = (part.transpose(2, 3).reshape(num_volumes * num_heads, head_dim, -1) for part in (query, key, value))
    mixed = FlashAttention.apply(*heads)
    return mixed.view(num_volumes, num_heads, head_dim, num_queries).transpose(2, 3)


def check_inputs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raises ValueError for what the kernels do not compute."""
    found = ", ".join(f"{part.dtype} {list(part.shape)}" for part in (query, key, value))
    dtypes = {part.dtype for part in (query, key, value)}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        raise ValueError(f"query, key and value must all be float32 or all bfloat16; found {found}")
    if key.shape != value.shape or query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query must be [B, H, Nq, d], key and value [B, H, Nk, d]; found {found}")


class FlashAttention(torch.autograd.Function):
    """The kernels' pair on [G, d, n], G heads of all volumes, tokens last; the backward saves one row per head."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query: [G, d, Nq]; key, value: [G, d, Nk]. Returns [G, d, Nq]."""
        sharding = ManualSharding.of(len(query))
        parts = sharding.split(query, key, value)
        shape = parts[0].shape
        results = custom_call(
            forward_payload(tuple(shape), key.shape[2], query.dtype),
            parts,
            [(shape, query.dtype), ((shape[0], 1, shape[2]), torch.float32)],
        )
        out, logsumexp = (sharding.join(result) for result in results)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of query, key and value."""
        query, key, value, out, logsumexp = ctx.saved_tensors
        sharding = ManualSharding.of(len(query))
        query, key, value, out, logsumexp, d_out = sharding.split(query, key, value, out, logsumexp, d_out)
        head_dim, num_queries, num_keys = query.shape[1], query.shape[2], key.shape[2]
        chunks = -(-num_keys // backward_tiles(num_queries, num_keys, head_dim, query.element_size()).resident)
        parts, d_key, d_value = custom_call(
            backward_payload(tuple(query.shape), num_keys, query.dtype),
            [query, out, d_out, logsumexp, key, value],
            [
                ((chunks, *query.shape), query.dtype if chunks == 1 else torch.float32),
                (key.shape, key.dtype),
                (value.shape, value.dtype),
            ],
        )
        parts = sharding.join(parts, dim=1)
        d_query = parts[0] if chunks == 1 else parts.sum(0).to(query.dtype)
        return d_query, sharding.join(d_key), sharding.join(d_value)


def custom_call(
    payload: str, inputs: list[torch.Tensor], outputs: list[tuple[tuple[int, ...], torch.dtype]]
) -> list[torch.Tensor]:
    """Puts a lowered kernel into torch_xla's graph; outputs: shape and dtype of each."""
    import torch_xla

    shapes, dtypes = zip(*outputs, strict=True)
    return torch_xla._XLAC._xla_tpu_custom_call(inputs, payload, [list(shape) for shape in shapes], list(dtypes))


@functools.cache
def forward_payload(query_shape: tuple[int, int, int], num_keys: int, dtype: torch.dtype) -> str:
    """The forward kernel for these shapes, lowered."""
    kernels = import_kernels()
    query, key, _ = abstract_arrays(query_shape, num_keys, dtype)
    return lower(kernels.forward, query, key, key)


@functools.cache
def backward_payload(query_shape: tuple[int, int, int], num_keys: int, dtype: torch.dtype) -> str:
    """The backward kernel for these shapes, lowered."""
    kernels = import_kernels()
    query, key, row = abstract_arrays(query_shape, num_keys, dtype)
    return lower(kernels.backward, query, key, key, query, row, query)


def import_kernels() -> Any:
    """The module that needs jax; raises ImportError that says how to get it."""
    try:
        import jax
    except ImportError as error:
        raise ImportError(
            "attention on a TPU needs jax, for its Pallas kernels: pip install 'octfm[pallas]' "
            "(requirements/tpu.txt has it, with the versions that fit torch_xla)"
        ) from error
    # The host only lowers. Without this jax would open the chips that torch_xla already holds.
    jax.config.update("jax_platforms", "cpu")
    from oct_foundation.models import xla_attention_kernels

    return xla_attention_kernels


def abstract_arrays(query_shape: tuple[int, int, int], num_keys: int, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Query, key and a fp32 row of the queries as jax knows them by shape and dtype."""
    import jax
    import jax.numpy as jnp

    num_heads, head_dim, num_queries = query_shape
    of = jnp.bfloat16 if dtype == torch.bfloat16 else jnp.float32
    return (
        jax.ShapeDtypeStruct(query_shape, of),
        jax.ShapeDtypeStruct((num_heads, head_dim, num_keys), of),
        jax.ShapeDtypeStruct((num_heads, 1, num_queries), jnp.float32),
    )


def export_for_tpu(kernel: Any, *arrays: Any) -> Any:
    """A kernel's call on such arrays, lowered for a TPU: the same jax.export.Exported on every host.

    `jax.export` writes the older of two Mosaic formats, which libtpu 0.0.21 needs; elsewhere jax 0.7.1 writes a newer
    one ("Unsupported version: expected <= 7 but got 8").
    """
    import jax
    from jax import export
    from jax._src import cloud_tpu_init

    check = export.DisabledSafetyCheck.custom_call("tpu_custom_call")
    on_tpu_vm = cloud_tpu_init.running_in_cloud_tpu_vm
    # On a TPU VM jax would ask a client of its own for libtpu's date, and choose the format by it.
    cloud_tpu_init.running_in_cloud_tpu_vm = False
    try:
        return export.export(jax.jit(kernel), platforms=["tpu"], disabled_checks=[check])(*arrays)
    finally:
        cloud_tpu_init.running_in_cloud_tpu_vm = on_tpu_vm


def lower(kernel: Any, *arrays: Any) -> str:
    """What the custom call of an exported kernel carries: JSON with the kernel's code, cost and settings."""
    module = export_for_tpu(kernel, *arrays).mlir_module()
    payloads = re.findall(r'@tpu_custom_call\(.*?backend_config = "(.*?)"', module)
    assert len(payloads) == 1, f"{len(payloads)} custom calls, expected one"
    return re.sub(r"\\([0-9A-F]{2})", lambda escape: chr(int(escape[1], 16)), payloads[0])
