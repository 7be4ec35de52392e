"""The end of a sweep: print the results as a table, write them as CSV, print job errors, and return the exit status."""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from xlstm_hydra._printable import printable
from xlstm_hydra.errors import text_of
from xlstm_hydra.hydra import differing
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import METRICS_FILE, open_new, read_metrics_file

from ._commands import COMMAND_FILE
from ._jobs import ERROR_FILE, job_folder, reconciled, running_jobs, swept
from ._outcomes import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    INVALID,
    LOST,
    PREEMPTED,
    RECORD_FILE,
    REFUSED,
    RUNNING,
    STATUSES,
    WAITING,
    Damaged,
    Outcome,
    read_object,
    read_record,
    repair_record,
    update_record,
)
from ._sweep_folder import end_sweep, resume_line

DOES_NOT_FIT = 3
"""Exit status if no plan fits its devices."""

MAX_ROWS = 40
"""Maximum number of rows in the table. The CSV file contains all rows."""

MAX_TRACEBACKS = 5
"""Maximum number of printed tracebacks."""

MAX_LINES = 500
"""Maximum number of printed lines of a traceback."""

FLUSH_LEFT = ("overrides", "status", "checkpoint")
"""Left-aligned columns of the table."""


def finish_sweep(folder: Path, error: BaseException | None = None) -> int:
    """Complete the record of a sweep from the job folders, print the results, and plot them.

    Args:
        folder: the sweep folder.
        error: the exception that stopped the launching of jobs.

    Returns:
        The exit status: 0 if all jobs are completed; 1 if a job failed, was lost or interrupted, or is still running,
        or if the record cannot be written; 2 if a job was refused or all points are invalid; 3 if no plan fits; 75 if
        the jobs that are not completed were preempted; 130 if the sweep was interrupted.
    """
    folder = folder.absolute()
    try:
        unwritten = _complete_record(folder)
        record = reconciled(folder, read_record(folder))
        still = [one for one in running_jobs(folder, record) if one.status in (WAITING, RUNNING, PREEMPTED)]
        fits = _print_end(folder, record, still, error)
        status = _status(record, fits, error)
        if unwritten is not None:
            print(f"xlstm-hydra: {folder / RECORD_FILE} cannot be written: {unwritten.strerror}", file=sys.stderr)
        return status if unwritten is None else status or 1
    finally:
        end_sweep(folder)


def _complete_record(folder: Path) -> OSError | None:
    """Write the outcomes of all jobs to the record. Return the error if the record cannot be written, as on a full
    disk."""
    try:
        repair_record(folder)
        update_record(folder, reconciled(folder, read_record(folder)))
    except OSError as error:
        return error
    return None


def _print_end(folder: Path, record: Sequence[Outcome], still: Sequence[Outcome], error: BaseException | None) -> bool:
    """Print the results, the errors, and the command that resumes the sweep. Return True if a plan fits, or if there
    are no plans."""
    plans, others = [one for one in record if one.task == "plan"], [one for one in record if one.task != "plan"]
    fits = True
    if plans:
        from ._plans import compare_plans

        fits = compare_plans(folder, plans)
    if others:
        _print_results(folder, others, draw=error is None)
    if isinstance(error, Exception):
        print(text_of(error, "xlstm-hydra: the sweep ended early"), file=sys.stderr)
    elif error is not None:
        print("xlstm-hydra: the sweep was interrupted", file=sys.stderr)
    _print_running(still)
    counts = Counter(one.status for one in record)
    if counts.keys() - {COMPLETED, INVALID} and (folder / COMMAND_FILE).exists():
        print(f"to run the missing and failed jobs: {resume_line(folder)}", file=sys.stderr)
    return fits


def _print_running(still: Sequence[Outcome]) -> None:
    """Print the jobs that are still running or queued, and the command that cancels them."""
    if not still:
        return
    numbers = ", ".join(str(one.job) for one in still)
    print(f"still running or queued: job {numbers}" if len(still) == 1 else f"still running or queued: jobs {numbers}")
    if clustered := [one.cluster_job for one in still if one.cluster_job]:
        print(f"to cancel the SLURM jobs: scancel {' '.join(clustered)}")


def _status(record: Sequence[Outcome], fits: bool, error: BaseException | None) -> int:
    """Return the exit status of the sweep: that of the signal that stopped the sweeping process, else that of the worst
    job. A failed job takes precedence over a preempted job, which can be resumed."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and error.code == STATUS:
        return STATUS
    if not record:  # no line could be read
        return 1
    counts = Counter(one.status for one in record if not (one.task == "plan" and one.status == REFUSED))
    is_crash = isinstance(error, Exception) and not isinstance(error, ConfigError)
    if is_crash or counts[FAILED] or counts[LOST]:
        return 1
    if counts[REFUSED] or isinstance(error, ConfigError) or counts[INVALID] == len(record):
        return 2
    if counts[PREEMPTED] and not counts[INTERRUPTED]:
        return STATUS
    if counts[COMPLETED] + counts[INVALID] < counts.total():
        return 1
    return 0 if fits else DOES_NOT_FIT


def _print_results(folder: Path, record: Sequence[Outcome], draw: bool) -> None:
    """Print the results of a sweep, and write them to the sweep folder as CSV and, if `draw`, as a plot."""
    own = dict(zip((one.job for one in record), differing([one.overrides for one in record]), strict=True))
    print("", *_table(record, own), sep="\n", flush=True)
    for line in (*_unfinished(folder, record, own), *_damaged_metrics(folder, record)):
        print(printable(line), file=sys.stderr)
    if programs := _programs_line(job_folder(folder, one) for one in record):
        print(programs)
    try:
        write_csv(record, folder / "sweep.csv")
    except OSError as error:
        print(printable(f"{folder / 'sweep.csv'} cannot be written: {error.strerror}"), file=sys.stderr)
        return
    written = ["sweep.jsonl", "sweep.csv", *(_picture(folder, record) if draw else [])]
    print(f"written: {', '.join(written)} in {printable(str(folder))}")


def _picture(folder: Path, record: Sequence[Outcome]) -> list[str]:
    """Plot the results. Return the file names; if plotting fails, print the error and return no names."""
    from ._plots import plot_results

    try:
        return plot_results(folder, best_first(record))
    except Exception as error:
        print(printable(f"no plot: {type(error).__name__}: {error}"), file=sys.stderr)
        return []


def best_first(record: Sequence[Outcome]) -> list[Outcome]:
    """Sort completed jobs from best to worst, followed by the other jobs in order of their numbers."""
    return sorted(record, key=lambda one: (one.status != COMPLETED, _rank(one), one.job))


def _rank(one: Outcome) -> float:
    """Return the sort key of a job: its best value rounded as printed, so that jobs with equal printed values keep
    their order."""
    return math.inf if one.best is None or one.status != COMPLETED else float(_shown(one.best))


def _shown(best: float) -> str:
    return f"{best:.4f}" if abs(best) >= 1e-3 else f"{best:.3g}"


# ---- the table


def _table(record: Sequence[Outcome], own: dict[int, list[str]]) -> Iterator[str]:
    from xlstm_hydra._table import fitting, table  # loads rich

    counts = Counter(one.status for one in record)
    given = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    metrics = {one.metric for one in record if one.metric}
    best = f" (best: lowest {next(iter(metrics))})" if len(metrics) == 1 else ""
    yield printable(f"{len(record)} {'jobs' if len(record) > 1 else 'job'}: {given}{best}")
    rows = [_cells(one, " ".join(own[one.job]), len(metrics) > 1) for one in best_first(record)]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [names, *([row[name] for name in names] for row in rows[:MAX_ROWS])]
    yield from table(fitting(lines), left=[number for number, name in enumerate(names) if name in FLUSH_LEFT])
    if len(rows) > MAX_ROWS:
        yield f"and {len(rows) - MAX_ROWS} more in sweep.csv"


def _cells(one: Outcome, overrides: str, with_metric: bool) -> dict[str, str]:
    """Return the cells of a row by column name. The caller omits columns that are empty for all jobs."""
    best = "" if one.best is None else _shown(one.best)
    return {
        "job": str(one.job),
        "overrides": overrides,
        "status": one.status,
        "best": f"{one.metric} {best}" if with_metric and best else best,
        "at step": "" if one.best_step is None else str(one.best_step),
        "steps": "" if one.steps is None else str(one.steps),
        "tokens/s": "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
        "time": _duration(one),
        "checkpoint": one.checkpoint or "",
    }


def _duration(one: Outcome) -> str:
    """Return the duration of a job, such as `1:02:03` or `2:03`; empty if unknown."""
    if one.started is None or one.ended is None:
        return ""
    taken = round((datetime.fromisoformat(one.ended) - datetime.fromisoformat(one.started)).total_seconds())
    hours, minutes, seconds = taken // 3600, taken // 60 % 60, taken % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def write_csv(record: Sequence[Outcome], file: Path) -> None:
    """Write one row per job, with a column for each key in which jobs differ."""
    values = swept([one.overrides for one in record])
    keys = list(dict.fromkeys(key for point in values for key in point))
    names = ["status", "metric", "best", "best_step", "steps", "tokens_per_second", "started", "ended", "checkpoint"]
    names += ["folder", "reason"]
    with open_new(file, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["job", *keys, *names])
        for one, point in zip(record, values, strict=True):
            writer.writerow([one.job, *(point.get(key) for key in keys), *(getattr(one, name) for name in names)])


# ---- jobs that are not completed


def _unfinished(folder: Path, record: Sequence[Outcome], own: dict[int, list[str]]) -> Iterator[str]:
    """Yield the lines to print for jobs that are not completed: each reason once with the numbers of its jobs, the last
    metrics, and the traceback."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in record:
        if one.status not in (COMPLETED, WAITING):
            groups.setdefault((one.status, one.reason or ""), []).append(one)
    printed = 0
    for (status, reason), jobs in groups.items():
        first = jobs[0]
        yield f"xlstm-hydra: {_label(jobs, own)}: {status}{f': {reason}' if reason else ''}"
        if last := _last(first):
            yield f"  last metrics{'' if len(jobs) == 1 else f' of job {first.job}'}: {last}"
        error = job_folder(folder, first) / ERROR_FILE
        if status == FAILED and error.exists() and printed < MAX_TRACEBACKS:
            printed += 1
            yield from (
                f"  {line}" for line in error.read_text(encoding="utf-8", errors="replace").split("\n")[:MAX_LINES]
            )
        elif status == FAILED and error.exists():
            yield f"  traceback: {error}"


def _damaged_metrics(folder: Path, record: Sequence[Outcome]) -> Iterator[str]:
    """Yield a message for each damaged line in the metrics files of the jobs."""
    for one in record:
        file = job_folder(folder, one) / METRICS_FILE
        try:
            reports = read_metrics_file(file).reports()
        except OSError as error:
            reports = [f"cannot be read: {error.strerror}"]
        yield from (f"xlstm-hydra: {file}, {text}; skipped" for text in reports)


def _label(jobs: Sequence[Outcome], own: dict[int, list[str]]) -> str:
    numbers = [str(one.job) for one in jobs]
    if len(jobs) == 1:
        return f"job {numbers[0]}{f' ({shlex.join(own[jobs[0].job])})' if own[jobs[0].job] else ''}"
    return f"jobs {', '.join(numbers)}" if len(numbers) <= 12 else f"{len(jobs)} jobs ({', '.join(numbers[:10])}, ...)"


def _last(one: Outcome) -> str:
    shown = {name: value for name, value in one.metrics.items() if value is not None and name != "lr"}
    return ", ".join(
        f"{name} {value:,.0f}" if name in ("step", "tokens_per_second") else f"{name} {value:.4g}"
        for name, value in shown.items()
    )


def _programs_line(folders: Iterable[Path]) -> str | None:
    """Return a summary of the compiled programs of all jobs; None if no training run has ended.

    Args:
        folders: the job folders.
    """
    found = [measured for folder in folders if (measured := _measured(folder / "plan.json"))]
    if not found:
        return None
    total, cached = (sum(each[name] for each in found) for name in ("programs", "programs_from_cache"))
    seconds, reused = sum(each["compile_seconds"] for each in found), sum(not each["programs"] for each in found)
    text = f"compiled: {total - cached} of {total} programs, {seconds:.1f} s in total"
    if cached:
        text += f"; {cached} came from the cache ({100 * cached / total:.0f}%)"
    return f"{text}; {reused} {'jobs' if reused > 1 else 'job'} reused programs of an earlier job" if reused else text


def _measured(file: Path) -> Mapping[str, Any] | None:
    """Return the measurements in a run's `plan.json`; None if the run has not ended or an earlier version wrote the
    file."""
    try:
        measured = read_object(file.read_bytes(), "a plan").get("measured")
    except (OSError, Damaged):
        return None
    names = ("programs", "programs_from_cache", "compile_seconds")
    is_whole = isinstance(measured, dict) and all(type(measured.get(name)) in (int, float) for name in names)
    return measured if is_whole else None
