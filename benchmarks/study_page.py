"""The study as tables and plots: python -m benchmarks.study_page docs/figures/study.json

Writes study_settings.svg and study_labels.svg beside the file and prints the tables of docs/defaults.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.study import CONDITIONS

Row = Mapping[str, Any]
METRICS = ("r2", "auroc")  # one a label: values, classes
ENCODER, RANDOM, MAE, SUPERVISED = "encoder", "random_init", "mae", "supervised"
INK, FAINT = "#1b4965", "#9fb3c8"


def headline(rows: Sequence[Row], contestant: str) -> dict[str, Row]:
    """The row of each label: R2 for values, AUROC for classes, by the linear probe."""
    return {
        row["label"]: row
        for row in rows
        if row["contestant"] == contestant and row["metric"] in METRICS and row["probe"] in ("ridge", "logistic")
    }


def mean_score(run: Row, contestant: str) -> float:
    """Over all labels."""
    return float(np.mean([row["score"] for row in headline(run["rows"], contestant).values()]))


def by_condition(study: Row) -> dict[str, list[Row]]:
    """The runs of each condition, in the order of conditions and seeds."""
    runs = sorted(study["runs"], key=lambda run: run["seed"])
    found = {name: [run for run in runs if run["condition"] == name] for name in CONDITIONS}
    return {name: several for name, several in found.items() if several}


def settings_table(study: Row) -> str:
    """Mean score of each condition's seeds, and its gain over the same networks before training."""
    lines = ["| setting | mean score, seed by seed | mean | gain over random | updates |", "|---|---|---|---|---|"]
    for name, runs in by_condition(study).items():
        scores = [mean_score(run, ENCODER) for run in runs]
        gains = [score - mean_score(run, RANDOM) for score, run in zip(scores, runs, strict=True)]
        each = ", ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {name} | {each} | {np.mean(scores):.3f} | {np.mean(gains):+.3f} | {runs[0]['steps']:,} |")
    return "\n".join(lines)


def label_table(study: Row, condition: str) -> str:
    """A row per label: `condition` beside its controls, each the mean over seeds.

    `clear` counts the seeds whose 95 % interval lies above that of the random network and of the voxels' components.
    """
    runs = by_condition(study)
    voxels = headline(study["voxels"], "pca")
    lines = [
        "| label | V-JEPA | untrained | voxels, PCA | MAE, equal FLOPs | supervised | clear of both |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, pca in voxels.items():
        own = [headline(run["rows"], ENCODER)[label] for run in runs[condition]]
        untrained = [headline(run["rows"], RANDOM)[label] for run in runs[condition]]
        clear = sum(row["low"] > max(other["high"], pca["high"]) for row, other in zip(own, untrained, strict=True))
        others = [
            f"{np.mean([headline(run['rows'], ENCODER)[label]['score'] for run in runs[name]]):.3f}"
            if name in runs
            else "not run"
            for name in (MAE, SUPERVISED)
        ]
        low, high = (np.mean([row[side] for row in own]) for side in ("low", "high"))
        lines.append(
            f"| {label} ({pca['metric']}) | {np.mean([row['score'] for row in own]):.3f} [{low:.3f}, {high:.3f}] "
            f"| {np.mean([row['score'] for row in untrained]):.3f} | {pca['score']:.3f} | {others[0]} | {others[1]} "
            f"| {clear} of {len(own)} seeds |"
        )
    return "\n".join(lines)


def draw_settings(study: Row, path: Path) -> None:
    """A dot per seed, a bar per mean; the random networks as a band."""
    runs = by_condition(study)
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(runs) + 1.2), layout="constrained")
    untrained = [mean_score(run, RANDOM) for several in runs.values() for run in several]
    axes.axvspan(min(untrained), max(untrained), color=FAINT, alpha=0.4, lw=0, label="the same networks untrained")
    for place, (_name, several) in enumerate(runs.items()):
        scores = [mean_score(run, ENCODER) for run in several]
        axes.plot(scores, [place] * len(scores), "o", color=INK, alpha=0.6)
        axes.plot([np.mean(scores)] * 2, [place - 0.3, place + 0.3], color=INK, lw=2)
    axes.set(yticks=range(len(runs)), yticklabels=list(runs), xlabel="mean score of linear probes (R², AUROC)")
    axes.invert_yaxis()
    _finish(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def draw_labels(study: Row, condition: str, path: Path) -> None:
    """Each label: V-JEPA, its controls, MAE and supervised; marks are means over seeds, bars mean 95 % intervals."""
    runs, voxels = by_condition(study), study["voxels"]
    series = {
        "untrained": [headline(run["rows"], RANDOM) for run in runs[condition]],
        "voxels, PCA": [headline(voxels, "pca")],
        "V-JEPA": [headline(run["rows"], ENCODER) for run in runs[condition]],
    }
    series |= {
        text: [headline(run["rows"], ENCODER) for run in runs[name]]
        for name, text in ((MAE, "MAE"), (SUPERVISED, "supervised"))
        if name in runs
    }
    labels = list(headline(voxels, "pca"))
    figure, axes = plt.subplots(figsize=(7.5, 0.6 * len(labels) + 1.2), layout="constrained")
    colours = ("#9fb3c8", "#c9a66b", INK, "#a23b72", "#4f772d")
    for number, ((name, found), colour) in enumerate(zip(series.items(), colours, strict=False)):
        mean = {
            side: [np.mean([rows[label][side] for rows in found]) for label in labels]
            for side in ("score", "low", "high")
        }
        places = np.arange(len(labels)) + 0.14 * (number - len(series) / 2)
        errors = np.abs([np.subtract(mean["score"], mean["low"]), np.subtract(mean["high"], mean["score"])])
        axes.errorbar(mean["score"], places, xerr=errors, fmt="o", ms=4, color=colour, label=name, lw=1)
    metric = {label: row["metric"] for label, row in headline(voxels, "pca").items()}
    axes.set(
        yticks=range(len(labels)),
        yticklabels=[f"{label} ({metric[label].upper()})" for label in labels],
        xlabel="score of the linear probe",
    )
    axes.invert_yaxis()
    _finish(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e5e9f0")
    axes.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints both tables and draws both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what benchmarks.study wrote")
    parser.add_argument("--condition", default="vjepa", help="the one shown label by label")
    arguments = parser.parse_args(argv)
    study = json.loads(arguments.json.read_text())
    plt.rcParams["svg.hashsalt"] = "octfm"
    draw_settings(study, arguments.json.with_name("study_settings.svg"))
    draw_labels(study, arguments.condition, arguments.json.with_name("study_labels.svg"))
    print(settings_table(study), label_table(study, arguments.condition), sep="\n\n")


if __name__ == "__main__":
    main()
