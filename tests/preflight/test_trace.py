from pathlib import Path

import pytest

from oct_foundation.preflight.stages import Stage, run_stages
from pretraining.preflight.trace import Trace
from tests.preflight.traces import NUM_CHIPS

pytest.importorskip("torch_xla", reason="torch-xla exists for Linux x86-64 only: tracing was NOT tested")

PARAMETERS, TRAINED = 1_334_496, 788_544


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    environment = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(NUM_CHIPS)}
    stage = Stage(module="tests.preflight.traces", arguments=[str(folder)], environment=environment, what="tracing")
    run_stages([stage], timeout_s=280, progress=print)
    return folder


def test_the_step_is_one_program_from_the_first_step_to_the_last(traces: Path):
    found = Trace.load(traces / "healthy")
    assert (found.train_graphs, found.expected_train_graphs, found.differing) == (1, 1, [])
    assert (found.parameters, found.trainable_parameters) == (PARAMETERS, TRAINED)


def test_a_second_look_at_validation_compiles_nothing_new(traces: Path):
    programs = Trace.load(traces / "healthy").programs
    sizes = [(traces / "healthy" / f"{one.name}.hlo.pb").stat().st_size for one in programs]
    kinds = [program.kind for program in programs]
    assert kinds == ["train", "validate", "validate"]
    assert sizes[2] < 0.1 * sizes[1]  # the second adds up the batches' losses


def test_weights_moments_teacher_and_counters_are_donated(traces: Path):
    (train,) = [one for one in Trace.load(traces / "healthy").programs if one.kind == "train"]
    counters = 3  # AdamW's steps, skipped, skipped in a row
    assert train.donated_bytes == 4 * (PARAMETERS + 2 * TRAINED + counters)
    assert len(set(train.donated)) == len(train.donated)


def test_the_program_reduces_over_all_replicas(traces: Path):
    hlo = (traces / "healthy" / "0-train.hlo.pb").read_bytes()
    assert b"all-reduce" in hlo
    assert b"all-reduce" not in (traces / "healthy" / "1-validate.hlo.pb").read_bytes()


def test_few_micro_steps_are_unrolled_and_many_are_cut(traces: Path):
    unrolled, cut = Trace.load(traces / "unrolled"), Trace.load(traces / "cut")
    assert (unrolled.accumulation, unrolled.train_graphs, unrolled.expected_train_graphs) == (2, 1, 1)
    assert (cut.accumulation, cut.train_graphs, cut.expected_train_graphs, cut.differing) == (6, 3, 3, [])
    runs = {one.name: one.runs_per_update for one in cut.programs if one.runs_per_update}
    assert runs == {"0-accumulate": 1, "1-accumulate": 4, "2-train": 1}


def test_operations_grow_with_the_micro_steps(traces: Path):
    once = Trace.load(traces / "healthy").model_flops
    assert Trace.load(traces / "cut").model_flops == pytest.approx(6 * once)


def test_state_that_is_born_in_step_1_makes_a_second_program(traces: Path):
    found = Trace.load(traces / "lazy")
    assert found.train_graphs == 2
    assert found.differing == ["in warm-up", "after warm-up", "the last step"]


def test_schedules_as_numbers_are_compiled_in_where_they_are_0_or_1(traces: Path):
    found = Trace.load(traces / "baked")
    assert found.train_graphs > 1
    assert "the last step" in found.differing  # momentum 1.0: the EMA's weight is 0
