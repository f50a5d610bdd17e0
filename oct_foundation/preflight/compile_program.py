"""A recorded program -> the TPU compiler's own figures for a slice, on a machine without a TPU.

Runs as a process of its own: `python -m oct_foundation.preflight.compile_program PROGRAM.json ANSWER.json TOPOLOGY`.
torch_xla cannot compile for a device that is not there; jax can, and both speak HLO.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oct_foundation.preflight.hlo_text import HloFigures, read_hlo
from oct_foundation.preflight.topologies import Topology, topology


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What came of one program; bytes of one chip, all 0 where `compiles` is False and `reason` says why.

    donated_bytes: of outputs that take an argument's place; bytes_accessed and flops as the compiler counts them, which
    is nothing inside a kernel that does not state its cost.
    """

    compiles: bool
    reason: str = ""
    args_bytes: int = 0
    out_bytes: int = 0
    donated_bytes: int = 0
    temp_bytes: int = 0
    code_bytes: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    seconds: float = 0.0
    peak_host_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    hlo: HloFigures | None = None

    @property
    def total_bytes(self) -> int:
        """Of HBM while the program runs: an output that replaces an argument takes no memory of its own."""
        return self.args_bytes + self.out_bytes - self.donated_bytes + self.temp_bytes + self.code_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "total_bytes": self.total_bytes}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Compiled":
        """What `to_dict` gave."""
        values = {name: value for name, value in found.items() if name != "total_bytes"}
        figures = values.pop("hlo")
        return cls(**values, hlo=None if figures is None else HloFigures(**figures))


def compile_hlo(hlo: bytes, donated: Sequence[int], chips: Sequence[Any], num_partitions: int = 1) -> Any:
    """An executable of an HLO module on each of `chips`; raises XlaRuntimeError where the compiler refuses.

    donated: numbers of the parameters whose buffers outputs may take, as torch_xla's sync declares them;
    num_partitions: over how many chips the compiler splits a module that says how (1: each chip runs all of it).
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client as xc
    from jax._src.lib.mlir import ir

    options = xc.CompileOptions()
    options.num_replicas, options.num_partitions = len(chips) // num_partitions, num_partitions
    options.device_assignment = xc.DeviceAssignment.create(np.arange(len(chips)).reshape(-1, num_partitions))
    if num_partitions > 1:  # as torch_xla asks for it: where it says nothing of an output, the compiler chooses
        options.executable_build_options.use_spmd_partitioning = True
        options.executable_build_options.allow_spmd_sharding_propagation_to_output = [True]
    text = xc._xla.mlir.xla_computation_to_mlir_module(xc.XlaComputation(hlo))
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        _declare_donors(module, donated)
        return compiler.backend_compile_and_load(chips[0].client, module, xc.DeviceList(tuple(chips)), options, [])


def chips_of(target: Topology) -> Sequence[Any]:
    """The chips of a slice that is not there, for a client that can only compile."""
    from jax.experimental import topologies

    chips: Sequence[Any] = topologies.get_topology_desc(
        platform="tpu", topology_name=target.compiler_name, **target.compiler_arguments
    ).devices
    if len(chips) != target.num_chips:
        raise RuntimeError(f"the compiler sees {len(chips)} devices in {target.name}, octfm {target.num_chips}")
    return chips


def _declare_donors(module: Any, donated: Sequence[int]) -> None:
    """Marks parameters of the module's main function, as jax itself marks donated arguments; other marks stay."""
    from jax._src.lib.mlir import ir

    main = next(operation for operation in module.body.operations if str(operation.name) == '"main"')
    marks = [{named.name: named.attr for named in argument} for argument in main.arg_attrs]
    for number in donated:
        marks[number]["jax.buffer_donor"] = ir.BoolAttr.get(True)
    main.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(argument) for argument in marks])


def first_sentence(message: str) -> str:
    """What a compiler's error says before it lists allocations."""
    return re.split(r"\n|(?<=[a-z])\.\s", message.strip(), maxsplit=1)[0][:600]


def compile_program(
    hlo: bytes, donated: Sequence[int], target: Topology, num_partitions: int = 1
) -> tuple[Compiled, str]:
    """Figures, and the optimized HLO as text; a refusal of the compiler is a figure, too."""
    from importlib import metadata

    from jax._src.lib import xla_client as xc

    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    start, chips = time.monotonic(), chips_of(target)
    try:
        program = compile_hlo(hlo, donated, chips, num_partitions)
    except xc.XlaRuntimeError as refusal:
        seconds = time.monotonic() - start
        return Compiled(compiles=False, reason=first_sentence(str(refusal)), seconds=seconds, versions=versions), ""
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    text = program.hlo_modules()[0].to_string()
    found = Compiled(
        compiles=True,
        args_bytes=memory.argument_size_in_bytes,
        out_bytes=memory.output_size_in_bytes,
        donated_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        seconds=time.monotonic() - start,
        peak_host_bytes=_peak_memory_bytes(),
        versions=versions,
        hlo=read_hlo(text),
    )
    return found, text


def _peak_memory_bytes() -> int:
    """Of this process; getrusage would tell of its parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main(argv: Sequence[str]) -> None:
    """Reads a program's facts, compiles the HLO beside them, writes the answer."""
    facts_path, answer_path, name = argv
    facts = json.loads(Path(facts_path).read_text())
    hlo = Path(facts_path).with_suffix(".hlo.pb").read_bytes()
    found, text = compile_program(hlo, facts["donated"], topology(name), facts["num_partitions"])
    Path(answer_path).with_suffix(".hlo.txt").write_text(text)
    Path(answer_path).write_text(json.dumps(found.to_dict()))


if __name__ == "__main__":
    main(sys.argv[1:])
