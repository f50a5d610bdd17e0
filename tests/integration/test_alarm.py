"""A run whose features collapse is named as such, and ends where that is asked for."""

import pytest

from oct_foundation.runtime.exits import ExitCode
from pretraining.report.command import main as report

TINY = (
    "model.image_size=[16,64,64]", "data.phantom.num_volumes=24", "data.max_samples=null", "data.val_fraction=0.4",
    "train.max_steps=400", "train.epochs=400", "train.val_every_steps=null", "checkpoint.every_steps=1000",
    "diagnostics.enabled=true", "diagnostics.every_steps=60", "diagnostics.labels=phantoms",
)  # fmt: skip


def test_a_collapse_stops_the_run_saved_and_named(train, tmp_path, capsys):
    run = train(tmp_path, *TINY, "diagnostics.stop_on_alarm=true", fault="shrink:5", code=ExitCode.NOT_LEARNING)
    assert list(run.curve("diag/pos_ratio")) == [0, 60, 120]  # one reading is no alarm
    assert "step 120: collapse" in run.output
    assert "stopped at step 120, saved for a look at it" in run.output
    assert run.state()["step"] == 120
    assert (run.summary["outcome"], run.summary["verdict"]) == ("stopped, collapsed", "COLLAPSED")
    spread = run.curve("diag/pooled_std")
    assert spread[120] < spread[0] / 3
    assert set(run.curve("diag/probe/thickness_um")) == {0, 60, 120}
    assert run.curve("diag/probe_init/thickness_um")[120] == run.curve("diag/probe/thickness_um")[0]
    assert report([str(run.folder)]) == 0
    assert capsys.readouterr().out.startswith("COLLAPSED")
    assert report([str(run.folder), "--strict"]) == 1


@pytest.mark.slow  # two more runs for one reading that a checkpoint carries on
def test_a_resumed_run_is_compared_with_its_own_start(train, tmp_path):
    some = ("train.max_steps=130", "checkpoint.every_steps=60")
    train(tmp_path, *TINY, *some, fault="crash:70", code=1)
    run = train(tmp_path, *TINY, *some)
    assert run.summary["start_step"] == 60
    assert [row["step"] for row in run.rows if "diag/pos_ratio" in row] == [0, 60, 120, 130]
    assert run.curve("diag/probe_init/thickness_um")[130] == run.curve("diag/probe/thickness_um")[0]
    assert "no reading at step 0" not in run.output
