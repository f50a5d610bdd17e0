"""Configuration + slice -> estimate, through the stages: trace, then compile, each in a process of its own."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oct_foundation.preflight.compile_program import Compiled
from oct_foundation.preflight.stages import Stage, run_stages
from oct_foundation.preflight.topologies import Topology
from pretraining.config import RunConfig
from pretraining.preflight.estimate import Estimate, training_volumes
from pretraining.preflight.trace import Trace, TracedProgram, load_without_data

Progress = Callable[[str], None]
TRACE_MODULE = "pretraining.preflight.trace"
COMPILE_MODULE = "oct_foundation.preflight.compile_program"
# Of 16 GiB the compiler takes 9 GB for the step at [64,384,384] and 3 for validation; most of it runs on one core.
COMPILERS = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of preflight. keep: where programs and optimized HLO stay; volumes: that train, for how long; kind:
    of batches, where a task has several.
    """

    config: Path
    overrides: tuple[str, ...]
    topology: Topology
    timeout_s: float
    progress: Progress
    keep: Path | None = None
    volumes: int | None = None
    kind: str = ""

    def load(self) -> RunConfig:
        """The configuration; raises ConfigError where it cannot run on the slice."""
        config = load_without_data(self.config, self.overrides)
        config.batch.accumulation(self.topology.num_chips)
        return config


def estimate(request: Request, *, validate: bool = True) -> Estimate:
    """Traces and compiles; raises ConfigError, or StageFailed where a stage dies.

    validate: the largest program of validation is compiled, too.
    """
    config = request.load()
    with _folder(request.keep) as folder:
        trace = run_trace(request, folder)
        compiled = run_compiler(request, folder, to_compile(trace, folder, validate=validate))
    volumes, source = training_volumes(config, request.volumes)
    return Estimate(
        config=config,
        topology=request.topology,
        trace=trace,
        compiled=compiled,
        num_volumes=volumes,
        num_volumes_from=source,
        kind=request.kind,
    )


def run_trace(request: Request, folder: Path) -> Trace:
    """The trace of the configuration on every chip of the slice."""
    chips = request.topology.num_chips
    of_kind = f" with {request.kind}" if request.kind else ""
    request.progress(f"tracing the step of {request.config.name}{of_kind} on {chips} chips")
    stage = Stage(
        module=TRACE_MODULE,
        arguments=[str(folder), str(chips), request.kind, str(request.config.resolve()), *request.overrides],
        environment={"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(chips)},
        what="tracing",
    )
    run_stages([stage], timeout_s=request.timeout_s, progress=request.progress)
    return Trace.load(folder)


def run_compiler(request: Request, folder: Path, programs: Sequence[TracedProgram]) -> dict[str, Compiled]:
    """The compiler's answer to each program, by name."""
    target = request.topology.name
    request.progress(f"compiling {len(programs)} programs for {target}: minutes for large volumes")
    answers = {program.name: folder / f"{program.name}.{target}.json" for program in programs}
    stages = [
        Stage(
            module=COMPILE_MODULE,
            arguments=[str(folder / f"{program.name}.json"), str(answers[program.name]), target],
            environment={},
            what=f"compiling {program.kind}",
        )
        for program in programs
    ]
    run_stages(stages, timeout_s=request.timeout_s, progress=request.progress, at_once=COMPILERS)
    return {name: Compiled.from_dict(json.loads(path.read_text())) for name, path in answers.items()}


def to_compile(trace: Trace, folder: Path, *, validate: bool) -> Sequence[TracedProgram]:
    """The programs of an update, and the largest of validation: the other adds up a few numbers."""
    update = [program for program in trace.programs if program.runs_per_update]
    others = [program for program in trace.programs if program.kind == "validate"]
    if not validate or not others:
        return update
    return [*update, max(others, key=lambda program: (folder / f"{program.name}.hlo.pb").stat().st_size)]


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The folder to keep, or one that goes away."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="octfm-preflight-") as temporary:
        yield Path(temporary)
