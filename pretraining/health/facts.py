"""Which run this is, how its data were normalised, what the network is, with which versions: facts, none invented."""

from collections.abc import Mapping, Sequence
from typing import Any

from pretraining.health.checkpoints import Weighed
from pretraining.health.own_runs import config_hash
from pretraining.health.sections import NOT_RECORDED, Section, Table, number
from pretraining.report.ending import Ending
from pretraining.report.facts import facts_of
from pretraining.report.gather import RunRecord

_LARGEST = 10


def header_table(run: RunRecord, task: str, ending: Ending, epochs: tuple[float | None, float | None]) -> Table:
    """Run id, config hash, commit, device, epoch and step of all."""
    summary = run.summary or {}
    facts = _newest_facts(run)
    done, planned = epochs
    rows = (
        ("run", f"{run.setting('name') or 'unnamed'}"),
        ("task", task),
        ("run id", run.run_id or NOT_RECORDED),
        ("configuration", f"{config_hash(run.config)} (hash)" if run.config else NOT_RECORDED),
        ("git commit", str(summary.get("git_sha") or facts.get("git_sha") or NOT_RECORDED)),
        ("device", str(summary.get("device") or run.setting("runtime", "device") or NOT_RECORDED)),
        ("processes", str(summary.get("world_size") or NOT_RECORDED)),
        ("step", f"{ending.step:,} of {f'{ending.total:,}' if ending.total else NOT_RECORDED}"),
        ("epoch", f"{number(done, 3)} of {number(planned, 3)}"),
        ("last row", run.last_time or NOT_RECORDED),
    )
    return Table(header=("", ""), rows=rows)


def normalisation_section(run: RunRecord, task: str, leak_free: bool | None) -> Section:
    """Whose statistics inputs and losses are scaled by."""
    match task:
        case "autoencoder":
            return _of_film(run, leak_free)
        case "multimodal":
            lines = (
                "Each T1 and dMRI volume is scaled by its own mean and deviation, rsfMRI by those of its run: "
                "nothing is shared between training and validation.",
            )
        case _:
            lines = ("Grey levels are scaled by constants: no statistic is shared between training and validation.",)
    return Section(name="normalisation", title="Normalisation", lines=lines)


def _taken_out(run: RunRecord, film: Mapping[str, Any]) -> str:
    """Drift and confounds, by the names of the settings."""
    detrend, confounds = (film.get(name, run.setting("data", name)) for name in ("detrend", "confounds"))
    named = (["a line"] if detrend else []) + (list(confounds) if isinstance(confounds, list | tuple) else [])
    return ", ".join(map(str, named)) or "nothing"


def _of_film(run: RunRecord, leak_free: bool | None) -> Section:
    film, trs = film_facts(run)
    said = {
        True: "yes: mean, variance and z-scores come from training TRs alone",
        False: "no, or nobody knows: they were given by a file (data.fmri_stats_file)",
        None: NOT_RECORDED,
    }[leak_free]
    rows = (
        ("free of validation TRs", said),
        (
            "TRs: all; train; gap; validation",
            "; ".join(str(trs.get(k, NOT_RECORDED)) for k in ("all", "train", "gap", "val")),
        ),
        ("mode", str(film.get("mode") or run.setting("data", "mode") or NOT_RECORDED)),
        ("subjects", str(len(film["subjects"])) if isinstance(film.get("subjects"), Sequence) else NOT_RECORDED),
        ("voxels (constant ones)", f"{film.get('voxels', NOT_RECORDED)} ({film.get('constant_voxels', NOT_RECORDED)})"),
        ("taken out of each side of the split", _taken_out(run, film)),
        ("HRF on stimuli", str(film.get("hrf", run.setting("data", "apply_hrf")))),
        ("TR in s", str(film.get("tr_s", run.setting("data", "tr")))),
        ("loss", f"{run.setting('loss', 'mode')}, fmri by {run.setting('loss', 'fmri_loss')}"),
    )
    return Section(name="normalisation", title="Normalisation", tables=(Table(header=("", ""), rows=rows),))


def film_facts(run: RunRecord) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the summary says of the film, and of its TRs; empty where it says nothing."""
    film = (run.summary or {}).get("film")
    film = film if isinstance(film, Mapping) else {}
    trs = film.get("trs")
    return film, trs if isinstance(trs, Mapping) else {}


def model_section(run: RunRecord | None, task: str, weighed: Sequence[Weighed]) -> Section:
    """Parameters by part, precision of the stored weights, and what the run says of its model and data."""
    tables = []
    if weighed:
        one = weighed[0]
        counted = [(part, f"{count:,}") for part, count in one.num_parameters.items()]
        counted.append(("all weights in the file", f"{sum(one.num_parameters.values()):,}"))
        counted.append(("stored as", ", ".join(one.dtypes)))
        tables.append(Table(header=("parameters", ""), rows=tuple(counted), caption=f"In {one.label}"))
    if run is not None:
        tables += [
            Table(header=(title, ""), rows=_of_task(rows, task))
            for title, rows in facts_of(run)
            if title in ("Data", "Training")
        ]
        if isinstance(parameters := (run.summary or {}).get("trainable_parameters"), int):
            tables.append(Table(header=("parameters", ""), rows=(("trained, as the run counted", f"{parameters:,}"),)))
    lines = () if tables else (f"Model: {NOT_RECORDED}.",)
    return Section(name="model", title="Model", lines=lines, tables=tuple(tables))


def _of_task(rows: Sequence[tuple[str, str]], task: str) -> tuple[tuple[str, str], ...]:
    """The report of encoders calls samples volumes, and has a teacher."""
    if task == "vjepa":
        return tuple(rows)
    return tuple((what.replace("volumes", "samples"), value) for what, value in rows if what != "EMA momentum")


def versions_table(run: RunRecord) -> Table:
    """Of the libraries that decide results."""
    rows = next((rows for title, rows in facts_of(run) if title == "Versions"), [("versions", NOT_RECORDED)])
    return Table(header=("version", ""), rows=tuple(rows))


def weights_section(weighed: Sequence[Weighed]) -> Section:
    """Of each checkpoint looked into: what it holds by kind, its largest tensors, and the state of the optimizer."""
    if not weighed:
        return Section(name="weights", title="Weights", lines=(f"No checkpoint was looked into: {NOT_RECORDED}.",))
    lines, tables = [], []
    for one in weighed:
        facts = one.examination.tensors
        broken = sum(fact.nan + fact.inf for fact in facts)
        lines.append(
            f"{one.label} ({one.role}, step {one.step:,}): {len(facts)} tensors, {broken:,} NaN or Inf values; "
            f"optimizer state {_OPTIMIZER[one.moments_named]}."
        )
        tables += [_kinds(one), _largest(one)]
    return Section(name="weights", title="Weights", lines=tuple(lines), tables=tuple(tables))


_OPTIMIZER = {
    True: "matched to its parameters",
    False: "there, but its parameters cannot be told by name: judged for NaN and Inf alone",
    None: "not in the file",
}


def _kinds(one: Weighed) -> Table:
    """Kinds are summed up apart: a mean over weights, running statistics and counters says nothing."""
    rows = []
    for kind in ("weight", "vector", "running", "counter", "buffer"):
        if facts := one.examination.of_kind(kind):
            means, deviations = [fact.mean for fact in facts], [fact.std for fact in facts]
            rows.append(
                (
                    kind,
                    f"{len(facts)}",
                    f"{number(min(means), 3)} to {number(max(means), 3)}",
                    f"{number(min(deviations), 3)} to {number(max(deviations), 3)}",
                    number(facts[0].abs_max, 4),
                    f"{sum(fact.nan for fact in facts)}; {sum(fact.inf for fact in facts)}",
                )
            )
    header = ("kind", "tensors", "means", "deviations", "largest", "NaN; Inf")
    return Table(header=header, rows=tuple(rows), caption=f"{one.label}, by kind")


def _largest(one: Weighed) -> Table:
    facts = sorted(
        (fact for fact in one.examination.tensors if fact.kind in ("weight", "vector", "running")),
        key=lambda fact: (-(fact.nan + fact.inf), -fact.abs_max),
    )[:_LARGEST]
    rows = tuple(
        (
            fact.name,
            fact.kind,
            " × ".join(map(str, fact.shape)) or "1",
            number(fact.mean, 3),
            number(fact.std, 3),
            f"{number(fact.low, 3)} to {number(fact.high, 3)}",
            f"{fact.nan}; {fact.inf}",
        )
        for fact in facts
    )
    header = ("tensor", "kind", "shape", "mean", "deviation", "range", "NaN; Inf")
    return Table(header=header, rows=rows, caption=f"{one.label}, the {len(rows)} with the largest values")


def _newest_facts(run: RunRecord) -> Mapping[str, Any]:
    found = run.checkpoints[-1].get("facts") if run.checkpoints else None
    return found if isinstance(found, Mapping) else {}
