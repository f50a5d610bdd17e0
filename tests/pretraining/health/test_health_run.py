"""Run folders of all tasks: a sound one is called sound; each planted fault, swap and torn file is found."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oct_foundation.models.brain_config import training_flops
from pretraining.autoencoder_config import AutoencoderRunConfig
from pretraining.config import load_config
from pretraining.health.command import main
from tests.pretraining.health.health_runs import (
    RATE,
    film_model,
    film_rows,
    health,
    names_of,
    save,
    series,
    sound_run,
    trained,
    write_run,
)
from tests.pretraining.report_runs import crashed_run
from tests.pretraining.report_runs import rows as encoder_rows
from tests.pretraining.report_runs import write_run as write_encoder_run

ORDER = [
    "status", "progress", "losses", "devices", "performance", "normalisation", "model", "changes", "warnings",
    "next_steps", "checkpoints", "completion", "components", "evaluation", "weights", "conclusion",
]  # fmt: skip
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run(tmp_path: Path, original: Path) -> Path:
    """A copy, to plant faults in."""
    return shutil.copytree(original, tmp_path / "run")


def rewritten(run: Path, change: Callable[[Rows], Rows | None]) -> Path:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = change(rows) or rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_sound_run_is_learned_and_sound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = health(run, tmp_path / "out")
    assert (code, found["verdict"], names_of(found)) == (0, "LEARNED", {})
    assert list(found["sections"]) == ORDER
    assert capsys.readouterr().out.startswith("LEARNED (video LEARNED, text LEARNED, fmri LEARNED, audio LEARNED)")
    skill = {one["name"]: one["figures"]["skill"] for one in found["modalities"]}
    assert skill["fmri"] == pytest.approx(0.5, abs=0.03)  # truth behind as much noise as signal, shrunk: 1 - 1/2
    table = found["sections"]["losses"]["tables"][0]
    assert table["rows"][-1][:4] == ["100", "10", "2", "2"]
    last = dict(zip(table["header"][4:], table["rows"][-1][4:], strict=True))
    assert (last["fmri"], last["mean scores"]) == ("0.5", "1")  # in the unit of the loss, beside it
    components = {row[0]: row[1] for row in found["sections"]["components"]["tables"][0]["rows"]}
    assert components["Weights"] == components["Losses"] == "ok"
    assert components["Devices"] == "not recorded"


def test_files_lie_in_the_run_by_default_and_say_the_same(run: Path) -> None:
    assert main([str(run)]) == 0
    texts = [(run / "health" / name).read_text() for name in ("health.md", "health.json", "health.html")]
    assert all("LEARNED" in text and "skill" in text for text in texts)
    assert "<script" not in texts[2]
    assert "http" not in texts[2].replace("http-equiv", "")


@pytest.mark.parametrize(
    ("values", "finding", "code"),
    [
        ({"train/loss": math.nan}, "metrics_not_finite", 3),
        ({"diag/val_loss/fmri": math.inf}, "metrics_not_finite", 3),
        ({"train/skipped_updates": 2.0}, "skipped_updates", 1),
        ({"train/skipped_updates": 20.0}, "skipped_updates", 2),
        ({"train/learning_rate": 5 * RATE}, "rate_not_as_planned", 1),
        ({"train/share/audio": 90.0}, "dominance", 1),
        ({"diag/grad_share/audio": 90.0}, "dominance", 1),
    ],
)
def test_what_a_record_says_is_found(
    run: Path, tmp_path: Path, values: dict[str, float], finding: str, code: int
) -> None:
    def change(rows: Rows) -> None:
        for row in rows[10:-2]:
            row.update({name: value for name, value in values.items() if name.split("/")[0] in next(reversed(row))})

    found_code, found = health(rewritten(run, change), tmp_path / "out")
    assert set(names_of(found)) == {finding}
    assert found_code == code


@pytest.mark.parametrize(
    ("score", "finding", "code"),
    [
        (lambda step: 0.0, "flat_loss", 1),
        (lambda step: -step / 100, "divergence", 2),
        (lambda step: step / 100 if step < 60 else 0.6 - step / 200, "best_final_gap", 2),
    ],
)
def test_courses_are_judged(tmp_path: Path, score: Callable[[int], float], finding: str, code: int) -> None:
    run = sound_run(tmp_path / "run")
    write_run(run, film_rows(120, score))
    for name in ("last.npz", "best.npz"):
        series(120, noise=1.0).save(run / "evaluation" / name)
    found_code, found = health(run, tmp_path / "out")
    assert finding in names_of(found)
    assert found_code == code


def test_a_run_that_has_not_learned_says_so_with_its_bounds(run: Path, tmp_path: Path) -> None:
    series(100, noise=300.0).save(run / "evaluation" / "last.npz")
    code, found = health(run, tmp_path / "out")
    assert (code, found["verdict"]) == (2, "NOT LEARNED")
    fmri = next(one for one in found["modalities"] if one["name"] == "fmri")
    assert fmri["verdict"] == "NOT LEARNED"
    assert fmri["figures"]["r_time_high"] < 0.05 or fmri["figures"]["skill_high"] < 0.01
    [step] = found["sections"]["next_steps"]["lines"]
    assert "fmri" in step
    assert "not learned: see that inputs and targets belong together" in step


def test_ten_trs_cannot_tell(run: Path, tmp_path: Path) -> None:
    for name in ("last.npz", "best.npz"):
        series(100, noise=1.0, num_trs=10).save(run / "evaluation" / name)
    code, found = health(run, tmp_path / "out")
    assert (code, found["verdict"]) == (0, "CANNOT TELL")
    assert any("would decide" in line for line in found["sections"]["evaluation"]["lines"])


def test_swapped_best_and_last_series_are_found(run: Path, tmp_path: Path) -> None:
    series(60, noise=0.9).save(run / "evaluation" / "best.npz")
    assert health(run, tmp_path / "a")[0] == 0
    folder = run / "evaluation"
    (folder / "last.npz").rename(folder / "x")
    (folder / "best.npz").rename(folder / "last.npz")
    (folder / "x").rename(folder / "best.npz")
    code, found = health(run, tmp_path / "b")
    assert (code, set(names_of(found))) == (2, {"series_out_of_step", "best_is_not_best"})


def test_swapped_best_and_final_checkpoints_are_found(run: Path, tmp_path: Path) -> None:
    """A manifest whose figures are those of another step, as copies of files under each other's names have them."""
    save(run, trained(film_model(), 2) | {"step": 90}, {"diag/score": 0.5, "diag/val_loss": 2.0})
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (2, {"checkpoint_mislabelled": "alarm"})
    assert "the record 0.45" in found["findings"][0]["evidence"]


def test_best_weights_that_are_in_no_file_are_named(run: Path, tmp_path: Path) -> None:
    write_run(run, film_rows(100, lambda step: 0.6 if step == 50 else step / 250))
    _, found = health(run, tmp_path / "out")
    assert names_of(found)["best_final_gap"] == "alarm"
    assert found["sections"]["checkpoints"]["tables"][0]["rows"][0] == ["best", "50", "0.6", "–", "no, in no file"]


def test_partial_validation_is_a_warning(run: Path, tmp_path: Path) -> None:
    part = dataclasses.replace(series(100, noise=1.0), complete=False)
    part.save(run / "evaluation" / "last.npz")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "film": {"trs": {"val": 1600}}}))
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (1, {"partial_validation": "warning"})
    assert found["verdict"] == "CANNOT TELL"


@pytest.mark.parametrize("name", ["last.npz", "best.npz"])
@pytest.mark.parametrize("keep", [0.0, 0.99])
def test_torn_series_are_unreadable_and_the_record_speaks(run: Path, tmp_path: Path, name: str, keep: float) -> None:
    path = run / "evaluation" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})
    assert found["verdict"] == "LEARNED"


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl", "run_id", "supervisor.json"])
def test_files_of_rubbish_are_findings_and_never_a_traceback(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff{[rubbish\n\x00more\n")
    code, found = health(run, tmp_path / "out")
    assert code == 3
    assert "unreadable" in names_of(found)
    assert found["sections"]["conclusion"]["lines"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "summary.json",
            '{"film": {"trs": 5, "subjects": 3}, "wall_seconds": {"a": "b"}, "trainable_parameters": "x"}',
        ),
        ("summary.json", '{"film": 7, "world_size": "x", "steps": true, "versions": 4}'),
        ("config.yaml", "task: 5\noptim: {schedule: foo}\nloss: 4\ncheckpoint: {best_metric: 4, ckpt_dir: 5}\n"),
        ("config.yaml", "task: autoencoder\noptim: {schedule: foo}\ntrain: {max_steps: 100}\n"),
        ("metrics.jsonl", '{"step": -5, "train/loss": true}\n{"step": 5.5, "diag/verdict/fmri": 7}\n'),
        ("devices.jsonl", '{"device": "cpu", "utilisation": "x", "time": 5}\n'),
    ],
)
def test_values_of_odd_kinds_are_no_traceback(run: Path, tmp_path: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    assert health(run, tmp_path / "out")[1]["sections"]["conclusion"]["lines"]


def test_a_cut_last_line_is_what_a_kill_leaves_and_one_in_between_is_damage(run: Path, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 110, "ti')
    assert health(run, tmp_path / "out")[0] == 0
    path.write_text('{"step": 1, "ti\n' + whole)
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})


def test_a_truncated_checkpoint_of_the_middle_is_found_by_its_size(run: Path, tmp_path: Path) -> None:
    folder = save(run, trained(film_model(), 2) | {"step": 50})
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-7])
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})


def test_two_runs_in_one_record_are_named_and_the_last_is_judged(run: Path, tmp_path: Path) -> None:
    rewritten(run, lambda rows: [*film_rows(40, lambda step: -900.0), *rows])
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (1, {"two_runs": "warning"})
    tables = found["sections"]["losses"]["tables"]
    assert [len(table["rows"]) for table in tables] == [5, 11]
    assert [table["caption"] for table in tables] == ["Run 1 of 2 in this record", "Run 2 of 2 in this record"]


def test_checkpoints_of_another_run_or_other_settings_are_named(run: Path, tmp_path: Path) -> None:
    (run / "run_id").write_text("ba9876543210\n")
    assert names_of(health(run, tmp_path / "out")[1]) == {"two_runs": "warning"}
    (run / "run_id").write_text("0123456789ab\n")
    save(run, trained(film_model(), 2) | {"step": 50}, config={"task": "autoencoder", "seed": 7})
    code, found = health(run, tmp_path / "out")
    assert (code, names_of(found)) == (1, {"two_runs": "warning"})
    assert "2 different task, model or loss settings" in found["findings"][0]["evidence"]


def test_an_unfinished_run_has_a_forecast_of_its_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", film_rows(40), finished=False)
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps({**config, "train": {"max_steps": 100}}))
    code, found = health(run, tmp_path / "out")
    assert code == 0
    (line,) = [line for line in found["sections"]["performance"]["lines"] if line.startswith("Forecast")]
    assert line.startswith("Forecast: 60 of 100 updates are left, about 60 s of training")  # a second each
    assert "2026-11" in line
    assert "not finished" in found["sections"]["evaluation"]["lines"][0]


def test_devices_are_summed_up_with_the_sentence_on_percent(run: Path, tmp_path: Path) -> None:
    rows = [
        {"time": f"2026-11-22T00:00:0{n}", "host": "a", "device": "cuda:0", "name": "GPU", "utilisation": 90.0 + n}
        for n in range(5)
    ]
    (run / "devices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    rewritten(run, lambda rows: [row | {"train/samples_per_sec": 9.0} for row in rows])
    code, found = health(run, tmp_path / "out", "--peak-tflops", "0.001")
    section = found["sections"]["devices"]
    config = load_config(run / "config.yaml")
    assert isinstance(config, AutoencoderRunConfig)
    share = 9.0 * training_flops(config.network) / 1e9
    assert f"MFU {share:.2%} of 0.001 TFLOP/s per device" in section["lines"][1]
    assert any("proves little" in line for line in section["lines"])
    (row,) = section["tables"][0]["rows"]
    assert row[2] == "92 % (94 %)"
    assert code == 0


def answers(low: float, high: float, kind: str) -> dict[str, float]:
    values = {"accuracy": 0.5, "majority": 0.4, "gain": (low + high) / 2, "gain_low": low, "gain_high": high}
    return {f"diag/{name}/{kind}": value for name, value in {**values, "questions": 90.0}.items()}


def test_answers_are_judged_kind_by_kind(tmp_path: Path) -> None:
    reading = {**answers(0.1, 0.3, "T1"), **answers(-0.1, 0.01, "dMRI"), **answers(-0.1, 0.2, "rsfMRI")}
    run = write_run(
        tmp_path / "run", [{"step": 0, "time": 1.0}, {"step": 90, "time": 2.0, **reading}], task="multimodal"
    )
    code, found = health(run, tmp_path / "out")
    verdicts = {one["name"]: one["verdict"] for one in found["modalities"]}
    assert verdicts == {"T1": "LEARNED", "dMRI": "NOT LEARNED", "rsfMRI": "CANNOT TELL"}
    assert code == 2


@pytest.mark.parametrize(("dead", "verdict", "code"), [(False, "LEARNED", 0), (True, "NOT LEARNED", 2)])
def test_an_encoder_is_judged_by_its_readings(tmp_path: Path, dead: bool, verdict: str, code: int) -> None:
    run = write_encoder_run(tmp_path / "run", encoder_rows(dead=dead))
    (run / "config.yaml").write_text("task: vjepa\ncheckpoint: {enabled: false}\n")
    found_code, found = health(run, tmp_path / "out")
    assert (found["verdict"], found_code) == (verdict, code)
    assert "average scan" in found["sections"]["losses"]["tables"][0]["header"]


def test_a_crashed_run_is_read_without_a_traceback_or_its_secrets(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    code, found = health(run, tmp_path / "out")
    assert code in (0, 1)
    assert "Failed after 237 updates" in found["sections"]["completion"]["lines"][0]
    assert "hunter2" not in "".join((tmp_path / "out" / name).read_text() for name in ("health.md", "health.html"))


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["."], ["--val-trs", "0", "x"], ["--peak-tflops", "-1", "x"]])
def test_a_wrong_call_ends_with_3_for_2_would_say_not_learned(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 3


def test_help_says_what_the_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("0  sound", "1  a warning", "2  NOT LEARNED", "3  NaN or Inf"))
