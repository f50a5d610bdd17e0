"""Is the health report's verdict right, and do its intervals cover the truth?  python -m benchmarks.health_verdicts

Simulated evaluations with known truth: a signal and errors that are smooth in time (AR(1)) and over voxels, predictions
that share the signal or are an unrelated smooth field, full size or a twentieth of it. 200 runs for the verdicts, as
the issue asks, 4,000 more so that a percentage means something, and 2,000 a cell for the coverage of intervals. The
interval's rule was chosen on other seeds.
"""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.signal import lfilter

from benchmarks.report import parse_arguments, print_report
from oct_foundation.diagnostics.learned import judge_series
from oct_foundation.diagnostics.naive_predictors import shifted
from oct_foundation.diagnostics.skill import Series, measure

NUM_VOXELS = 20
# Cells of the coverage table: autocorrelation of all fields, TRs; and (r, size of the prediction) of the model.
RHOS, LENGTHS = (0.0, 0.5, 0.8, 0.9), (100, 190, 500, 1000)
MODELS = ((0.34, 0.53), (0.6, 0.6), (0.0, 0.3))
# The lines: coverage of skill everywhere, of r(time) where n/tau is 100 or more.
COVERED, TRS_OVER_TAU, LEAST_TRS = (0.93, 0.97), 100, 100
SEED = 20_261_122


@dataclass(frozen=True, kw_only=True)
class World:
    """rho: lag-1 autocorrelation of every field; over voxels it is `space`. r: true correlation over time of truth and
    prediction; size: deviation of the prediction, where the truth has 1.
    """

    num_trs: int
    rho: float
    r: float
    size: float
    space: float = 0.5

    @property
    def skill(self) -> float:
        """1 - E (y - p)^2 for y of variance 1."""
        return 2 * self.size * self.r - self.size**2


def field(world: World, rng: np.random.Generator) -> np.ndarray:
    """A stationary Gaussian field of variance 1, float [n, V]."""
    white = rng.standard_normal((world.num_trs + 1, NUM_VOXELS))
    white[:, 1:] *= np.sqrt(1 - world.space**2)
    smooth = lfilter([1.0], [1.0, -world.space], white, axis=1)
    start = world.rho * smooth[:1]
    return lfilter([np.sqrt(1 - world.rho**2)], [1.0, -world.rho], smooth[1:], axis=0, zi=start)[0]


def simulate(world: World, rng: np.random.Generator) -> Series:
    """Truth and prediction share a signal that makes up r of the variance of each."""
    signal, error, own = (field(world, rng) for _ in range(3))
    truth = np.sqrt(world.r) * signal + np.sqrt(1 - world.r) * error
    prediction = world.size * (np.sqrt(world.r) * signal + np.sqrt(1 - world.r) * own)
    return Series(
        truth=truth,
        prediction=prediction,
        mean=np.zeros(NUM_VOXELS),
        variance=1.0,
        baselines={"shifted copy": shifted(prediction)},
        complete=True,
        leak_free=True,
    )


def coverage(world: World, replicates: int, seed: int) -> dict[str, float]:
    """How often the intervals of skill and r(time) hold the truth, and the median n/tau."""
    found = [measure(simulate(world, np.random.default_rng([seed, index]))) for index in range(replicates)]
    skill = np.mean([one.skill.low <= world.skill <= one.skill.high for one in found])
    r_time = np.mean([one.r_time.low <= world.r <= one.r_time.high for one in found])
    over_tau = np.median([one.skill.trs_over_tau for one in found])
    width = np.median([one.skill.half_width for one in found])
    return {"skill": float(skill), "r_time": float(r_time), "n/tau": float(over_tau), "half_width": float(width)}


def coverage_table(replicates: int, seed: int) -> list[dict[str, float]]:
    """A row per cell; prints it."""
    rows = []
    for rho, num_trs, (r, size) in itertools.product(RHOS, LENGTHS, MODELS):
        world = World(num_trs=num_trs, rho=rho, r=r, size=size)
        rows.append({**asdict(world), **coverage(world, replicates, seed)})
        found = rows[-1]
        print(
            f"rho {rho:.1f}  n {num_trs:4}  r {r:.2f}  n/tau {found['n/tau']:6.1f}  covered: skill {found['skill']:.3f}"
            f"  r(time) {found['r_time']:.3f}",
            flush=True,
        )
    return rows


def draw_world(rng: np.random.Generator, *, learned: bool) -> World:
    """A run of the kinds that come up: 24 to 1,000 TRs, rough to smooth; learned: r .15 to .7 at a size that pays."""
    num_trs, rho = int(rng.choice([24, 60, 100, 190, 500, 1000])), float(rng.choice([0.0, 0.3, 0.5, 0.7, 0.8, 0.9]))
    space, size, r = float(rng.choice([0.0, 0.5, 0.9])), float(rng.choice([1.0, 0.05])), 0.0
    if learned:
        r = float(rng.uniform(0.15, 0.7))
        size = r * float(rng.uniform(0.5, 1.4))
    return World(num_trs=num_trs, rho=rho, r=r, size=size, space=space)


def verdicts(num_runs: int, seed: int) -> dict[str, float | dict[str, int]]:
    """Half of the runs have learned, half have not: shares of false verdicts, and how many of each were said; coverage
    of skill over all runs and over those of 100 TRs or more, of r(time) over those with n/tau of 100 or more.
    """
    said: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    covered: dict[str, list[bool]] = {"skill": [], "skill_n100": [], "r_time": []}
    for index in range(num_runs):
        rng, learned = np.random.default_rng([seed, index]), index % 2 == 0
        world = draw_world(rng, learned=learned)
        found = judge_series("fmri", simulate(world, rng))
        said[learned][found.verdict] += 1
        facts = {name: value for name, value in found.figures.items() if not isinstance(value, str)}
        holds = facts["skill_low"] <= world.skill <= facts["skill_high"]
        covered["skill"].append(holds)
        if world.num_trs >= LEAST_TRS:
            covered["skill_n100"].append(holds)
        if world.num_trs >= TRS_OVER_TAU * facts["tau"]:
            covered["r_time"].append(facts["r_time_low"] <= world.r <= facts["r_time_high"])
    return {
        "runs": num_runs,
        "false_learned": said[False]["LEARNED"] / said[False].total(),
        "false_not_learned": said[True]["NOT LEARNED"] / said[True].total(),
        "learned": dict(said[True]),
        "unrelated": dict(said[False]),
        **{f"covered_{name}": float(np.mean(values)) for name, values in covered.items()},
    }


def power(num_runs: int, seed: int) -> dict[str, float]:
    """Share said to be LEARNED at r .34 and skill .08, by autocorrelation and TRs."""
    found = {}
    for rho, num_trs in ((0.5, 190), (0.8, 190), (0.8, 500), (0.9, 500)):
        world = World(num_trs=num_trs, rho=rho, r=MODELS[0][0], size=MODELS[0][1])
        said = [
            judge_series("fmri", simulate(world, np.random.default_rng([seed, index]))).verdict
            for index in range(num_runs)
        ]
        found[f"rho {rho}, n {num_trs}"] = said.count("LEARNED") / num_runs
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Coverage, then verdicts; the last line is JSON."""
    arguments = parse_arguments(__doc__ or "", argv)
    start = time.perf_counter()
    replicates, more, for_power = (200, 200, 50) if arguments.quick else (2000, 4000, 500)
    rows = coverage_table(replicates, SEED)
    asked, many, powers = verdicts(200, SEED + 1), verdicts(more, SEED + 2), power(for_power, SEED + 3)
    print(f"200 runs: {asked}\n{more} runs: {many}\npower: {powers}")
    long_enough = [row["r_time"] for row in rows if row["n/tau"] >= TRS_OVER_TAU]
    skills = [row["skill"] for row in rows]
    figures = {
        "coverage": rows, "verdicts_200": asked, "verdicts_more": many, "power": powers, "replicates": replicates,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    ratios = {
        "skill_coverage_low": min(skills), "skill_coverage_high": max(skills),
        "r_coverage_low": min(long_enough), "r_coverage_high": max(long_enough),
        "cells_outside": float(sum(not COVERED[0] <= value <= COVERED[1] for value in [*skills, *long_enough])),
    }  # fmt: skip
    print_report("health_verdicts", figures, ratios)


if __name__ == "__main__":
    main()
