"""What every command says when it ends early, and how much memory it thinks there is."""

import subprocess
import sys

import pytest

from pretraining.command_line import open_folder, with_exit_code
from pretraining.free_memory import free_bytes


def test_an_interrupted_command_says_no_more_than_that(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert with_exit_code(interrupted) == 130
    assert capsys.readouterr().err == "octfm: interrupted\n"


def test_ctrl_c_while_a_command_is_imported_is_one_line():
    code = """
import signal, sys
from pretraining import cli
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)  # torch alone takes longer
sys.exit(cli.main(["checkpoints", "list", "."]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (found.returncode, found.stderr) == (130, "octfm: interrupted\n")


@pytest.mark.parametrize(("error", "code"), [(ValueError("no"), 2), (OSError("disk"), 74)])
def test_errors_become_one_line_and_a_code(capsys, error, code):
    def failing():
        raise error

    assert with_exit_code(failing) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_results_replace_their_own_kind_alone_and_a_bad_place_is_named_before_the_work(tmp_path):
    def asked(folder):
        open_folder(folder, replacing=["weights"], model_types=["ours"])

    folder = tmp_path / "new" / "results"
    asked(folder)
    (folder / "other").touch()
    asked(folder)
    (folder / "weights").touch()
    with pytest.raises(ValueError, match="results holds weights, which this command has not written"):
        asked(folder)
    for config in ("{", "[1]", '{"octfm": {}, "model_type": "another"}', '{"model_type": "ours"}'):
        (folder / "config.json").write_text(config)
        with pytest.raises(ValueError, match=r"results holds weights, config\.json, which"):
            asked(folder)
    (folder / "config.json").write_text('{"octfm": {}, "model_type": "ours"}')
    asked(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "other", "weights"]
    with pytest.raises(ValueError, match=r"weights cannot be written \(File exists\); give another folder"):
        open_folder(folder / "weights")


def test_free_memory_is_what_the_machine_has_available(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemFree: 1 kB\nMemAvailable:       2048 kB\n")
    assert free_bytes(meminfo) == 2048 * 1024
    assert free_bytes(tmp_path / "absent") is None


def test_what_takes_seconds_to_import_is_left_to_those_who_train():
    heavy = ("monai", "transformers", "torch_xla", "sklearn", "matplotlib", "wandb")
    code = f"import sys, pretraining.train; print(*(name for name in {heavy} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "\n"
