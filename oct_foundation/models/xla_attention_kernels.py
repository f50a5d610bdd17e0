"""Flash attention for TPUs in Pallas (arXiv 2205.14135): the scores live in VMEM tiles only. Needs jax: import lazily.

All arrays lie with the tokens along the lanes, [G, d, n] with G = volumes x heads: 64 channels along the lanes would
be padded to 128, twice the bytes; and the statistics of the softmax become rows that no lane has to be crossed for.
The keys of a head stay in VMEM while all its queries pass, so that a call reads and writes every array once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from oct_foundation.models.xla_attention_tiles import (
    LANES,
    Tiles,
    backward_cost,
    backward_tiles,
    forward_cost,
    forward_tiles,
    round_up,
)

Ref = Any  # Pallas types its references as arrays
Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[()], tuple[()]]]
FIRST_FIRST: Dimensions = (((0,), (0,)), ((), ()))  # x^T y
LAST_FIRST: Dimensions = (((1,), (0,)), ((), ()))  # x y
LAST_LAST: Dimensions = (((1,), (1,)), ((), ()))  # x y^T


def product(left: jax.Array, right: jax.Array, dimensions: Dimensions) -> jax.Array:
    """A matrix product with fp32 sums; bf16 goes into the matrix unit as it is, fp32 keeps all its bits."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def zero_from(count: jax.Array | int, array: jax.Array) -> jax.Array:
    """The array [rows, n] with zeros from column `count` on, where a ragged block holds whatever was there."""
    columns = lax.broadcasted_iota(jnp.int32, array.shape, 1)
    return jnp.where(columns < count, array, jnp.zeros_like(array))


def mask_scores(scores: jax.Array, valid: int) -> jax.Array:
    """Scores [keys, queries] with -inf for the rows from `valid` on: these keys do not exist."""
    return jnp.where(lax.broadcasted_iota(jnp.int32, scores.shape, 0) < valid, scores, -jnp.inf)


def full_tiles(axis: int, num_keys: int, tiles: Tiles) -> Any:
    """How many tiles of this grid step's chunk of keys are full; grid axis `axis` counts the chunks."""
    full = num_keys // tiles.keys
    if tiles.resident >= num_keys:
        return full
    in_chunk = tiles.resident // tiles.keys
    return jnp.minimum(in_chunk, full - pl.program_id(axis) * in_chunk)


def visit_rest(visit: Callable[[int, int, int], None], axis: int, num_keys: int, tiles: Tiles) -> None:
    """Calls `visit(first, size, valid)` for the keys after the last full tile, in the chunk that holds them.

    size: as small as 128 lanes allow, with `valid` keys in it.
    """
    full, rest = divmod(num_keys, tiles.keys)
    if rest:
        first = full % -(-tiles.resident // tiles.keys) * tiles.keys
        last_chunk = pl.program_id(axis) == pl.num_programs(axis) - 1
        pl.when(last_chunk)(partial(visit, first, round_up(rest, LANES), rest))


def forward_kernel(
    query_ref: Ref,
    key_ref: Ref,
    value_ref: Ref,
    out_ref: Ref,
    logsumexp_ref: Ref,
    scratch: tuple[Ref, Ref, Ref, Ref],
    *,
    num_keys: int,
    tiles: Tiles,
) -> None:
    """A block of queries [d, q] against a chunk of keys and values [d, k]; grid (heads, query blocks, chunks).

    scratch: the largest score so far [1, q], the sum of exponentials [1, q], the values weighted by them [d, q], and
    the scores of one tile [keys, q].
    """
    top_ref, total_ref, mixed_ref, scores_ref = scratch

    @pl.when(pl.program_id(2) == 0)
    def start() -> None:
        top_ref[...] = jnp.full(top_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        mixed_ref[...] = jnp.zeros(mixed_ref.shape, jnp.float32)

    query = query_ref[...]
    scale = query.shape[0] ** -0.5

    def scores_of(first: Any, size: int) -> jax.Array:
        return product(key_ref[:, pl.ds(first, size)], query, FIRST_FIRST) * scale

    def absorb(scores: jax.Array, value: jax.Array) -> None:
        old = top_ref[...]
        top = jnp.maximum(old, scores.max(axis=0, keepdims=True))
        weights = jnp.exp(scores - top)
        shrink = jnp.exp(old - top)
        top_ref[...] = top
        total_ref[...] = shrink * total_ref[...] + weights.sum(axis=0, keepdims=True)
        mixed_ref[...] = shrink * mixed_ref[...] + product(value, weights.astype(value.dtype), LAST_FIRST)

    if num_keys >= tiles.keys:
        count = full_tiles(2, num_keys, tiles)
        scores_ref[...] = scores_of(0, tiles.keys)

        # The matrix unit makes the next tile's scores while the vector unit has this one's: 1378 bundles, not 1791.
        @pl.loop(0, count)
        def _(tile: jax.Array) -> None:
            scores = scores_ref[...]
            following = scores_of(pl.multiple_of(jnp.minimum(tile + 1, count - 1) * tiles.keys, LANES), tiles.keys)
            absorb(scores, value_ref[:, pl.ds(pl.multiple_of(tile * tiles.keys, LANES), tiles.keys)])
            scores_ref[...] = following

    def visit_last(first: int, size: int, valid: int) -> None:
        absorb(mask_scores(scores_of(first, size), valid), zero_from(valid, value_ref[:, pl.ds(first, size)]))

    visit_rest(visit_last, 2, num_keys, tiles)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def finish() -> None:
        total = total_ref[...]
        out_ref[...] = (mixed_ref[...] / total).astype(out_ref.dtype)
        logsumexp_ref[...] = top_ref[...] + jnp.log(total)


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, *, tiles: Tiles | None = None, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """query: float [G, d, Nq]; key, value: [G, d, Nk]. Returns softmax(q^T k / sqrt(d)) v as [G, d, Nq], and the

    logarithm of each query's sum of exponentials, fp32 [G, 1, Nq].
    """
    num_heads, head_dim, num_queries = query.shape
    sizes = num_queries, key.shape[2], head_dim, query.dtype.itemsize
    tiles = tiles or forward_tiles(*sizes)
    chunks = pl.cdiv(key.shape[2], tiles.resident)
    cost = forward_cost(num_heads, *sizes)
    of_queries = pl.BlockSpec((None, head_dim, tiles.queries), lambda head, block, chunk: (head, 0, block))
    of_keys = pl.BlockSpec(
        (None, head_dim, tiles.resident),
        lambda head, block, chunk: (head, 0, chunk),
        pipeline_mode=pl.Buffered(1 if chunks == 1 else 2),
    )
    row = pl.BlockSpec((None, 1, tiles.queries), lambda head, block, chunk: (head, 0, block))
    row_sum = pltpu.VMEM((1, tiles.queries), jnp.float32)
    return pl.pallas_call(
        partial(forward_kernel, num_keys=key.shape[2], tiles=tiles),
        grid=(num_heads, pl.cdiv(num_queries, tiles.queries), chunks),
        in_specs=[of_queries, of_keys, of_keys],
        out_specs=(of_queries, row),
        out_shape=(
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((num_heads, 1, num_queries), jnp.float32),
        ),
        scratch_shapes=[
            (
                row_sum,
                row_sum,
                pltpu.VMEM((head_dim, tiles.queries), jnp.float32),
                pltpu.VMEM((tiles.keys, tiles.queries), jnp.float32),
            )
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=cost.flops, transcendentals=cost.exponentials, bytes_accessed=cost.hbm_bytes
        ),
        interpret=interpret,
        name="flash_attention_forward",
    )(query, key, value)


def backward_kernel(
    inputs: tuple[Ref, ...],
    d_query_ref: Ref,
    d_key_ref: Ref,
    d_value_ref: Ref,
    sums: tuple[Ref, Ref, Ref],
    *,
    num_queries: int,
    num_keys: int,
    tiles: Tiles,
) -> None:
    """A block of queries against a chunk of keys; grid (heads, chunks, query blocks), so the chunk's gradients stay.

    inputs: query [d, q], out, its gradient, logsumexp [1, q], key [d, k], value; sums: the three gradients in fp32.
    The scores are computed anew, once for all three.
    """
    *of_queries, key_ref, value_ref = inputs
    d_query_sum, d_key_sum, d_value_sum = sums
    block = pl.program_id(2)

    @pl.when(block == 0)
    def start() -> None:
        @pl.loop(0, tiles.resident, step=LANES)
        def _(first: jax.Array) -> None:
            for total in (d_key_sum, d_value_sum):
                total[:, pl.ds(pl.multiple_of(first, LANES), LANES)] = jnp.zeros((total.shape[0], LANES), jnp.float32)

    query, out, d_out, logsumexp = (ref[...] for ref in of_queries)
    if num_queries % tiles.queries:
        left = num_queries - block * tiles.queries
        query, out, d_out, logsumexp = (zero_from(left, array) for array in (query, out, d_out, logsumexp))
    scale = query.shape[0] ** -0.5
    drift = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=0, keepdims=True)
    d_query_sum[...] = jnp.zeros(d_query_sum.shape, jnp.float32)

    def visit(first: Any, size: int, valid: int) -> None:
        at = pl.ds(first, size)
        key, value = key_ref[:, at], value_ref[:, at]
        if valid < size:
            key, value = zero_from(valid, key), zero_from(valid, value)
        scores = product(key, query, FIRST_FIRST) * scale - logsumexp
        if valid < size:
            scores = mask_scores(scores, valid)
        weights = jnp.exp(scores)
        d_scores = (weights * (product(value, d_out, FIRST_FIRST) - drift)).astype(query.dtype)
        d_value_sum[:, at] += product(d_out, weights.astype(query.dtype), LAST_LAST)
        d_key_sum[:, at] += product(query, d_scores, LAST_LAST)
        d_query_sum[...] += product(key, d_scores, LAST_FIRST)

    if num_keys >= tiles.keys:

        @pl.loop(0, full_tiles(1, num_keys, tiles))
        def _(tile: jax.Array) -> None:
            visit(pl.multiple_of(tile * tiles.keys, LANES), tiles.keys, tiles.keys)

    visit_rest(visit, 1, num_keys, tiles)
    d_query_ref[...] = (d_query_sum[...] * scale).astype(d_query_ref.dtype)

    @pl.when(block == pl.num_programs(2) - 1)
    def finish() -> None:
        @pl.loop(0, tiles.resident, step=LANES)
        def _(first: jax.Array) -> None:
            at = pl.ds(pl.multiple_of(first, LANES), LANES)
            d_key_ref[:, at] = (d_key_sum[:, at] * scale).astype(d_key_ref.dtype)
            d_value_ref[:, at] = d_value_sum[:, at].astype(d_value_ref.dtype)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    logsumexp: jax.Array,
    d_out: jax.Array,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients for `d_out` [G, d, Nq] at what `forward` took and returned.

    Returns dq in parts to be added up, [chunks, G, d, Nq] (as `query` for one chunk, else fp32), dk and dv [G, d, Nk].
    """
    num_heads, head_dim, num_queries = query.shape
    sizes = num_queries, key.shape[2], head_dim, query.dtype.itemsize
    tiles = tiles or backward_tiles(*sizes)
    chunks = pl.cdiv(key.shape[2], tiles.resident)
    cost = backward_cost(num_heads, *sizes)
    of_queries = pl.BlockSpec((None, head_dim, tiles.queries), lambda head, chunk, block: (head, 0, block))
    row = pl.BlockSpec((None, 1, tiles.queries), lambda head, chunk, block: (head, 0, block))
    of_keys = pl.BlockSpec(
        (None, head_dim, tiles.resident), lambda head, chunk, block: (head, 0, chunk), pipeline_mode=pl.Buffered(1)
    )
    part = pl.BlockSpec((None, None, head_dim, tiles.queries), lambda head, chunk, block: (chunk, head, 0, block))
    key_sum = pltpu.VMEM((head_dim, tiles.resident), jnp.float32)
    return pl.pallas_call(
        partial(backward_kernel, num_queries=num_queries, num_keys=key.shape[2], tiles=tiles),
        grid=(num_heads, chunks, pl.cdiv(num_queries, tiles.queries)),
        in_specs=[(of_queries, of_queries, of_queries, row, of_keys, of_keys)],
        out_specs=(part, of_keys, of_keys),
        out_shape=(
            jax.ShapeDtypeStruct((chunks, *query.shape), query.dtype if chunks == 1 else jnp.float32),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ),
        scratch_shapes=[(pltpu.VMEM((head_dim, tiles.queries), jnp.float32), key_sum, key_sum)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=cost.flops, transcendentals=cost.exponentials, bytes_accessed=cost.hbm_bytes
        ),
        interpret=interpret,
        name="flash_attention_backward",
    )((query, out, d_out, logsumexp, key, value))
