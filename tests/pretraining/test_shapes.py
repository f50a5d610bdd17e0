import pytest

from pretraining import shapes
from tests.integration.conftest import SMOKE

STAGES = (
    "file", "volume (source)", "batch.context_view", "batch.target_view", "mask ratio", "patch tokens",
    "context tokens", "targets", "predictions", "loss", "gradients", "update",
)  # fmt: skip


def test_every_stage_keeps_its_promise_at_the_smoke_configuration(capsys):
    assert shapes.main([str(SMOKE), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in STAGES)
    assert "NO" not in printed


def test_a_real_scan_passes_all_stages(test_data, capsys):
    overrides = ["data.source=directory", f"data.root={test_data / 'oct'}", "model.image_size=[8,64,96]"]
    assert shapes.main([str(SMOKE), *overrides]) == 0
    assert "[1, 1, 8, 64, 96]" in capsys.readouterr().out


def test_a_broken_stage_is_named_and_the_exit_code_is_1(monkeypatch, capsys):
    healthy = shapes.VJEPATask.train_batches

    def narrower(self, **kwargs):
        for batch in healthy(self, **kwargs):
            object.__setattr__(batch, "target_view", batch.target_view[..., :-16])
            yield batch

    monkeypatch.setattr(shapes.VJEPATask, "train_batches", narrower)
    assert shapes.main([str(SMOKE)]) == 1
    printed = capsys.readouterr().out
    assert "stage 'batch.target_view'" in printed
    assert "[1, 1, 16, 128, 112]" in printed


@pytest.mark.parametrize("wrong", ["train.epoch=1", "model.image_size=[16,100,128]"])
def test_a_wrong_configuration_is_exit_code_2(wrong, capsys):
    assert shapes.main([str(SMOKE), wrong]) == 2
    assert wrong.split("=")[0].split(".")[-1] in capsys.readouterr().err


@pytest.mark.parametrize(("called", "name"), [({}, "octfm shapes"), ({"prog": "debug_shapes.py"}, "debug_shapes.py")])
def test_the_help_says_what_was_called(called, name, capsys):
    with pytest.raises(SystemExit):
        shapes.main(["--help"], **called)
    assert capsys.readouterr().out.startswith(f"usage: {name} ")
