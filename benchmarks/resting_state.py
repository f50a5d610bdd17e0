"""Verdicts on a real resting scan: left hemisphere from right.  python -m benchmarks.resting_state [--data FOLDER]

sub-010188 of the PyPI package brainspace 0.3.0 (BSD-3): 652 TRs on fsaverage5, and 29 confounds. Every TR is held out
once, in five folds with gaps of 20 TRs. The same targets moved by 200 TRs must not be LEARNED. Next-TR prediction
proves nothing here: AR(2) nearly solves it, and stands beside.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.report import print_report
from oct_foundation.diagnostics.learned import ModalityVerdict, judge_series
from oct_foundation.diagnostics.naive_predictors import (
    autoregressive,
    fit_autoregression,
    persistence,
    ridge,
    shifted,
    training_mean,
)
from oct_foundation.diagnostics.skill import Series

GAP, FOLDS, SHIFT, HISTORY = 20, 5, 200, 8
COMPONENTS = (5, 20, 50)
SUBJECT = "sub-010188"
# Of the 29, the six that fluctuate. The others (motion, spikes, trends) drift or are rare: weights fitted on training
# TRs miss on held-out ones, whose training mean then has an FVU of 9.2 in place of 1.
FLUCTUATING = slice(0, 6)
HOW = "pip install brainspace==0.3.0, or give --data a folder that holds its files of sub-010188"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Held-out TRs, the training TRs before and after them, and those of the gap right before, as slices of the run."""

    held: slice
    train: tuple[slice, ...]
    before: slice

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the training TRs."""
        return np.concatenate([np.arange(side.start, side.stop) for side in self.train])


@dataclass(frozen=True, kw_only=True)
class Scan:
    """float32 [T, vertices that change] of each side; confounds [T, C]; how many vertices are constant."""

    left: np.ndarray
    right: np.ndarray
    confounds: np.ndarray
    constant: int


# Of a fold and the cleaned target: what is said of its held-out TRs.
Predict = Callable[[Fold, np.ndarray], np.ndarray]


def folds(num_trs: int) -> list[Fold]:
    """FOLDS contiguous parts that cover the run, each GAP TRs away from its training TRs."""
    found = []
    for start, stop in pairwise(np.linspace(0, num_trs, FOLDS + 1).astype(int).tolist()):
        sides = (slice(0, max(start - GAP, 0)), slice(min(stop + GAP, num_trs), num_trs))
        train = tuple(side for side in sides if side.stop > side.start)
        found.append(Fold(held=slice(start, stop), train=train, before=slice(max(start - HISTORY, 0), start)))
    return found


def load(folder: Path | None) -> Scan:
    """The scan in `folder`, or in the installed package. Raises SystemExit with what to do where it is not there."""
    if folder is None:
        package = find_spec("brainspace")
        if package is None or package.origin is None:
            raise SystemExit(f"brainspace is not installed: {HOW}")
        folder = Path(package.origin).parent
    (left, left_constant), (right, right_constant) = (
        _side(_only(folder, f"{SUBJECT}*.{side}.mgz")) for side in ("lh", "rh")
    )
    confounds = np.loadtxt(_only(folder, f"{SUBJECT}*confounds.txt"))
    return Scan(left=left, right=right, confounds=confounds, constant=left_constant + right_constant)


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.rglob(pattern))
    if len(files) != 1:
        raise SystemExit(f"{folder} holds {len(files)} files {pattern} where one is expected: {HOW}")
    return files[0]


def _side(path: Path) -> tuple[np.ndarray, int]:
    import nibabel as nib

    image = nib.load(path)
    series = np.asarray(image.dataobj, np.float32).reshape(-1, image.shape[-1]).T
    changes = series.std(axis=0) > 0
    return series[:, changes], int((~changes).sum())


def cleaned(series: np.ndarray, confounds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Less confounds, whose weights come from the TRs `rows` alone; float32 [T, V]."""
    design = (confounds - confounds[rows].mean(axis=0)).astype(np.float32)
    weights = np.linalg.lstsq(design[rows], series[rows] - series[rows].mean(axis=0), rcond=None)[0]
    return series - design @ weights


def held_out(
    target: np.ndarray, confounds: np.ndarray, predict: Predict, chosen: Sequence[Fold], *, sees_past: bool
) -> Series:
    """All held-out TRs of the chosen folds; persistence and AR(2) are a bar where the model too sees the past."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("truth", "said", "mean", "persistence", "AR(2)")}
    variances = []
    for fold in chosen:
        clean = cleaned(target, confounds, fold.rows)
        train, held, before = [clean[side] for side in fold.train], [clean[fold.held]], [clean[fold.before]]
        mean = training_mean(train)
        parts["truth"] += held
        parts["said"].append(predict(fold, clean))
        parts["mean"].append(np.repeat(mean[None], len(held[0]), axis=0))
        parts["persistence"].append(persistence(train, held, before=before))
        parts["AR(2)"].append(autoregressive(fit_autoregression(train, 2), mean, held, before=before))
        variances.append(float(((clean[fold.rows] - mean) ** 2).mean()))
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    past = {name: whole[name] for name in ("persistence", "AR(2)")}
    return Series(
        truth=whole["truth"],
        prediction=whole["said"],
        mean=whole["mean"],
        variance=float(np.mean(variances)),
        baselines={"shifted copy": shifted(whole["said"])} | (past if sees_past else {}),
        beside={} if sees_past else past,
        complete=True,
        leak_free=True,
    )


def from_right(scan: Scan, components: int) -> Predict:
    """The same TR of the right hemisphere, its principal components of the training TRs, ridge."""

    def predict(fold: Fold, target: np.ndarray) -> np.ndarray:
        source = cleaned(scan.right, scan.confounds, fold.rows)
        return ridge(source[fold.rows], target[fold.rows], source[fold.held], components)

    return predict


def by_autoregression(fold: Fold, target: np.ndarray) -> np.ndarray:
    """The next TR by a shared AR(8)."""
    train = [target[side] for side in fold.train]
    return autoregressive(
        fit_autoregression(train, 8), training_mean(train), [target[fold.held]], before=[target[fold.before]]
    )


def verdicts(scan: Scan) -> list[ModalityVerdict]:
    """Left from right on all folds, and on the last alone; with targets and their confounds moved; the next TR."""
    whole = folds(len(scan.left))
    moved, moved_confounds = np.roll(scan.left, SHIFT, axis=0), np.roll(scan.confounds, SHIFT, axis=0)
    found = []
    for components in COMPONENTS:
        predict, name = from_right(scan, components), f"left from right, {components} components"
        cases = {
            name: (scan.left, scan.confounds, whole),
            f"{name}, last fifth alone": (scan.left, scan.confounds, whole[-1:]),
            f"{name}, moved by {SHIFT} TRs": (moved, moved_confounds, whole),
        }
        for case, (target, confounds, chosen) in cases.items():
            series = held_out(target, confounds, predict, chosen, sees_past=False)
            found.append(show(judge_series(case, series)))
    series = held_out(scan.left, scan.confounds, by_autoregression, whole, sees_past=True)
    found.append(show(judge_series("next TR by AR(8)", series)))
    return found


def show(said: ModalityVerdict) -> ModalityVerdict:
    """Prints a verdict with its reasons."""
    needed = f", {said.trs_needed:,} TRs would decide" if said.trs_needed else ""
    print(f"{said.name}: {said.verdict}{needed}", *said.reasons, sep="\n    ", flush=True)
    return said


def main(argv: Sequence[str] | None = None) -> None:
    """All verdicts; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds the scan; default: the installed package")
    parser.add_argument("--every", type=int, default=1, help="take every n-th vertex, for a quick look")
    parser.add_argument("--confounds", action="store_true", help="take off those that fluctuate, fold by fold")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    whole = load(arguments.data)
    scan = Scan(
        left=whole.left[:, :: arguments.every],
        right=whole.right[:, :: arguments.every],
        confounds=whole.confounds[:, FLUCTUATING if arguments.confounds else slice(0)],
        constant=whole.constant,
    )
    print(
        f"{len(scan.left)} TRs, {scan.left.shape[1]} left and {scan.right.shape[1]} right vertices, "
        f"{scan.confounds.shape[1]} confounds; {scan.constant} constant vertices left out"
    )
    found = verdicts(scan)
    figures: dict[str, object] = {said.name: {"verdict": said.verdict, **said.figures} for said in found}
    figures["seconds"] = time.perf_counter() - start
    false = sum(said.verdict == "LEARNED" for said in found if "moved" in said.name)
    print_report("resting_state", figures, {"false_learned": float(false)})


if __name__ == "__main__":
    main()
