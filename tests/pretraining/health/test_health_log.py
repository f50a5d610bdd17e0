"""Foreign logs and checkpoints: the documented numbers come out as documented; runs are told apart; torn files told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pretraining.health.training_log import LoggedEpoch, read_log, split_runs
from tests.pretraining.health.health_runs import health, names_of

EARLY = (
    "Epoch 1/50 | Train Loss: 725.7300 | Val Loss: 566.5700 | fMRI Corr: -0.0005 | LR: 1.00e-05",
    "Epoch 2/50 | Train Loss: 720.7000 | Val Loss: 566.9600 | fMRI Corr: -0.0008 | LR: 1.10e-05",
    "Epoch 3/50 | Train Loss: 721.1600 | Val Loss: 573.4500 | fMRI Corr: -0.0005 | LR: 1.19e-05",
)
CLOSING = "Epoch 29/50 | Train Loss: 707.6600 | Val Loss: 274.7100 | fMRI Corr: 0.0013 | LR: 5.38e-04"
TRS = ("--val-trs", "24", "--val-trs-total", "190")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def foreign(path: Path, *, seed: int = 0, **more: Any) -> Path:
    """As the original writes: model, optimizer, histories, best loss."""
    model = network(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    saved = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "config": {"lr": 1e-3},
    }
    torch.save({**saved, "train_history": [], "val_history": [], **more}, path)
    return path


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The table of one run, the closing line of another, and the two files that its last save left."""
    folder = tmp_path / "documented"
    folder.mkdir()
    (folder / "training.log").write_text("\n".join((*EARLY, CLOSING)) + "\n")
    for name in ("best_checkpoint.pt", "final_checkpoint.pt"):
        foreign(folder / name, epoch=29, global_step=1363, best_val_loss=167.15, val_loss=167.15)
    return folder


def test_the_documented_numbers_come_out_as_they_must(documented: Path, tmp_path: Path) -> None:
    code, found = health(documented, tmp_path / "out", *TRS)
    verdicts = {one["name"]: one["verdict"] for one in found["modalities"]}
    assert verdicts == {"video": "CANNOT TELL", "audio": "CANNOT TELL", "text": "CANNOT TELL", "fmri": "NOT LEARNED"}
    assert (code, found["verdict"]) == (2, "NOT LEARNED")
    fmri = next(one for one in found["modalities"] if one["name"] == "fmri")["figures"]
    assert round(fmri["r_voxels_high"], 3) == 0.026
    evidence = {one["name"]: one["evidence"] for one in found["findings"]}
    assert set(evidence) == {"two_runs", "flat_loss", "best_final_gap", "partial_validation", "checkpoint_mislabelled"}
    assert "725.73 to 707.66 in epochs 1 to 29 (-2.5%)" in evidence["flat_loss"]
    assert "two runs" in evidence["flat_loss"]
    assert "(+64%); the best weights are in no file" in evidence["best_final_gap"]
    assert "24 of 190 TRs" in evidence["partial_validation"]
    assert "learning rate is 0.000538 at epoch 29" in evidence["two_runs"]
    assert "which scored 274.71" in evidence["checkpoint_mislabelled"]


def test_each_run_has_a_table_of_its_own(documented: Path, tmp_path: Path) -> None:
    _, found = health(documented, tmp_path / "out", *TRS)
    tables = found["sections"]["losses"]["tables"]
    assert [len(table["rows"]) for table in tables] == [3, 1]
    assert [table["caption"] for table in tables] == ["Run 1 of 2", "Run 2 of 2"]
    assert tables[1]["rows"][0][:2] == ["29/50", "707.66"]
    assert {row[3] for table in tables for row in table["rows"]} == {"not recorded"}  # baselines


def test_without_the_number_of_trs_the_fmri_verdict_is_open(documented: Path, tmp_path: Path) -> None:
    code, found = health(documented, tmp_path / "out")
    assert found["verdict"] == "CANNOT TELL"
    assert "give --val-trs" in next(one for one in found["modalities"] if one["name"] == "fmri")["reasons"][0]
    assert code == 2  # of the weights that are in no file


def test_a_log_file_alone_is_judged(tmp_path: Path) -> None:
    log = tmp_path / "any.log"
    log.write_text("12:00:00 INFO " + "\n12:00:01 INFO ".join(EARLY))
    code, found = health(log, tmp_path / "out", "--val-trs", "2000")
    assert (code, found["verdict"]) == (2, "NOT LEARNED")
    assert names_of(found) == {}
    assert found["facts"]["epoch"] == 3


def lines(*rows: tuple[int, float], total: int | None = 50) -> list[LoggedEpoch]:
    return [
        LoggedEpoch(epoch=epoch, total=total, train_loss=1.0, val_loss=1.0, correlation=0.0, learning_rate=rate)
        for epoch, rate in rows
    ]


@pytest.mark.parametrize(
    "rates",
    [
        [1e-6 + 1e-4 * n for n in range(10)],  # linear warm-up
        [1e-3 * 0.5**n for n in range(10)],
        [1e-3] * 5 + [1e-4] * 5,  # steps
        [1e-3, 5e-4, 1e-6, 1e-3, 5e-4, 1e-6],  # a cosine with warm restarts
        [0.0, 1e-4, 2e-4, 3e-4],
        [1e-6, 5e-4, 1e-3],  # a warm-up of two epochs, said at their ends
    ],
)
def test_schedules_are_not_taken_for_two_runs(rates: list[float]) -> None:
    assert len(split_runs(lines(*enumerate(rates, start=1)))) == 1


def test_epochs_that_begin_anew_are_another_run() -> None:
    runs = split_runs(lines((1, 1e-3), (2, 1e-3), (3, 1e-3), (1, 1e-3), (2, 1e-3)))
    assert [[line.epoch for line in run.epochs] for run in runs] == [[1, 2, 3], [1, 2]]
    assert runs[1].why == "epochs begin anew at 1 after 3"
    assert not runs[1].joined


def test_a_resumed_run_trains_epochs_again_and_stays_one() -> None:
    (run,) = split_runs(lines((1, 1e-3), (2, 1e-3), (3, 1e-3), (2, 9e-4), (3, 8e-4), (4, 7e-4)))
    assert [line.learning_rate for line in run.epochs] == [1e-3, 9e-4, 8e-4, 7e-4]


def test_another_plan_is_another_run() -> None:
    assert len(split_runs([*lines((1, 1e-3), (2, 1e-3)), *lines((3, 1e-3), total=30)])) == 2


def test_nothing_is_said_across_runs_that_begin_anew(tmp_path: Path) -> None:
    """900 to 1 over both is no fall and no rise of either."""
    log = tmp_path / "training.log"
    first = [f"Epoch {n}/20 | Train Loss: {900 - 20 * n} | Val Loss: {900 - 20 * n} | LR: 1e-3" for n in range(1, 20)]
    second = [f"Epoch {n}/20 | Train Loss: {2 - n / 20} | Val Loss: {2 - n / 20} | LR: 1e-3" for n in range(1, 20)]
    log.write_text("\n".join(first + second))
    code, found = health(log, tmp_path / "out")
    assert (code, names_of(found)) == (1, {"two_runs": "warning"})
    assert [len(table["rows"]) for table in found["sections"]["losses"]["tables"]] == [19, 19]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda n: (2.0, 2.0), "flat_loss"),
        (lambda n: (1.0 + n / 10, 1.0 + n / 10), "divergence"),
        (lambda n: (2.0 / n, 2.0 / n if n < 5 else 0.5 + n / 50), "over_fit"),
        (lambda n: (float("nan") if n > 20 else 2.0 / n, 2.0 / n), "metrics_not_finite"),
    ],
)
def test_courses_of_a_log_are_judged(tmp_path: Path, change: Any, finding: str) -> None:
    log = tmp_path / "training.log"
    losses = [(n, *change(n)) for n in range(1, 31)]
    log.write_text("\n".join(f"Epoch {n}/30 | Train Loss: {a} | Val Loss: {b} | LR: 1e-3" for n, a, b in losses))
    code, found = health(log, tmp_path / "out")
    assert finding in names_of(found)
    assert code == (3 if finding == "metrics_not_finite" else 2 if finding == "divergence" else 1)


def test_torn_lines_and_logs_without_a_line_are_unreadable(tmp_path: Path) -> None:
    log = tmp_path / "training.log"
    log.write_text("\n".join(EARLY) + "\nEpoch 4/50 | Train Lo")
    code, found = health(tmp_path, tmp_path / "out")
    assert (code, names_of(found)) == (3, {"unreadable": "alarm"})
    assert len(found["sections"]["losses"]["tables"][0]["rows"]) == 3
    log.write_bytes(b"\xff\x00nothing")
    assert health(log, tmp_path / "out")[0] == 3


def test_a_log_with_its_best_weights_in_a_file_has_a_gap_and_no_loss(tmp_path: Path) -> None:
    text = "\n".join(
        f"Epoch {n}/4 | Train Loss: {9 - n} | Val Loss: {v}" for n, v in enumerate((6.0, 2.0, 4.0, 5.0), 1)
    )
    (tmp_path / "training.log").write_text(text)
    foreign(tmp_path / "best_checkpoint.pt", epoch=2, global_step=94, best_val_loss=2.0, val_loss=2.0)
    foreign(tmp_path / "final_checkpoint.pt", seed=1, epoch=4, global_step=188, best_val_loss=2.0)
    code, found = health(tmp_path, tmp_path / "out")
    assert (code, names_of(found)) == (1, {"best_final_gap": "warning"})
    assert "the best weights are saved" in found["findings"][0]["evidence"]


def test_a_foreign_checkpoint_alone_cannot_tell_and_is_examined(tmp_path: Path) -> None:
    path = foreign(
        tmp_path / "checkpoint_epoch_3.pt", epoch=3, global_step=60, best_val_loss=2.0, val_history=[4.0, 3.0, 2.0]
    )
    code, found = health(path, tmp_path / "out")
    assert (code, found["verdict"], names_of(found)) == (0, "CANNOT TELL", {})
    assert "matched to its parameters" in found["sections"]["weights"]["lines"][0]
    assert [row[2] for row in found["sections"]["losses"]["tables"][0]["rows"]] == ["4", "3", "2"]
    assert health(path, tmp_path / "out", "--strict")[0] == 1


def test_best_and_final_that_are_one_file_are_told_by_their_weights(tmp_path: Path) -> None:
    """No log: the label says best, the weights are those of the final file."""
    for name in ("best_checkpoint.pt", "final_checkpoint.pt"):
        foreign(tmp_path / name, epoch=29, global_step=1363, best_val_loss=167.15, val_loss=167.15)
    code, found = health(tmp_path, tmp_path / "out")
    assert (code, names_of(found)) == (2, {"checkpoint_mislabelled": "alarm"})
    assert "the same as final_checkpoint.pt" in found["findings"][0]["evidence"]


def test_damaged_and_hostile_files_are_unreadable(tmp_path: Path) -> None:
    whole = foreign(tmp_path / "a.pt").read_bytes()
    hostile = tmp_path / "hostile.pt"
    torch.save({"model_state_dict": network()}, hostile)  # a pickled module: loading it would run its code
    cut, text, odd = tmp_path / "cut.pt", tmp_path / "text.safetensors", tmp_path / "odd.pt"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no tensors")
    torch.save([1, 2], odd)
    for path in (hostile, cut, text, odd):
        code, found = health(path, tmp_path / "out")
        assert (code, names_of(found)) == (3, {"unreadable": "alarm"}), path.name


def test_nan_in_a_safetensors_file_is_found(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    tensors["3.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    code, found = health(tmp_path / "model.safetensors", tmp_path / "out")
    assert (code, names_of(found)) == (3, {"weights_not_finite": "alarm"})


def test_a_log_of_our_own_form_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    path.write_text("Epoch 1/3 | Train Loss: 7.5756 | Val Loss: 3.4863 | fMRI Corr: nan | LR: 9.83e-04\n")
    ((run,), torn) = read_log(path)
    (line,) = run.epochs
    assert (line.epoch, line.total, line.train_loss, line.val_loss, line.learning_rate) == (
        1,
        3,
        7.5756,
        3.4863,
        9.83e-4,
    )
    assert line.correlation is not None
    assert line.correlation != line.correlation
    assert torn == []
