"""How the TPU's attention kernels cut a head into tiles, and what a call costs: plain arithmetic, no jax needed.

Sizes are those of one call: `num_heads` of all its volumes together, `num_queries` and `num_keys` tokens of a head,
`head_dim` channels of `itemsize` bytes.
"""

from dataclasses import dataclass

LANES = 128
KEY_TILE = 512
# How long 128 queries take in a block of so many: bundles of the compiler's own schedule for v4, forward + backward,
# of a tile of 512 keys and 64 channels. A block that pads less can be worth more than the best one.
BUNDLES_BY_QUERIES = {512: 901, 640: 950, 384: 918, 256: 942, 128: 1302}


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a head is cut: `queries` of a grid step meet `keys` at a time, of `resident` keys that lie in VMEM.

    All are multiples of 128; `resident` covers all keys, or it is a multiple of `keys` and a head comes in chunks.
    """

    queries: int
    keys: int
    resident: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one call of a kernel does: multiplications and additions, exponentials, bytes to and from HBM."""

    flops: int
    exponentials: int
    hbm_bytes: int


def round_up(count: int, step: int) -> int:
    """The least multiple of `step` that is at least `count`."""
    return -(-count // step) * step


def resident_bytes(head_dim: int, itemsize: int) -> int:
    """VMEM left for the keys of a head: a core of v4 or v5e gives a kernel 16 MiB.

    1.25 MiB for each byte of an element go to scores, and 16 KiB for each byte of a token's channels to blocks of
    queries, their sums and spills: a line under what the compiler takes, with 8 to 256 channels (fp32: to 160).
    """
    return 16 * 2**20 - 5 * 2**18 * itemsize - 2**14 * head_dim * itemsize


def choose_tiles(num_queries: int, num_keys: int, bytes_per_key: int, budget: int) -> Tiles:
    """The tiles for a call; all keys of a head lie in VMEM at once if `budget` bytes allow."""
    queries = min(BUNDLES_BY_QUERIES, key=lambda block: round_up(num_queries, block) * BUNDLES_BY_QUERIES[block])
    resident = round_up(num_keys, LANES)
    if resident * bytes_per_key > budget:
        most = max(budget // bytes_per_key // KEY_TILE, 1) * KEY_TILE
        chunks = -(-num_keys // most)
        resident = round_up(-(-num_keys // chunks), KEY_TILE)
    return Tiles(queries=queries, keys=KEY_TILE, resident=resident)


def forward_tiles(num_queries: int, num_keys: int, head_dim: int, itemsize: int) -> Tiles:
    """Keys and values lie in VMEM, twice when they come in chunks, since the next chunk loads meanwhile."""
    budget = resident_bytes(head_dim, itemsize)
    whole = choose_tiles(num_queries, num_keys, 2 * itemsize * head_dim, budget)
    if whole.resident >= num_keys:
        return whole
    return choose_tiles(num_queries, num_keys, 4 * itemsize * head_dim, budget)


def backward_tiles(num_queries: int, num_keys: int, head_dim: int, itemsize: int) -> Tiles:
    """Keys, values and their gradients lie in VMEM, and two fp32 sums."""
    budget = resident_bytes(head_dim, itemsize)
    return choose_tiles(num_queries, num_keys, (4 * itemsize + 2 * 4) * head_dim, budget)


def forward_cost(num_heads: int, num_queries: int, num_keys: int, head_dim: int, itemsize: int) -> Cost:
    """Two products of Nq x Nk x d; q in, out and one fp32 row out, k and v in, once for each pass over the keys."""
    tiles = forward_tiles(num_queries, num_keys, head_dim, itemsize)
    passes = 1 if tiles.resident >= num_keys else -(-num_queries // tiles.queries)
    scores = num_heads * num_queries * num_keys
    tokens = 2 * num_queries + 2 * num_keys * passes
    return Cost(
        flops=4 * scores * head_dim,
        exponentials=scores,
        hbm_bytes=num_heads * (tokens * head_dim * itemsize + num_queries * 4),
    )


def backward_cost(num_heads: int, num_queries: int, num_keys: int, head_dim: int, itemsize: int) -> Cost:
    """Five products of Nq x Nk x d; q, out, its gradient and the row in for each chunk of keys, k, v, dk, dv once.

    dq: once as it is; with several chunks, one fp32 part for each, to be added up by the caller (not counted).
    """
    chunks = -(-num_keys // backward_tiles(num_queries, num_keys, head_dim, itemsize).resident)
    scores = num_heads * num_queries * num_keys
    read = 3 * num_queries * chunks + 4 * num_keys
    written = num_queries * (itemsize if chunks == 1 else 4 * chunks)
    return Cost(
        flops=10 * scores * head_dim,
        exponentials=scores,
        hbm_bytes=num_heads * (read * head_dim * itemsize + written * head_dim + chunks * num_queries * 4),
    )
