"""The training loop: next batch -> scalars of the step -> step -> meters -> one fetch when logging is due.

Knows no device and no task. Every decision is made from the step number or from values that all ranks share.
"""

import logging
import math
import time
from itertools import islice
from typing import Any

from data_setup.errors import UnreadableInput
from oct_foundation.checkpoints.owner import TakenOver
from oct_foundation.checkpoints.store import StoreError
from oct_foundation.diagnostics.readings import PREFIX
from oct_foundation.runtime.exits import ExitCode
from oct_foundation.tracking.meters import Interval, MetricGuard
from pretraining.agreement import StopAgreement
from pretraining.run import DivergedError, Run, StoppedError
from pretraining.step import train_step, validation_loss
from pretraining.tasks.task import quotients

# Steps 1 and 2 may compile; a program compiled later means that something in the step changes with the data.
WARM_UP_STEPS = 2
# Train metrics are missed after this many logging intervals without any.
MISSED_INTERVALS = 3

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Trains from `run.state.step` to `run.total_steps`; validates, logs and saves when due.

    Raises DivergedError when `optim.max_skipped_in_a_row` updates in a row were skipped, StoppedError where the ranks
    have agreed to stop.
    """
    runtime, state, settings = run.runtime, run.state, run.config.train
    micro_batches = runtime.batches(
        run.task.train_batches(
            rank=runtime.rank,
            world_size=runtime.world_size,
            start_step=state.step,
            num_steps=run.total_steps - state.step,
        )
    )
    since = Interval(step=state.step, samples=state.samples_seen)
    guard = MetricGuard(MISSED_INTERVALS * settings.log_every_steps, start_step=state.step)
    agreement = StopAgreement(runtime, state.step)
    if state.step == 0:
        diagnose(run)  # what later readings are compared with
    _end_early(run)  # a run that goes on may have come to its end before
    while state.step < run.total_steps:
        with run.stopwatch.phase("data_wait"):
            batches = list(islice(micro_batches, run.accumulation))
        if len(batches) < run.accumulation:
            raise RuntimeError(f"the loader ended at step {state.step} of {run.total_steps}: this is an error of octfm")
        values = _step(run, batches)
        run.life.beat(state.step)
        first = state.step == since.started_at + 1
        if first or state.step % settings.log_every_steps == 0 or state.step == run.total_steps:
            with run.stopwatch.phase("logging"):
                guard.log(_log(run, values, since), state.step)
        if (silence := guard.check(state.step)) is not None:
            log.warning("%s", silence)
        if read := run.watch is not None and run.watch.due(state.step):
            diagnose(run, batches[-1])
            _end_early(run)
        if _due(state.step, settings.val_every_steps) or state.step == run.total_steps:
            validate(run)
        if state.step == run.total_steps:
            save_last(run)
            return
        best = read and _is_best(run)
        if best or _due(state.step, run.config.checkpoint.every_steps):
            save(run, patient=best)
        if code := agreement.at(state.step, _wish(run)):
            stop(run, code)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _end_early(run: Run) -> None:
    """Makes the step that is done the last one where the readings say that more would be of no use."""
    if run.watch is not None and run.state.step and (reason := run.watch.enough()):
        log.info("step %d of %d is the last: %s", run.state.step, run.total_steps, reason)
        run.total_steps = run.state.step


def _step(run: Run, batches: list[Any]) -> dict[str, Any]:
    """One update; its time counts as compilation when the runtime compiled during it."""
    state, runtime = run.state, run.runtime
    scalars = run.schedules.at(state.step)
    before, start = runtime.graphs_compiled(), time.perf_counter()
    runtime.seed_step(run.config.seed, state.step)
    metrics = train_step(
        run.task.objective,
        state.model,
        state.replica,
        state.optimizer,
        runtime,
        batches,
        runtime.scalars(scalars),
        run.config.train.precision,
    )
    state.step += 1
    state.samples_seen += run.global_batch
    compiled = (runtime.graphs_compiled() or 0) - (before or 0)
    run.train_graphs += compiled
    run.stopwatch.add("compile" if compiled else "step", time.perf_counter() - start)
    expected = run.train_graphs <= run.task.objective.num_programs
    if compiled and not expected and state.step > run.start_step + WARM_UP_STEPS:
        log.warning(
            "step %d: XLA compiled %d new program(s). Something in the step changed shape or was read by the host; "
            "PT_XLA_DEBUG_LEVEL=1 names the line",
            state.step,
            compiled,
        )
    return {"metrics": metrics, "scalars": scalars}


def _log(run: Run, values: dict[str, Any], since: Interval) -> dict[str, float]:
    """Fetches the metrics of this step, averages the loss over ranks and hands everything to the tracker."""
    state, runtime = run.state, run.runtime
    with run.stopwatch.phase("step"):  # on XLA the device works until here
        fetched = runtime.fetch(values["metrics"])
        of_update = run.task.objective.of_update(state.model, state.optimizer, runtime)
    counts = {name: float(count * runtime.world_size) for name, count in run.task.input_counts().items()}
    averaged = quotients(runtime.mean_over_ranks(fetched | counts))  # a mean of world_size-fold counts is their sum
    seconds = time.perf_counter() - since.time
    averaged |= of_update | values["scalars"]
    averaged["samples_per_sec"] = (state.samples_seen - since.samples) / seconds
    averaged["seconds_per_step"] = seconds / (state.step - since.step)
    averaged["samples"] = float(state.samples_seen)
    averaged["epoch"] = state.samples_seen / run.facts["samples_per_epoch"]
    since.step, since.samples, since.time = state.step, state.samples_seen, time.perf_counter()
    named = {f"train/{name}": value for name, value in averaged.items()}
    run.last |= named
    run.tracker.log(named, step=state.step)
    if run.watch is not None:
        run.watch.note_gradient(averaged["grad_norm"])
    limit = run.config.optim.max_skipped_in_a_row
    if averaged["skipped_in_a_row"] >= limit:
        raise DivergedError(
            f"the gradient was not finite in the last {int(averaged['skipped_in_a_row'])} updates up to step "
            f"{state.step} (limit optim.max_skipped_in_a_row={limit}); no update was applied and no weight is damaged. "
            f"Lower optim.base_lr, lengthen optim.warmup_steps, or look at the data of these steps; restart resumes"
        )
    return named


def validate(run: Run) -> None:
    """Loss on the fixed validation batches, averaged over ranks; silent where there are none.

    Where a rank cannot read one of its samples, a warning takes the loss's place on all: that of fewer samples would
    not compare with the others, and a lost file is no reason to lose a run.
    """
    with run.stopwatch.phase("validation"), run.life.watchdog.phase("validation"):
        batches, trouble = _validation_batches(run)
        if found := sorted(filter(None, run.runtime.gather(trouble))):
            log.warning("step %d: no validation loss: %s", run.state.step, "; ".join(found))
            return
        if not batches:
            return
        totals = validation_loss(run.task.objective, run.state.model, run.runtime, batches, run.config.train.precision)
        averaged = quotients(run.runtime.mean_over_ranks(run.runtime.fetch(totals)))
    named = {f"val/{name}": value for name, value in averaged.items()}
    run.last |= named
    if math.isfinite(averaged["loss"]):
        run.state.best_val_loss = min(run.state.best_val_loss, averaged["loss"])
    with run.stopwatch.phase("logging"):
        run.tracker.log(named, step=run.state.step)


def _validation_batches(run: Run) -> tuple[list[Any], str]:
    """Those of this rank, and why they cannot be made ("" where they can)."""
    try:
        return list(run.task.val_batches(rank=run.runtime.rank, world_size=run.runtime.world_size)), ""
    except UnreadableInput as error:
        return [], str(error)


def diagnose(run: Run, batch: Any = None) -> None:
    """A reading of the networks, into the record; raises StoppedError where it is an alarm that shall end the run."""
    if run.watch is None:
        return
    with run.stopwatch.phase("diagnostics"), run.life.watchdog.phase("validation"):
        scalars = run.schedules.at(max(run.state.step - 1, 0))
        if (found := run.watch.read(run.state, run.runtime, scalars, batch)) is None:
            return
    values, run.judgement = found
    named = {f"{PREFIX}{name}": value for name, value in values.items()}
    run.last = {name: value for name, value in run.last.items() if not name.startswith(PREFIX)} | named
    run.read_at = run.state.step
    if run.state.step == 0:
        run.facts["first_reading"] = {name: value for name, value in values.items() if math.isfinite(value)}
    with run.stopwatch.phase("logging"):
        run.tracker.log(named, step=run.state.step)
        for name, rows in run.watch.tables().items():
            run.tracker.table(name, rows, step=run.state.step)
    if run.watch.must_stop(run.judgement):
        stop(run, ExitCode.NOT_LEARNING)


def _is_best(run: Run) -> bool:
    """Whether the reading of this step is the best so far of this attempt, by what the best checkpoint is chosen by."""
    settings = run.config.checkpoint
    value = run.last.get(settings.best_metric or "", math.nan)
    if not (settings.best_metric or "").startswith(PREFIX) or not math.isfinite(value):
        return False
    if run.best is not None and (value <= run.best if settings.best_mode == "max" else value >= run.best):
        return False
    run.best = value
    return True


def save(run: Run, *, patient: bool = False) -> None:
    """Rank 0 saves this step boundary in the background; the others help where the state is in shares, and go on.

    patient: waits for a save that is still being written, for the best weights are in no later one.
    """
    if run.config.checkpoint.enabled:
        with run.stopwatch.phase("checkpoint"), run.life.watchdog.phase("save"):
            captured = _captured(run)
            if run.saver is not None:
                run.saver.save(*captured, patient=patient)


def save_last(run: Run) -> None:
    """The end of the run, durable before any rank says that it is done; if it is not, all raise StoppedError."""
    with run.life.watchdog.phase("save"):  # the other ranks wait for rank 0 as long as it may take
        trouble = run.runtime.gather(_save_now(run, timeout_s=None))[0]
    if trouble:
        reason = f"the run is done at step {run.state.step}, but its last checkpoint is not saved: {trouble}"
        raise StoppedError(ExitCode.STORAGE, reason)
    run.life.stop.late_code = ExitCode.DONE


def _captured(run: Run) -> tuple[int, dict[str, Any], dict[str, float], dict[str, Any]]:
    """Step, state, metrics and facts of a checkpoint; readings only where they are of these weights."""
    fresh = run.read_at == run.state.step
    kept = {name: value for name, value in run.last.items() if fresh or not name.startswith(PREFIX)}
    metrics = {name: value for name, value in kept.items() if math.isfinite(value)}
    return run.state.step, run.runtime.whole(run.state.capture(run.runtime)), metrics, run.facts


def _save_now(run: Run, timeout_s: float | None) -> str:
    """Rank 0 saves and waits for it; why it could not, "" when the state is durable, and on ranks that do not save."""
    if not run.config.checkpoint.enabled:
        return ""
    try:
        with run.stopwatch.phase("checkpoint"):
            captured = _captured(run)
            if run.saver is not None:
                run.saver.save_and_wait(*captured, timeout_s=timeout_s)
    except StoreError as error:
        return str(error)
    return ""


def _wish(run: Run) -> ExitCode:
    """What this rank wants: to go on, or why not."""
    if run.saver is not None and run.saver.fatal is not None:
        return ExitCode.TAKEN_OVER if isinstance(run.saver.fatal, TakenOver) else ExitCode.STORAGE
    return ExitCode.STOPPED if run.life.stop.asked else ExitCode.DONE


def stop(run: Run, code: ExitCode) -> None:
    """All ranks leave the loop after the same step; raises StoppedError with what it came to."""
    step, gather = run.state.step, run.runtime.gather
    if code == ExitCode.NOT_LEARNING:
        found = " ".join(run.judgement.reasons) if run.judgement else ""
        trouble = gather(_save_now(run, timeout_s=None))[0] if run.config.checkpoint.enabled else "checkpoints are off"
        saved = f"not saved: {trouble}" if trouble else "saved for a look at it"
        raise StoppedError(code, f"stopped at step {step}, {saved}, since the encoder has collapsed. {found}")
    if code != ExitCode.STOPPED:
        fatal = run.saver.fatal if run.saver else None
        trouble = next(filter(None, gather(str(fatal or ""))), "the store failed, and has recovered meanwhile")
        raise StoppedError(code, f"stopped at step {step}: {trouble}")
    reason = next(filter(None, gather(run.life.stop.reason)), "a request")
    if not run.config.checkpoint.enabled:
        text = f"{reason}: stopped at step {step}; nothing is saved, since checkpoints are off"
        raise StoppedError(ExitCode.STOPPED_UNSAVED, text)
    if trouble := gather(_save_now(run, timeout_s=run.life.stop.save_within_s))[0]:
        raise StoppedError(ExitCode.STOPPED_UNSAVED, f"{reason}: stopped at step {step}, not saved: {trouble}")
    run.life.stop.late_code = ExitCode.STOPPED
    raise StoppedError(ExitCode.STOPPED, f"{reason}: saved and stopped at step {step}; the same command goes on")
