import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from oct_foundation.preflight.compile_program import Compiled, first_sentence
from oct_foundation.preflight.hlo_text import HloFigures
from oct_foundation.preflight.topologies import topology
from oct_foundation.runtime.exits import ExitCode
from pretraining.preflight.command import exit_code
from pretraining.preflight.estimate import Estimate, training_volumes
from pretraining.preflight.table import headline, print_estimate, remedies
from pretraining.preflight.trace import Trace, TracedProgram, load_without_data

CONFIGS = Path(__file__).parents[2] / "configs"
MULTI = load_without_data(CONFIGS / "pretrain_vjepa_multi_domain.yaml", [])
GB = 10**9


def compiled(**changes: object) -> Compiled:
    values = {
        "compiles": True, "args_bytes": 5 * GB, "out_bytes": 4 * GB, "donated_bytes": 3 * GB, "temp_bytes": 7 * GB,
        "code_bytes": GB // 10, "flops": 5e12, "bytes_accessed": 60e9, "seconds": 80.0,
        "hlo": HloFigures(collective_bytes={"all-reduce": GB}, hbm_bytes=8 * GB, num_kernels=2, silent_kernel_bytes=GB),
    }  # fmt: skip
    return Compiled(**values | changes)  # type: ignore[arg-type]


def program(name: str, kind: str, runs: int) -> TracedProgram:
    return TracedProgram(
        name=name, kind=kind, digest=name, runs_per_update=runs, num_partitions=1, donated=[], donated_bytes=0
    )


TRACE = Trace(
    num_chips=16,
    accumulation=2,
    per_core_batch_size=1,
    train_graphs=1,
    expected_train_graphs=1,
    validate_graphs=2,
    differing=[],
    parameters=50_000_000,
    trainable_parameters=29_000_000,
    model_flops=10e12,
    seconds=5.0,
    versions={"torch": "2.9.1"},
    programs=[program("0-train", "train", 1), program("1-validate", "validate", 0)],
)


def an_estimate(trace: Trace = TRACE, name: str = "v4-32", **programs: Compiled) -> Estimate:
    found = {key.replace("_", "-"): value for key, value in programs.items()}
    return Estimate(config=MULTI, topology=topology(name), trace=trace, compiled=found or {"0-train": compiled()})


def test_memory_is_arguments_and_what_outputs_add_to_them():
    found = an_estimate()
    assert found.hbm_total_bytes == 5 * GB + (4 - 3) * GB + 7 * GB + GB // 10
    assert (found.verdict, found.fits) == ("FITS", True)
    assert exit_code(found.verdict) == 0


def test_state_that_another_program_does_not_read_stays_in_memory():
    validate = compiled(args_bytes=2 * GB, out_bytes=0, donated_bytes=0, temp_bytes=12 * GB, code_bytes=0)
    trace = replace(TRACE, programs=[program("t", "train", 1), program("v", "validate", 0)])
    found = an_estimate(trace, t=compiled(), v=validate)
    assert found.largest[0].name == "v"
    assert found.hbm_total_bytes == (2 + 12) * GB + (5 - 2) * GB


def test_an_update_of_several_programs_is_their_sum_by_how_often_they_run():
    programs = [program("a", "accumulate", 1), program("b", "accumulate", 4), program("c", "train", 1)]
    found = an_estimate(replace(TRACE, programs=programs), a=compiled(), b=compiled(), c=compiled())
    assert found.figures.bytes_accessed == 6 * (60e9 + GB)  # kernels that state no cost are added
    assert found.figures.hbm_traffic_bytes == 6 * 8 * GB
    assert found.figures.collective_bytes == 6 * GB
    assert found.figures.num_kernels == 12


def test_the_bounds_follow_from_bytes_and_the_models_operations():
    found = an_estimate().figures
    assert found.limit == "memory"
    assert found.roofline_seconds == pytest.approx(61e9 / 1.2e12)
    assert found.mfu_bound == pytest.approx((10e12 / 275e12) / (61e9 / 1.2e12))
    assert found.volumes_per_second_bound == pytest.approx(32 / (61e9 / 1.2e12))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 15 / 16),
        ("all-gather", 15 / 16),
        ("reduce-scatter", 15),  # a chip keeps 1/16 of what is reduced
        ("all-to-all", 15 / 16),
        ("collective-permute", 1),
    ],
)
def test_the_network_carries_what_each_kind_of_collective_sends(kind: str, sent: float):
    found = an_estimate(**{"0_train": compiled(hlo=HloFigures(collective_bytes={kind: GB}))}).figures
    assert found.collective_bytes == GB
    assert found.network_seconds == pytest.approx(sent * GB / 300e9)


def test_too_large_is_not_what_the_compiler_says_but_what_the_sum_says():
    found = an_estimate(name="v5e-16")
    assert (found.compiles, found.fits, found.verdict) == (True, True, "FITS")  # 13.1 of 15.5 GB
    found = an_estimate(**{"0_train": compiled(temp_bytes=10 * GB)}, name="v5e-16")
    assert (found.compiles, found.fits, found.verdict) == (True, False, "DOES NOT FIT")
    assert exit_code(found.verdict) == ExitCode.FAILED
    assert any("--suggest" in remedy for remedy in remedies(found))


def test_a_refusal_is_shown_in_the_compilers_words_and_has_no_figures():
    refused = Compiled(compiles=False, reason="RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
    found = an_estimate(**{"0_train": refused})
    assert found.verdict == "DOES NOT COMPILE"
    assert "Ran out of memory in memory space hbm" in headline(found)
    answer = found.to_dict()
    assert (answer["compiles"], answer["fits"], answer["hbm_temp_bytes"], answer["mfu_bound"]) == (
        False, False, None, None,
    )  # fmt: skip
    assert exit_code(found.verdict) == ExitCode.FAILED


@pytest.mark.parametrize("changes", [{"train_graphs": 2}, {"differing": ["the last step"]}])
def test_more_programs_than_expected_are_an_error(changes: dict[str, object]):
    found = an_estimate(replace(TRACE, **changes))
    assert found.verdict == "RECOMPILES"
    assert exit_code(found.verdict) == ExitCode.FAILED


def test_the_length_of_the_run_needs_a_number_of_volumes():
    assert training_volumes(MULTI, None) == (None, "")
    assert an_estimate().length is None
    volumes, source = training_volumes(MULTI, 1000)
    length = replace(an_estimate(), num_volumes=volumes, num_volumes_from=source).length
    assert length is not None
    assert (length.steps_per_epoch, length.steps) == (1000 // 32, 150 * (1000 // 32))
    assert length.hours == pytest.approx(length.steps * 61e9 / 1.2e12 / 3600)


def test_the_json_has_what_was_promised_and_is_json():
    answer = json.loads(json.dumps(an_estimate().to_dict()))
    promised = {
        "compiles", "fits", "train_graphs", "hbm_args_bytes", "hbm_temp_bytes", "hbm_total_bytes", "hbm_limit_bytes",
        "flops", "bytes_accessed", "collective_bytes", "roofline_seconds", "mfu_bound", "volumes_per_second_bound",
        "versions", "topology", "config", "compile_seconds", "parameters", "model_flops",
    }  # fmt: skip
    assert promised <= answer.keys()
    assert all(answer[name] is not None for name in promised)


def test_a_compiled_program_survives_its_file():
    found = compiled()
    assert Compiled.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    refused = Compiled(compiles=False, reason="no")
    assert Compiled.from_dict(json.loads(json.dumps(refused.to_dict()))) == refused


def test_the_table_begins_with_the_verdict_and_names_the_limit(capsys: pytest.CaptureFixture[str]):
    print_estimate(an_estimate(), Console(width=160))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FITS  vjepa_multi_domain: vit_small [64, 384, 384], 1 a chip, on v4-32 (16 chips)")
    assert any("limited by" in line and "memory" in line for line in lines)
    assert any("--volumes N" in line for line in lines)


def test_a_compilers_lists_are_left_out():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40G of 31.75G hbm.\n\nTotal: 1\n"
    assert first_sentence(message) == "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"
