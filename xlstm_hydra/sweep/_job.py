"""What a job of a sweep records of itself, from its folder."""

from __future__ import annotations

import math
import os
import statistics
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlstm_hydra.errors import bug_report, message_of, wants_traceback
from xlstm_hydra.errors import reason as reason_of
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import METRICS_FILE, read_metrics_file, saved_checkpoints

from . import _outcome
from ._outcome import COMPLETED, FAILED, INTERRUPTED, PREEMPTED, REFUSED, RUNNING, Outcome, log

ERROR_FILE = "error.txt"
"""The traceback of a job that failed by a bug, in its folder."""


class Unrecorded:
    """Stands for the record of a run that is no job of a sweep."""

    result: Any = None
    """What the task returns."""

    def failures(self) -> AbstractContextManager[None]:
        """Record how it ends if it does not get through what is done inside. It may be nested."""
        return nullcontext()


class JobRecord(Unrecorded):
    """The record of a job that is running."""

    def __init__(self, sweep: Path, folder: Path, outcome: Outcome) -> None:
        self._sweep, self._folder = sweep.absolute(), folder.absolute()
        own = os.path.relpath(self._folder, self._sweep)
        self._outcome, self._is_ended = replace(outcome, status=RUNNING, folder=own, started=_outcome.now()), False

    def start(self) -> None:
        """Say that it runs. What the sweep knows of its point stays."""
        with _told():
            if known := _outcome.find_outcome(self._sweep, self._outcome.job):
                cluster_job = self._outcome.cluster_job or known.cluster_job
                self._outcome = replace(self._outcome, overrides=known.overrides, cluster_job=cluster_job)
        self._write(self._outcome)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """See `Unrecorded`."""
        try:
            yield
        except BaseException as error:
            if not self._is_ended:
                self.end(error)
            raise

    def end(self, error: BaseException | None = None) -> None:
        """Record how it has ended."""
        self._is_ended = True
        status, reason = _status(error)
        if status == FAILED and error is not None:
            with _told():
                keep_traceback(self._folder, error)
        ended = replace(self._outcome, status=status, reason=reason, ended=_outcome.now())
        self._write(measured(self._folder, self._sweep, ended, self.result))

    def _write(self, outcome: Outcome) -> None:
        """In its own folder first, from which the other is mended."""
        with _told():
            _outcome.write_outcome(self._folder, outcome)
        with _told():
            _outcome.update_record(self._sweep, [outcome])


@contextmanager
def job_recorded(
    sweep: Path, folder: Path, job: int, overrides: Sequence[str], task: str | None = None
) -> Iterator[JobRecord]:
    """Record how what is done inside ends.

    Args:
        sweep: the folder of the sweep.
        folder: that of the job.
        job: its number.
        overrides: those of its point.
        task: the name of the task.
    """
    record = JobRecord(
        sweep, folder, Outcome(job=job, overrides=list(overrides), task=task, cluster_job=_cluster_job())
    )
    record.start()
    with record.failures():
        yield record
    record.end()


@contextmanager
def _told() -> Iterator[None]:
    """A job is not lost because its outcome cannot be written."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        log.warning("the outcome of this job cannot be recorded: %s", reason_of(error))


def _status(error: BaseException | None) -> tuple[str, str | None]:
    """How a job has ended, and why, in a line."""
    if error is None:
        return COMPLETED, None
    if isinstance(error, ConfigError):
        return REFUSED, reason_of(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, None
    if isinstance(error, SystemExit):
        if error.code in (0, None):
            return COMPLETED, None
        if error.code == STATUS:
            text = str(error)
            return PREEMPTED, None if text == str(STATUS) else text
        return FAILED, f"left by sys.exit({error.code!r})"
    return FAILED if isinstance(error, Exception) else INTERRUPTED, reason_of(error)


def keep_traceback(folder: Path, error: BaseException) -> None:
    """Leave the traceback of a bug in the folder of its job. The reason of anything else is in the record."""
    file = folder / ERROR_FILE
    if message_of(error) is not None and not wants_traceback():
        file.unlink(missing_ok=True)  # that of an earlier attempt
        return
    trace = error.__traceback__
    text = "".join(traceback.format_exception(type(error), error, trace.tb_next if trace else None))  # from the task on
    _outcome.replace_file(file, text if message_of(error) is not None else f"{text}{bug_report(error)}\n")


def _cluster_job() -> str | None:
    """The SLURM job that this job of a sweep is, where submitit has made it one."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def measured(folder: Path, sweep: Path, outcome: Outcome, result: Any = None) -> Outcome:
    """An outcome with what stands in the metrics and checkpoints of the job's folder, and what its task returned."""
    rows, saved = read_metrics(folder / METRICS_FILE), saved_checkpoints(folder)
    newest = saved[max(saved)] if saved else None
    value = _finite(result)
    name = "validation_loss" if any("validation_loss" in row for row in rows) else "loss"
    found = [(row[name], int(row["step"])) for row in rows if row.get(name) is not None]
    best, best_step = min(found, default=(None, None))
    if best is None and value is not None:
        best, name = value, {"plan": "step_seconds"}.get(outcome.task or "", "loss")
    rates = [rate for row in rows if (rate := row.get("tokens_per_second")) is not None]
    steps = max([int(rows[-1]["step"])] if rows else [], default=None)
    return replace(
        outcome,
        metric=name if best is not None else None,
        best=best,
        best_step=best_step,
        steps=max([step for step in (steps, max(saved, default=None)) if step is not None], default=None),
        metrics={column: value for row in rows for column, value in row.items()},
        tokens_per_second=statistics.median(rates) if rates else None,
        checkpoint=None if newest is None else os.path.relpath(newest, sweep),
        result=value,
    )


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.csv`, each with the columns that it has. Lines that are damaged or cut off are left out."""
    try:
        rows = read_metrics_file(file).rows
    except OSError:
        return []
    return [{name: int(value) if name == "step" else _finite(value) for name, value in row.items()} for row in rows]


def _finite(value: Any) -> float | None:
    """A number that JSON can hold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
