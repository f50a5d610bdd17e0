"""Reads an optimized HLO module as text: what the chips send one another, and what each memory of a chip moves.

The compiler's own `bytes accessed` counts every operand of every operation, wherever it lies; the layouts in the text
say where that is.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, prod

_WIDTHS = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b(" + "|".join(_WIDTHS) + r")\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)])([a-z][\w\-]*)\(")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Return (source, destination, ...), of which the larger one is what they produce.
_NAME_THEIR_SOURCE = frozenset({"all-gather-start", "collective-permute-start"})
# On TPUs a fusion: an all-reduce of which each chip keeps its part only.
_FUSED_REDUCE_SCATTER = "calls=%all-reduce-scatter"
# Start a copy between memories and return ((source), destination, context), or the first two without brackets.
_COPIES = frozenset({"copy-start", "slice-start"})
# These name or pass on buffers; where they copy, one of the above or a fusion beside them does it.
_MOVE_NOTHING = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
    | {"copy-done", "async-start", "async-update", "async-done", "slice-done", "all-reduce-done"}
)


@dataclass(frozen=True, kw_only=True)
class HloFigures:
    """collective_bytes: of what collectives of that kind produce; hbm_bytes: of the entry's operands and results in
    HBM, tiles padded; num_kernels: custom calls of Pallas; silent_kernel_bytes: operands and results, each once, of
    those that state no cost, which the compiler's count of bytes leaves out.
    """

    collective_bytes: dict[str, int] = field(default_factory=dict)
    num_collectives: int = 0
    hbm_bytes: int = 0
    num_kernels: int = 0
    silent_kernel_bytes: int = 0


@dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    rest: str


def read_hlo(text: str) -> HloFigures:
    """Figures of the entry computation: what runs inside a fusion stays on the chip; loops' bodies are left out.

    XLA makes loops of the layers of a sharded program, in which pieces of a weight go round while others are used.
    """
    collectives: Counter[str] = Counter()
    in_hbm: dict[str, int] = {}
    num_collectives = moved = num_kernels = silent = 0
    for one in _entry(text):
        in_hbm[one.name] = sum(size for size, space in _buffers(one.result) if space == 0)
        kind = _collective(one)
        if kind is not None:
            sizes = [size for size, _ in _buffers(one.result)]
            collectives[kind] += max(sizes) if one.opcode in _NAME_THEIR_SOURCE else sum(sizes)
            num_collectives += 1
        if one.opcode in _MOVE_NOTHING:
            continue
        touched = in_hbm[one.name] + sum(in_hbm.get(operand, 0) for operand in one.operands)
        moved += _copied(one.result) if one.opcode in _COPIES else touched
        if 'custom_call_target="tpu_custom_call"' in one.rest:
            num_kernels += 1
            silent += 0 if '"cost_estimate"' in one.rest else touched
    return HloFigures(
        collective_bytes=dict(collectives),
        num_collectives=num_collectives,
        hbm_bytes=moved,
        num_kernels=num_kernels,
        silent_kernel_bytes=silent,
    )


def _collective(one: _Instruction) -> str | None:
    """Which collective it is; None for anything else."""
    if one.opcode == "fusion":
        return "reduce-scatter" if _FUSED_REDUCE_SCATTER in one.rest else None
    kind = one.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else None


def _copied(result: str) -> int:
    """HBM bytes that a started copy moves: the smaller side, a slice perhaps, once for each side that lies in HBM."""
    ends = list(_buffers(result))[:2]
    return min(size for size, _ in ends) * sum(space == 0 for _, space in ends)


def _entry(text: str) -> Iterator[_Instruction]:
    """The instructions of the entry computation, in their order."""
    inside = False
    for line in text.splitlines():
        if line.startswith("ENTRY"):
            inside = True
        elif inside and line.startswith("}"):
            return
        elif inside and (found := _INSTRUCTION.match(line)):
            name, rest = found.groups()
            start = _end_of_shape(rest)
            if opcode := _OPCODE.search(rest, start):
                operands = rest[opcode.end() :].split("), ", 1)[0]
                names = tuple(re.findall(r"%([\w.\-]+)", operands))
                yield _Instruction(name, opcode.group(1), rest[: opcode.start() + 1], names, rest)


def _end_of_shape(rest: str) -> int:
    """Where the result's shape ends: a tuple holds commas, blanks and brackets of its own."""
    if not rest.startswith("("):
        return 0
    depth = 0
    for position, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position
    return 0


def _buffers(shape: str) -> Iterator[tuple[int, int]]:
    """(bytes, memory space) of each array in a shape; space 0 is HBM. S(n) in a layout names any other."""
    for found in _SHAPE.finditer(shape):
        dtype, sides, layout = found.group(1), found.group(2), found.group(3) or ""
        space = re.search(r"S\((\d+)\)", layout)
        elements = _padded([int(side) for side in sides.split(",") if side], layout)
        yield elements * _WIDTHS[dtype], int(space.group(1)) if space else 0


def _padded(sides: list[int], layout: str) -> int:
    """Elements with the two fastest sides rounded up to whole tiles, as T(rows,columns) in a layout says."""
    tile = re.search(r"T\((\d+),(\d+)\)", layout)
    if tile and len(sides) >= 2:
        fastest, second = (int(side) for side in layout.split(":")[0].split(",")[:2])
        for side, width in ((second, int(tile.group(1))), (fastest, int(tile.group(2)))):
            sides[side] = ceil(sides[side] / width) * width
    return prod(sides)
