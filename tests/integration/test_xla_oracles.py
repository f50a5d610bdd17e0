import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import FAST_COMPILE, PROJECT

pytest.importorskip("torch_xla", reason="torch-xla exists for Linux x86-64 only: the XLA oracles did NOT run")


@pytest.fixture(scope="module")
def report() -> dict:
    command = [sys.executable, "-m", "tests.integration.xla_oracles"]
    environment = {**os.environ, **FAST_COMPILE}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_xla_device_takes_the_steps_of_plain_cpu(report):
    assert report["finite"]
    assert report["loss"] < 1e-4
    assert report["norm"] < 1e-3
    assert report["weights"] < 1e-4


def test_the_teacher_follows_its_formula_under_xla_in_steps_1_to_5(report):
    assert report["ema"] < 1e-6  # weights near 0.02 to 1 in fp32


def test_what_is_dropped_out_depends_on_the_step_alone_and_makes_no_program(report):
    assert report["dropout_repeats"]
    assert report["dropout_compiles"] == [True, False, False], "a seed is an input, not a part of the program"
