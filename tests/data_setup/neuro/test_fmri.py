"""rsfMRI runs: windows, scalings and padding against hand-made oracles; frames that are damaged, foreign or unsafe."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_setup.neuro.errors import NeuroFileError, NeuroReason
from data_setup.neuro.fmri import FunctionalSettings, check_run, read_window, scaled, window_starts
from data_setup.neuro.nifti import open_nifti
from data_setup.neuro.runs import FrameFolder, NiftiRun, RunStats, open_run

RAW = FunctionalSettings(size=4, sequence_length=3, input_scaling_method="none")


def frames(count: int, shape=(4, 4, 4)) -> list[torch.Tensor]:
    """Frame n is n + 1 everywhere, with a background of 0 at x = 0."""
    made = [torch.full(shape, float(number + 1)) for number in range(count)]
    for frame in made:
        frame[0] = 0
    return made


def reason_of(action, *arguments) -> NeuroReason:
    with pytest.raises(NeuroFileError) as caught:
        action(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    ("num_frames", "length", "within", "between", "starts"),
    [
        (10, 3, 1, 1.0, [0, 3, 6]),
        (10, 3, 1, 0.5, [0, 2, 4, 6]),  # 1.5 frames round to 2
        (10, 3, 2, 1.0, [0]),  # frames 0, 2, 4; the next window would start at 6
        (11, 3, 2, 1.0, [0, 6]),
        (5, 3, 2, 1.0, [0]),  # 0, 2, 4: the last frame is used
        (9, 4, 1, 0.01, [0, 1, 2, 3, 4, 5]),  # never less than a frame
        (20, 20, 1, 1.0, [0]),
    ],
)
def test_where_windows_start(num_frames, length, within, between, starts) -> None:
    settings = FunctionalSettings(sequence_length=length, stride_within_seq=within, stride_between_seq=between)
    assert list(window_starts(num_frames, settings)) == starts


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 4), st.floats(0.01, 3))
def test_every_window_lies_inside_its_run(num_frames: int, length: int, within: int, between: float) -> None:
    settings = FunctionalSettings(sequence_length=length, stride_within_seq=within, stride_between_seq=between)
    if num_frames < (length - 1) * within + 1:
        assert reason_of(window_starts, num_frames, settings) == "too_short"
        return
    starts = list(window_starts(num_frames, settings))
    assert starts[0] == 0
    assert all(start + (length - 1) * within < num_frames for start in starts)


def test_a_window_holds_its_frames_in_the_order_of_numbers_not_of_names(write_frames) -> None:
    folder = write_frames(frames(12))  # frame_10 sorts before frame_2 by name
    window = read_window(folder, RAW, place=0.99)
    assert window.shape == (1, 4, 4, 4, 3)
    assert window[0, 1, 0, 0].tolist() == [10, 11, 12]
    strided = FunctionalSettings(size=4, sequence_length=3, stride_within_seq=4, input_scaling_method="none")
    assert read_window(folder, strided)[0, 1, 0, 0].tolist() == [1, 5, 9]


def test_evaluation_takes_the_middle_window_and_training_any(write_frames) -> None:
    folder = write_frames(frames(9))
    assert read_window(folder, RAW)[0, 1, 0, 0].tolist() == [4, 5, 6]
    assert [read_window(folder, RAW, place=p)[0, 1, 0, 0, 0].item() for p in (0.0, 0.4, 0.999)] == [1, 4, 7]


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 4, 4, 4), (4, 4, 4, 1), (1, 4, 4, 4, 1)])
def test_a_frame_may_have_an_axis_of_one_at_either_end(write_frames, shape) -> None:
    folder = write_frames([frame.reshape(shape).half() for frame in frames(3)], first=5)
    assert read_window(folder, RAW)[0, 1, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "brain", "outside"),
    [
        ("none", [100, 110, 120], 0.0),
        ("minmax", [0.5, 0.55, 0.6], 0.0),
        ("znorm_zeroback", [0, 1, 2], 0.0),
        ("znorm_minback", [0, 1, 2], -10.0),
    ],
)
def test_scalings_by_hand(method, brain, outside) -> None:
    run = np.zeros((2, 1, 1, 3), np.float32)
    run[1] = [100, 110, 120]
    window, background = scaled(run, RunStats(mean=100, std=10, maximum=200), method)
    np.testing.assert_allclose(window[1, 0, 0], brain, rtol=1e-6)
    np.testing.assert_allclose(window[0, 0, 0], outside)
    assert background == outside
    assert run[1].tolist() == [[[100, 110, 120]]], "the frames read are not changed"


@pytest.mark.parametrize(
    ("shape", "first", "last"),
    [
        ((96, 96, 95), (0, 0, 0), (96, 96, 95)),
        ((78, 96, 84), (9, 0, 6), (87, 96, 90)),
        ((88, 88, 64), (4, 4, 16), (92, 92, 80)),
    ],
)
def test_runs_of_known_studies_are_padded_to_96_with_their_background(write_frames, shape, first, last) -> None:
    settings = FunctionalSettings(sequence_length=2, input_scaling_method="znorm_minback")
    run = [torch.full(shape, 110.0), torch.full(shape, 120.0)]
    for frame in run:
        frame[0, 0, 0] = 0
    window = read_window(write_frames(run), settings)
    assert window.shape == settings.shape == (1, 96, 96, 96, 2)
    inside = tuple(slice(*ends) for ends in zip(first, last, strict=True))
    assert int((window[0, ..., 1] == 2).sum()) == int((window[0][inside][..., 1] == 2).sum()) == np.prod(shape) - 1
    outside = window[0, ..., 1].clone()
    outside[inside] = -10
    assert (outside == -10).all()


def test_larger_runs_are_cut_about_their_middle(write_nifti) -> None:
    run = np.random.default_rng(0).normal(5, 1, (9, 10, 11, 3)).astype(np.float32)
    window = read_window(
        write_nifti(run, tr=2), FunctionalSettings(size=8, sequence_length=3, input_scaling_method="none")
    )
    np.testing.assert_array_equal(window[0], run[0:8, 1:9, 1:9])


def test_a_nifti_run_is_read_window_by_window(write_nifti, monkeypatch) -> None:
    run = np.random.default_rng(0).normal(5, 1, (4, 4, 4, 50)).astype(np.float32)
    path = write_nifti(run, "long.nii", tr=0.8)
    read = []
    original = nib.arrayproxy.ArrayProxy.__getitem__

    def watched(proxy, at):
        found = original(proxy, at)
        read.append(found.size)
        return found

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__getitem__", watched)
    window = read_window(path, RAW, place=0.5)
    np.testing.assert_array_equal(window[0], run[..., 24:27])
    assert sum(read) == 4 * 4 * 4 * 3
    assert check_run(path, RAW) == ("a TR of 0.8 s",)


@pytest.mark.parametrize(
    ("tr", "unit", "seconds", "said"),
    [
        (2.0, "sec", 2.0, False),
        (800.0, "msec", 0.8, False),
        (2000.0, "sec", 2.0, True),
        (735000.0, "usec", 0.735, False),
    ],
)
def test_the_tr_is_in_seconds_whatever_the_header_calls_it(write_nifti, tr, unit, seconds, said) -> None:
    run = open_run(write_nifti(np.random.default_rng(0).normal(size=(4, 4, 4, 5)), tr=tr, units=("mm", unit)))
    assert run.tr_s == pytest.approx(seconds)
    assert any("milliseconds" in note for note in run.notes) == said


def test_damaged_folders_are_refused_by_reason(write_frames, tmp_path: Path) -> None:
    assert reason_of(check_run, tmp_path / "none", RAW) == "missing"
    assert reason_of(check_run, write_frames([], None, "a"), RAW) == "missing"
    assert reason_of(check_run, write_frames(frames(2), name="b"), RAW) == "too_short"
    gap = write_frames(frames(5), name="c")
    (gap / "frame_2.pt").unlink()
    assert reason_of(check_run, gap, RAW) == "bad_frame"
    assert reason_of(read_window, write_frames([*frames(2), torch.zeros(4, 4, 5)], name="d"), RAW) == "bad_frame"
    assert reason_of(check_run, write_frames([torch.zeros(4, 4)] * 3, name="e"), RAW) == "bad_frame"
    assert reason_of(read_window, write_frames([torch.full((4, 4, 4), np.nan)] * 3, name="f"), RAW) == "not_finite"
    assert reason_of(read_window, write_frames([torch.ones(4, 4, 4)] * 3, name="g"), RAW) == "constant"
    for content, reason in ((b"", "empty"), (b"not a tensor", "bad_frame"), (b"\x80\x02garbage", "bad_frame")):
        folder = write_frames(frames(3), name=f"h{len(content)}")
        (folder / "frame_0.pt").write_bytes(content)
        assert reason_of(check_run, folder, RAW) == reason
    cut = write_frames(frames(3), name="i")
    whole = (cut / "frame_0.pt").read_bytes()
    (cut / "frame_0.pt").write_bytes(whole[: len(whole) // 2])
    assert reason_of(check_run, cut, RAW) == "bad_frame"


def test_statistics_are_needed_where_a_scaling_uses_them(write_frames) -> None:
    settings = FunctionalSettings(size=4, sequence_length=3)
    bare = write_frames(frames(3), None, "bare")
    assert check_run(bare, RAW) == ()
    assert reason_of(check_run, bare, settings) == "no_stats"
    assert reason_of(check_run, write_frames(frames(3), (1.0, 0.0, 2.0), "flat"), settings) == "no_stats"


class _Runs:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["frame_1.pt", "global_stats.pt"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(write_frames, tmp_path: Path, name: str) -> None:
    folder = write_frames(frames(3))
    torch.save(_Runs(f"touch {tmp_path / 'ran'}"), folder / name)
    settings = FunctionalSettings(size=4, sequence_length=3)
    assert reason_of(read_window, folder, settings) == "unsafe_pickle"
    assert not (tmp_path / "ran").exists()


def test_one_volume_is_no_run_and_a_run_is_turned_as_a_volume_is(write_nifti) -> None:
    assert reason_of(open_run, write_nifti(np.ones((4, 4, 4)))) == "wrong_dims"
    run = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = write_nifti(run, "las.nii", affine=np.diag([-2, 2, 2, 1]))
    np.testing.assert_array_equal(open_run(path).frames([0, 2]), run[::-1][..., [0, 2]])


def test_frames_out_of_step_are_read_one_by_one(write_nifti) -> None:
    run = np.random.default_rng(0).normal(size=(3, 3, 3, 9)).astype(np.float32)
    np.testing.assert_array_equal(NiftiRun(write_nifti(run)).frames([0, 1, 5]), run[..., [0, 1, 5]])


@pytest.mark.parametrize(("name", "value"), [("size", 1), ("sequence_length", 0), ("stride_between_seq", 0.0)])
def test_settings_name_the_wrong_key(name: str, value) -> None:
    with pytest.raises(ValueError, match=f"rsfMRI.{name}"):
        FunctionalSettings(**{name: value})


def test_real_runs(test_data: Path) -> None:
    folder = test_data / "mri"
    raw = open_nifti(folder / "functional.nii").voxels()
    assert (raw.min(), raw.max()) == pytest.approx((629.8, 5571.6), abs=0.1)  # stored integers times a factor
    settings = FunctionalSettings(size=24, sequence_length=20)
    window = read_window(folder / "functional.nii", settings)
    assert window.shape == (1, 24, 24, 24, 20)
    assert check_run(folder / "functional.nii", settings) == ("a TR of 2 s",)
    scaled_back = (raw[::-1] - raw.mean()) / raw.std()
    np.testing.assert_allclose(window[0, 3:20, 1:22, 10:13], scaled_back, atol=1e-4)
    assert reason_of(check_run, folder / "example4d.nii.gz", settings) == "too_short"
    short = FunctionalSettings(size=24, sequence_length=2)
    assert check_run(folder / "example4d.nii.gz", short) == (
        "a TR of 2000 under the unit 'sec': taken as milliseconds",
        "a TR of 2 s",
    )
    assert read_window(folder / "example4d.nii.gz", short).shape == (1, 24, 24, 24, 2)


def test_a_real_run_gives_the_same_window_from_a_folder_of_frames(test_data: Path, write_frames) -> None:
    path = test_data / "mri" / "functional.nii"
    settings = FunctionalSettings(size=24, sequence_length=8, input_scaling_method="minmax")
    run = open_run(path)
    folder = write_frames(
        np.moveaxis(run.frames(range(20)), -1, 0).copy(), (0.0, 1.0, float(run.frames(range(8)).max()))
    )
    assert FrameFolder(folder).num_frames == 20
    np.testing.assert_allclose(read_window(folder, settings, 0.0), read_window(path, settings, 0.0), rtol=1e-6)
