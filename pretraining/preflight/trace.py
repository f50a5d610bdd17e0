"""Traces the training step of a configuration as one chip of a slice runs it: programs and facts, into a folder.

Runs as a process of its own, `python -m pretraining.preflight.trace FOLDER NUM_CHIPS KIND CONFIG
[key=value ...]`, since torch_xla fixes its devices at import. No data is read: the
objective makes its own example batches.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from oct_foundation.models.xla_attention import lowering_for_tpu
from pretraining.assemble import build_state
from pretraining.config import RunConfig, load_config
from pretraining.config_file import value_of
from pretraining.step import train_step, validation_loss
from pretraining.tasks.build import build_objective
from pretraining.tasks.task import Objective

if TYPE_CHECKING:
    from oct_foundation.preflight.capture import Program

# A trace is of a schedule, not of a run's length: long enough to have a warm-up, a middle and an end.
TRACED_STEPS = 1000
NO_DATA = "data.root=preflight-reads-no-data"


@dataclass(frozen=True, kw_only=True)
class TracedProgram:
    """A distinct program: `name` of its files, how often it runs in one update (validation: 0), over how many chips the
    compiler has to split it (1: each runs all of it).
    """

    name: str
    kind: str
    digest: str
    runs_per_update: int
    num_partitions: int
    donated: list[int]
    donated_bytes: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a configuration would run on `num_chips`, and what is known of it without compiling.

    train_graphs: distinct programs of an update over warm-up, middle and end; model_flops: of one chip's update, by
    arithmetic; differing: moments whose programs are not those of the first.
    """

    num_chips: int
    accumulation: int
    per_core_batch_size: int
    train_graphs: int
    expected_train_graphs: int
    validate_graphs: int
    differing: list[str]
    parameters: int
    trainable_parameters: int
    model_flops: float
    seconds: float
    versions: dict[str, str]
    programs: list[TracedProgram] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "Trace":
        """What `trace` wrote there."""
        found = json.loads((folder / "trace.json").read_text())
        programs = [TracedProgram(**program) for program in found.pop("programs")]
        return cls(**found, programs=programs)


def load_without_data(path: Path, overrides: Sequence[str]) -> RunConfig:
    """The configuration; a `data.root` that it leaves open is filled in, since nobody looks there."""
    if (value_of("task", path, overrides) or "vjepa") == "vjepa":
        overrides = [NO_DATA, *overrides]
    return load_config(path, overrides)


def moments(config: RunConfig) -> dict[str, int]:
    """Steps whose scalars differ in kind: 0 and 1 would be compiled into a program that took them as numbers."""
    warmup = config.optim.warmup_steps
    end = max(TRACED_STEPS, 2 * (warmup + config.optim.decay_steps))
    in_warmup = {"in warm-up": warmup // 2} if warmup > 1 else {}
    return {"the first step": 0, **in_warmup, "after warm-up": max(warmup, 1), "the last step": end}


def trace(config: RunConfig, objective: Objective, num_chips: int, folder: Path, kind: str = "") -> Trace:
    """Writes NAME.hlo.pb and NAME.json of each distinct program and trace.json; returns the latter.

    kind: of batches, one of the objective's.
    """
    from pretraining.preflight.tracing_runtime import expected_train_graphs, tracing_runtime

    start = time.monotonic()
    accumulation = config.batch.accumulation(num_chips)
    runtime = tracing_runtime(num_chips, config.train.sharding)
    state = build_state(config, objective, runtime, begins=False, shapes_only=True)
    recorder, steps = runtime.recorder, moments(config)
    schedules = config.optim.schedules(max(steps.values()))
    num_samples = config.batch.per_core_batch_size * runtime.cores
    updates: dict[str, list[str]] = {}
    for moment, step in steps.items():
        begun = len(recorder.runs)
        batches = [objective.example_batch(num_samples, kind) for _ in range(accumulation)]
        train_step(
            objective,
            state.model,
            state.replica,
            state.optimizer,
            runtime,
            list(runtime.batches(batches)),
            runtime.scalars(schedules.at(step)),
            config.train.precision,
        )
        gc.collect()  # a tensor in a cycle would be an output of the next program
        updates[moment] = recorder.runs[begun:]
    runtime.phase = "validate"
    for _ in range(2):
        two = [objective.example_batch(num_samples, kind) for _ in range(2)]
        validation_loss(objective, state.model, runtime, two, config.train.precision)
    first = next(iter(updates.values()))
    programs = _write(recorder.programs.values(), first, runtime.cores, folder)
    found = Trace(
        num_chips=num_chips,
        accumulation=accumulation,
        per_core_batch_size=config.batch.per_core_batch_size,
        train_graphs=len({digest for digests in updates.values() for digest in digests}),
        expected_train_graphs=expected_train_graphs(accumulation),
        validate_graphs=sum(program.kind == "validate" for program in programs),
        differing=[moment for moment, digests in updates.items() if digests != first],
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        trainable_parameters=sum(
            parameter.numel() for parameter in state.model.parameters() if parameter.requires_grad
        ),
        model_flops=objective.sample_flops(kind) * config.batch.per_core_batch_size * accumulation,
        seconds=time.monotonic() - start,
        versions={name: metadata.version(name) for name in ("torch", "torch_xla")},
        programs=programs,
    )
    (folder / "trace.json").write_text(json.dumps(asdict(found)))
    return found


def _write(
    recorded: "Iterable[Program]", update: Sequence[str], num_partitions: int, folder: Path
) -> list[TracedProgram]:
    """The files of each program; `update`: the digests of one update, in their order."""
    found: list[TracedProgram] = []
    for program in recorded:
        traced = TracedProgram(
            name=f"{len(found)}-{program.kind}",
            kind=program.kind,
            digest=program.digest,
            runs_per_update=update.count(program.digest),
            num_partitions=num_partitions,
            donated=list(program.donated),
            donated_bytes=program.donated_bytes,
        )
        (folder / f"{traced.name}.hlo.pb").write_bytes(program.hlo)
        (folder / f"{traced.name}.json").write_text(json.dumps(asdict(traced)))
        found.append(traced)
    return found


def main(argv: Sequence[str]) -> None:
    """Writes the trace of a configuration's own objective."""
    folder, num_chips, kind, path, *overrides = argv
    config = load_without_data(Path(path), overrides)
    with lowering_for_tpu():
        trace(config, build_objective(config), int(num_chips), Path(folder), kind)
    sys.stdout.flush()
    os._exit(0)  # before anything can run what is still pending


if __name__ == "__main__":
    main(sys.argv[1:])
