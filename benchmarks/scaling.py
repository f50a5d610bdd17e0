"""How does a step's cost grow?  python -m benchmarks.scaling --json FILE

Compiles the training step at growing token counts, batches and slices (through benchmarks.preflight) and fits two laws:
cost = a x size^b, where attention's own share of the operations grows with b = 2, and cost = fixed + each x size, where
passes over weights and moments are fixed. The one with the smaller error is the one to believe.
"""

import argparse
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from benchmarks.preflight import Cell, add_sizes, measured
from benchmarks.report import print_report
from oct_foundation.preflight.topologies import topology

SHAPES = ("16,128,128", "32,128,128", "32,192,192")
PATCH_VOXELS = 4 * 16 * 16
COSTS = ("model_flops", "bytes_accessed", "hbm_traffic_bytes", "hbm_temp_bytes", "roofline_seconds")


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """a, b and the largest relative error of cost = a x size^b, by least squares of the logarithms."""
    exponent, logarithm = np.polyfit(np.log(sizes), np.log(costs), 1)
    fitted = np.exp(logarithm) * np.asarray(sizes) ** exponent
    return float(np.exp(logarithm)), float(exponent), float(np.abs(fitted / costs - 1).max())


def line(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """fixed, each and the largest relative error of cost = fixed + each x size, by least squares of relative errors."""
    relative = np.column_stack([np.ones(len(sizes)), sizes]) / np.asarray(costs)[:, None]
    (fixed, each), *_ = np.linalg.lstsq(relative, np.ones(len(costs)))
    return float(fixed), float(each), float(np.abs(relative @ (fixed, each) - 1).max())


def tokens(cell: Cell) -> int:
    """Patches of a volume."""
    return prod(int(side) for side in cell.shape.split(",")) // PATCH_VOXELS


def laws(points: Mapping[float, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Both laws per cost over the sizes of `points`; costs that are 0 somewhere, as of tiny steps, have none."""
    sizes = sorted(points)
    found = {}
    for cost in COSTS:
        values = [points[size][cost] for size in sizes]
        if all(values):
            a, b, error = power_law(sizes, values)
            fixed, each, line_error = line(sizes, values)
            found[cost] = {
                "a": float(f"{a:.4g}"),
                "b": round(b, 3),
                "largest_error": round(error, 3),
                "fixed": float(f"{fixed:.4g}"),
                "each": float(f"{each:.4g}"),
                "line_largest_error": round(line_error, 3),
            }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """One law along each axis, the others held at their first value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, topologies=("v4-8", "v4-16", "v4-32"), shapes=SHAPES)
    arguments = parser.parse_args(argv)
    first = Cell(
        topology=arguments.topologies[0],
        shape=arguments.shapes[0],
        batch=arguments.batches[0],
        preset=arguments.preset,
    )
    axes: dict[str, dict[float, Cell]] = {"tokens": {}, "batch": {}, "chips": {}}
    for shape in arguments.shapes:
        cell = Cell(topology=first.topology, shape=shape, batch=first.batch, preset=first.preset)
        axes["tokens"][tokens(cell)] = cell
    for batch in arguments.batches:
        axes["batch"][batch] = Cell(topology=first.topology, shape=first.shape, batch=batch, preset=first.preset)
    for name in arguments.topologies:
        cell = Cell(topology=name, shape=first.shape, batch=first.batch, preset=first.preset)
        axes["chips"][topology(name).num_chips] = cell
    wanted = list(dict.fromkeys(cell for axis in axes.values() for cell in axis.values()))
    figures = dict(measured(wanted, arguments.json))
    report: dict[str, object] = {}
    for axis, cells in axes.items():
        if len(cells) > 1:
            report[axis] = laws({size: figures[cell] for size, cell in cells.items()})
            print(f"{axis:8} {report[axis]}", flush=True)
    print_report("scaling", report, {})


if __name__ == "__main__":
    main()
