"""An estimate as a person reads it: the verdict, what is wrong and what helps, then a row per figure."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oct_foundation.preflight.roofline import USABLE_HBM
from oct_foundation.runtime.base import Sharding
from pretraining.preflight.estimate import Estimate

Row = tuple[str, str, str]
_LIMITS = {
    "compute": "the matrix units: nothing but fewer operations is faster",
    "memory": "HBM: fewer bytes per volume (larger per-core batch, kernels, bf16) are faster",
    "network": "the interconnect: fewer reductions per volume (more accumulation, larger per-core batch) are faster",
}

_PLACES: dict[Sharding, str] = {
    "none": "every chip holds weights, moments and gradients (train.sharding=full splits them)",
    "full": "weights, moments and gradients are split over the chips",
}
_EXCHANGES: dict[Sharding, str] = {
    "none": "all-reduced over the chips once an update",
    "full": "by collectives outside of loops; weights that go round inside of them are not counted",
}


def print_estimate(found: Estimate, console: Console) -> None:
    """Verdict line, remedies, table."""
    good = found.verdict == "FITS"
    console.print(escape(headline(found)), style="bold green" if good else "bold red", soft_wrap=True)
    for remedy in remedies(found):
        console.print(f"  {escape(remedy)}", soft_wrap=True)
    table = Table("figure", "value", "what it means")
    for row in rows(found):
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def headline(found: Estimate) -> str:
    """The verdict in one line."""
    place = f"{found.topology.name} ({found.topology.num_chips} chips)"
    kind = f", {found.kind}" if found.kind else ""
    what = f"{found.config.name}{kind}: {found.config.shape}, {found.trace.per_core_batch_size} a chip"
    match found.verdict:
        case "DOES NOT COMPILE":
            return f"DOES NOT COMPILE  {what}, on {place}: {found.reason}"
        case "DOES NOT FIT":
            usable = f"{_gib(USABLE_HBM * found.topology.chip.hbm_bytes)} usable"
            return f"DOES NOT FIT  {what}, on {place}: {_gib(found.hbm_total_bytes)} of {usable}"
        case "RECOMPILES":
            graphs = f"{found.trace.train_graphs} train graphs, expected {found.trace.expected_train_graphs}"
            return f"RECOMPILES  {what}, on {place}: {graphs}"
        case "FITS":
            bound = found.roofline
            return f"FITS  {what}, on {place}; roofline MFU {bound.mfu_bound:.0%}, limited by {bound.limit}"


def remedies(found: Estimate) -> list[str]:
    """What to try, the cheapest first."""
    batch, whole = found.trace.per_core_batch_size, found.config.train.sharding == "none"
    match found.verdict:
        case "FITS":
            return []
        case "RECOMPILES":
            moments = ", ".join(found.trace.differing) or "an update"
            return [
                f"Another program at: {moments}. Each costs minutes of the slice, and ranks that differ hang.",
                "Look for a Python number that changes by step, or state that is born in the first step.",
            ]
        case _:
            smaller = [f"batch.per_core_batch_size={batch // 2} (accumulation makes up for it)"] if batch > 1 else []
            return [
                *(f"Try {one}." for one in smaller),
                "octfm preflight ... --suggest finds the largest per-core batch that fits.",
                *(["train.sharding=full splits weights and moments over the chips."] if whole else []),
                "A smaller model.image_size or model.preset, larger model.patch_size, or chips with more memory "
                "(--topology v5p-8) take less of it.",
            ]


def rows(found: Estimate) -> Iterator[Row]:
    """(figure, value, meaning)."""
    trace = found.trace
    yield from _program_rows(found)
    if found.compiles:
        yield from _memory_rows(found)
        yield from _work_rows(found)
        yield _length_row(found)
    seconds = sum(one.seconds for one in found.compiled.values())
    yield (
        "compile time",
        f"{seconds:.0f} s here",
        f"after {trace.seconds:.0f} s of tracing; a slice compiles at each start",
    )
    versions = trace.versions | next((one.versions for one in found.compiled.values()), {})
    yield "versions", ", ".join(f"{name} {text}" for name, text in versions.items()), "the slice must run the same"


def _program_rows(found: Estimate) -> Iterator[Row]:
    trace = found.trace
    volumes = (
        f"{trace.per_core_batch_size} a chip x {found.topology.num_chips} chips x {trace.accumulation} accumulated"
    )
    yield "global batch", str(found.config.batch.global_batch_size), volumes
    yield "sharding", found.config.train.sharding, _PLACES[found.config.train.sharding]
    yield "parameters", f"{trace.trainable_parameters:,}", f"trained, of {trace.parameters:,}"
    graphs = f"{trace.train_graphs} ({trace.expected_train_graphs} expected)"
    yield "train graphs", graphs, "distinct programs over warm-up, first and last step"
    yield "validation graphs", str(trace.validate_graphs), "the forward pass, and one that adds up a few numbers"


def _memory_rows(found: Estimate) -> Iterator[Row]:
    (program, _), figures = found.largest, found.figures
    yield "arguments", _gb(figures.hbm_args_bytes), f"of the largest program ({program.kind}): weights, moments, batch"
    new = figures.hbm_out_bytes - figures.hbm_donated_bytes
    yield "new outputs", _gb(new), f"{_gb(figures.hbm_donated_bytes)} more take the place of arguments"
    yield "temporaries", _gb(figures.hbm_temp_bytes), "activations and gradients: what grows with the batch"
    yield "code", _gb(figures.hbm_code_bytes), "the program itself"
    if figures.hbm_idle_state_bytes:
        yield "idle state", _gb(figures.hbm_idle_state_bytes), "what this program does not read and stays on the chip"
    share = figures.hbm_total_bytes / found.topology.chip.hbm_bytes
    limit = f"{share:.0%} of the chip's {_gib(found.topology.chip.hbm_bytes)}; {USABLE_HBM:.0%} is usable"
    yield "HBM in all", _gb(figures.hbm_total_bytes), limit


def _work_rows(found: Estimate) -> Iterator[Row]:
    figures, chip, micro = found.figures, found.topology.chip, found.trace.accumulation
    flops = f"of the model, by arithmetic; the compiler counts {figures.flops / 1e12:.3g} T"
    yield "operations", f"{found.trace.model_flops / 1e12:.3g} TFLOP", f"{flops} ({_peak(chip.bf16_flops)})"
    kernels = f"{_gb(figures.bytes_accessed / micro)} a micro-step, {figures.num_kernels} kernels included"
    yield "bytes moved", _gb(figures.bytes_accessed), f"{kernels} ({chip.hbm_bandwidth / 1e12:.3g} TB/s)"
    yield "of them HBM", _gb(figures.hbm_traffic_bytes), "by the compiler's placement: the rest may stay on the chip"
    links = f"{chip.link_bandwidth / 1e9:.0f} GB/s one way over all links"
    yield "exchanged", _gb(figures.collective_bytes), f"{_EXCHANGES[found.config.train.sharding]} ({links})"
    placed = figures.hbm_traffic_bytes / chip.hbm_bandwidth
    times = f"compute {_ms(figures.compute_seconds)}, memory {_ms(figures.memory_seconds)} ({_ms(placed)} by placement)"
    yield "roofline time", _ms(figures.roofline_seconds), f"{times}, network {_ms(figures.network_seconds)}"
    yield "limited by", figures.limit, _LIMITS[figures.limit]
    # The compiler's count of bytes is a high one: only by placement is this a share that no chip can pass.
    ceiling = figures.compute_seconds / max(figures.compute_seconds, placed, figures.network_seconds)
    yield "MFU", f"{figures.mfu_bound:.1%}", f"share of the chips' peak at that roofline; by placement {ceiling:.1%}"
    yield "volumes/s", f"{figures.volumes_per_second_bound:,.0f}", "of the whole slice at that roofline"


def _length_row(found: Estimate) -> Row:
    if (length := found.length) is None:
        return "whole run", "unknown", "give the number of training volumes: --volumes N"
    source = f"{length.volumes:,} volumes ({length.volumes_from})"
    if not length.steps:
        return "whole run", "impossible", f"{source} do not fill one global batch"
    steps = f"{length.steps:,} steps, {length.hours:.3g} h at that roofline"
    return "whole run", steps, f"{found.config.train.epochs} epochs of {length.steps_per_epoch:,} steps; {source}"


def _gb(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _peak(rate: float) -> str:
    return f"peak {rate / 1e12:.0f} T/s"
