"""A model that was never in memory gives the program of one that was: 3.5 billion parameters are traced on a laptop."""

import pytest

from oct_foundation.preflight.stages import Stage, run_stages
from pretraining.preflight.trace import Trace
from tests.preflight.shape_traces import NUM_CHIPS

pytest.importorskip("torch_xla", reason="torch-xla exists for Linux x86-64 only: tracing was NOT tested")


def test_shapes_alone_give_the_same_program_with_all_of_its_state_in_shares(tmp_path):
    environment = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(NUM_CHIPS)}
    stage = Stage(
        module="tests.preflight.shape_traces", arguments=[str(tmp_path)], environment=environment, what="tracing"
    )
    run_stages([stage], timeout_s=250, progress=print)
    values, shapes = (Trace.load(tmp_path / name) for name in ("values", "shapes"))
    assert shapes.train_graphs == values.train_graphs == 1
    assert shapes.parameters == values.parameters
    assert [program.donated_bytes for program in shapes.programs] == [p.donated_bytes for p in values.programs]
    sizes = [
        [path.stat().st_size for path in sorted((tmp_path / name).glob("*.hlo.pb"))] for name in ("values", "shapes")
    ]
    assert sizes[0] == sizes[1]
    assert shapes.programs[0].digest == values.programs[0].digest
