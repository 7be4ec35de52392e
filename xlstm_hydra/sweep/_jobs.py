"""Sweep jobs: record their outcomes, read their metrics, and find the jobs that are still running."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra._logging import log
from xlstm_hydra.configs import AUTO, RunConfig
from xlstm_hydra.errors import bug_report, message_of, wants_traceback
from xlstm_hydra.errors import reason as reason_of
from xlstm_hydra.hydra import differing
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import METRICS_FILE, is_held, read_metrics_file, replace_file, saved_checkpoints, saved_steps

from ._commands import SUBDIR, key_of
from ._outcomes import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    INVALID,
    LOST,
    PREEMPTED,
    REFUSED,
    RUNNING,
    WAITING,
    Damaged,
    Outcome,
    find_outcome,
    now,
    parse_outcome,
    update_record,
)
from ._slurm_states import ENDED, states

OUTCOME_FILE = "outcome.json"
"""File in the job folder with the outcome of the job."""

ERROR_FILE = "error.txt"
"""File in the job folder with the traceback of a job that failed because of a bug."""

LOST_REASON = "it exited without a result (killed, out of memory, or node failure?)"


class Unrecorded:
    """Record of a run that is not a sweep job: nothing is written."""

    result: Any = None
    """Return value of the task."""

    def failures(self) -> AbstractContextManager[None]:
        """Return a context manager that records the end of the run if an exception leaves its block. Blocks may be
        nested."""
        return nullcontext()


class JobRecord(Unrecorded):
    """Record of a running sweep job."""

    def __init__(self, sweep: Path, folder: Path, outcome: Outcome) -> None:
        self._sweep, self._folder = sweep.absolute(), folder.absolute()
        own = os.path.relpath(self._folder, self._sweep)
        self._outcome, self._is_ended = replace(outcome, status=RUNNING, folder=own, started=now()), False

    def start(self) -> None:
        """Record that the job is running. Overrides that the sweep has already recorded for the job are kept."""
        with _warns_if_unwritten():
            if known := find_outcome(self._sweep, self._outcome.job):
                cluster_job = self._outcome.cluster_job or known.cluster_job
                self._outcome = replace(self._outcome, overrides=known.overrides, cluster_job=cluster_job)
        self._write(self._outcome)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """See `Unrecorded.failures`."""
        try:
            yield
        except BaseException as error:
            if not self._is_ended:
                self.end(error)
            raise

    def end(self, error: BaseException | None = None) -> None:
        """Record the end of the job, with the error that ended it, if any."""
        self._is_ended = True
        status, reason = _status(error)
        if status == FAILED and error is not None:
            with _warns_if_unwritten():
                write_traceback(self._folder, error)
        ended = replace(self._outcome, status=status, reason=reason, ended=now())
        self._write(measured(self._folder, self._sweep, ended, self.result))

    def _write(self, outcome: Outcome) -> None:
        """Write the outcome to the job folder, then to the sweep record, which is repaired from the job folders."""
        with _warns_if_unwritten():
            replace_file(self._folder / OUTCOME_FILE, json.dumps(asdict(outcome), indent=1, allow_nan=False) + "\n")
        with _warns_if_unwritten():
            update_record(self._sweep, [outcome])


@contextmanager
def record_job(
    sweep: Path, folder: Path, job: int, overrides: Sequence[str], task: str | None = None
) -> Iterator[JobRecord]:
    """Record the start and the end of a sweep job.

    Args:
        sweep: the sweep folder.
        folder: the job folder.
        job: the job number.
        overrides: the overrides of the job's point.
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
def _warns_if_unwritten() -> Iterator[None]:
    """Log a warning if the outcome of a job cannot be written, and let the job continue."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        log.warning("the outcome of this job cannot be recorded: %s", reason_of(error))


def _status(error: BaseException | None) -> tuple[str, str | None]:
    """Return the status of a job that ended with `error` (None: without an error), and the reason in one line."""
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
        return FAILED, f"it called sys.exit({error.code!r})"
    return FAILED if isinstance(error, Exception) else INTERRUPTED, reason_of(error)


def write_traceback(folder: Path, error: BaseException) -> None:
    """Write the traceback of a bug to the job folder. For other errors, the reason in the record is enough, unless the
    user asked for tracebacks."""
    file = folder / ERROR_FILE
    if message_of(error) is not None and not wants_traceback():
        file.unlink(missing_ok=True)  # from an earlier attempt
        return
    trace = error.__traceback__
    text = "".join(traceback.format_exception(type(error), error, trace.tb_next if trace else None))  # omits our frame
    replace_file(file, text if message_of(error) is not None else f"{text}{bug_report(error)}\n")


def _cluster_job() -> str | None:
    """Return the SLURM job ID of this process; None if submitit did not submit it to SLURM."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def measured(folder: Path, sweep: Path, outcome: Outcome, result: Any = None) -> Outcome:
    """Return the outcome of a job, completed with the metrics and checkpoints in the job folder and the result of the
    task."""
    rows, saved = read_metrics(folder / METRICS_FILE), saved_checkpoints(folder)
    newest = saved[max(saved)] if saved else None
    value = finite(result)
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
    """Read `metrics.csv` as one dict per row, without empty columns. Damaged and truncated lines are skipped. If the
    file cannot be read, return an empty list."""
    try:
        rows = read_metrics_file(file).rows
    except OSError:
        return []
    return [{name: int(value) if name == "step" else finite(value) for name, value in row.items()} for row in rows]


def finite(value: Any) -> float | None:
    """Convert a value to a float; None if it is not a number, or is infinite or NaN, which JSON cannot represent."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def job_folder(sweep: Path, outcome: Outcome) -> Path:
    """Return the recorded folder of a job, or the default folder if none is recorded."""
    return sweep / (outcome.folder or str(outcome.job))


def running_jobs(sweep: Path, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the jobs that are running or waiting in the SLURM queue."""
    outcomes = [outcome for outcome in outcomes if outcome.status not in (COMPLETED, INVALID)]
    submitted = {one.job: one for one in outcomes if one.cluster_job}
    queued = _queued(submitted) if submitted else set()
    return [one for one in outcomes if one.job in queued or is_held(job_folder(sweep, one))]


def reconciled(sweep: Path, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes, updated from the `outcome.json` files in the job folders. A job that is not running and has
    not recorded its end gets the status lost."""
    found = {one.job: one for file in sweep.glob(f"*/{OUTCOME_FILE}") if (one := _own(file.parent, sweep)) is not None}
    taken = [_newer(one, found.get(one.job) or _own(job_folder(sweep, one), sweep)) for one in outcomes]
    taken += [found[job] for job in sorted(found.keys() - {one.job for one in taken})]
    running = {one.job for one in running_jobs(sweep, [one for one in taken if one.status == RUNNING])}
    stopped = {one.job for one in taken if one.status == INTERRUPTED or one.status == RUNNING} - running
    return [_stopped(sweep, one) if one.job in stopped else one for one in taken]


def _own(folder: Path, sweep: Path) -> Outcome | None:
    """Return the outcome recorded in a job folder, with the path of the folder; None if the outcome is missing or
    damaged."""
    with suppress(OSError, Damaged):
        own = parse_outcome((folder / OUTCOME_FILE).read_bytes())
        return replace(own, folder=os.path.relpath(folder, sweep))
    return None


def _newer(known: Outcome, own: Outcome | None) -> Outcome:
    """Return the more recent of two outcomes of a job: `known` from the sweep record, and `own` from the job folder. A
    launcher only records that the job exited without a result; the job itself may have recorded its end before."""
    if own is None:
        return known
    is_later = (
        (known.status == RUNNING != own.status and own.started == known.started)
        or known.status == WAITING
        or (own.started or "") > (known.started or "")
        or (own.status != RUNNING and (own.ended or "") > (known.ended or ""))
    )
    if not is_later:
        return known
    reason = known.reason if own.status == RUNNING else own.reason
    return replace(own, overrides=known.overrides, cluster_job=own.cluster_job or known.cluster_job, reason=reason)


def _stopped(sweep: Path, outcome: Outcome) -> Outcome:
    """Return the outcome of a job that stopped without recording its end. The launcher may have recorded the reason."""
    if outcome.status == RUNNING:
        outcome = replace(outcome, status=LOST, reason=outcome.reason or LOST_REASON)
    return measured(job_folder(sweep, outcome), sweep, outcome)


def _queued(submitted: Mapping[int, Outcome]) -> set[int]:
    """Return the numbers of the submitted jobs that are running or waiting in SLURM. If squeue does not respond, return
    all submitted jobs; if squeue is not installed, return those whose end is not recorded."""
    seen = states(one.cluster_job for one in submitted.values() if one.cluster_job)
    if seen is not None:
        queue = {job for job, (state, _) in seen.items() if state not in (*ENDED, "COMPLETING")}
        return {job for job, one in submitted.items() if one.cluster_job in queue}
    if shutil.which("squeue") is not None:
        log.warning("squeue does not respond, so submitted jobs are assumed to be running")
        return {*submitted}
    unended = {job for job, one in submitted.items() if one.status in (WAITING, RUNNING)}
    if unended:
        text = "squeue is not installed on this machine, so jobs whose end is not recorded are assumed to be running"
        log.warning("%s. Run this command on a machine with squeue to see which jobs have ended.", text)
    return unended


def job_number(overrides: Sequence[str], counted: int) -> int:
    """Return the number of a job in its sweep: the folder name if the overrides set it to a number, else Hydra's
    count."""
    given = [text.partition("=")[2] for text in overrides if text.startswith(f"{SUBDIR}=")]
    return int(given[-1]) if given and given[-1].isdecimal() else counted


def swept(points: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return, for each point, the overrides that not all points share, as a dict of values by key."""
    return [{key_of(text): text.partition("=")[2] for text in point} for point in differing(points)]


def record_if_job(cfg: DictConfig, process: int) -> AbstractContextManager[Unrecorded]:
    """If a run is a sweep job, record its start and its end. Only process 0 writes the record.

    Args:
        cfg: the config of the run, which may be invalid.
        process: the number of this process.
    """
    config: Any = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN or process > 0:
        return nullcontext(Unrecorded())
    sweep = Path(config.runtime.cwd) / config.sweep.dir
    number = job_number(config.overrides.hydra, config.job.num)
    folder, task = Path(config.runtime.output_dir), OmegaConf.select(cfg, "task.name")
    return record_job(sweep, folder, number, config.overrides.task, task)


def resume_job(run: RunConfig) -> RunConfig:
    """Return the run. A training job of a resumed sweep is changed to restore its newest checkpoint, if there is
    one."""
    config = cast(DictConfig, HydraConfig.get())
    if config.mode != RunMode.MULTIRUN or not OmegaConf.select(config, "sweeper.resume"):
        return run
    if run.task.name != "train" or not saved_steps(Path(config.runtime.output_dir)):
        return run
    return replace(run, checkpoint=replace(run.checkpoint, restore=AUTO))
