"""The results of a sweep as a table and as CSV, with the tracebacks of the jobs that failed."""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from xlstm_hydra._printable import printable
from xlstm_hydra._table import table
from xlstm_hydra.runs import METRICS_FILE, open_new, read_metrics_file

from ._alive import job_folder
from ._job import ERROR_FILE
from ._outcome import COMPLETED, FAILED, STATUSES, WAITING, Outcome
from ._point_labels import differing, swept
from ._programs import tell_programs

MOST_ROWS = 40
"""Rows of the table. The CSV has all."""

MOST_TRACEBACKS = 5
"""Errors that are told whole."""

MOST_LINES = 500
"""Lines of a traceback that are printed."""

FLUSH_LEFT = ("overrides", "status", "checkpoint")
"""Columns of the table with words in them."""


def tell_plans(folder: Path, plans: Sequence[Outcome]) -> bool:
    """Compare the plans of a sweep. Returns whether one of them fits; where there are none, True."""
    if not plans:
        return True
    from ._plan_table import Job, compare_plans  # JAX wakes up there

    return compare_plans(
        [Job(one.job, one.overrides, job_folder(folder, one), one.reason or one.status) for one in plans], folder
    )


def tell_results(folder: Path, record: Sequence[Outcome], draw: bool) -> None:
    """Print the results of a sweep, and leave them in its folder as CSV and, where `draw`, as a picture."""
    own = dict(zip((one.job for one in record), differing([one.overrides for one in record]), strict=True))
    print("", *_table(record, own), sep="\n", flush=True)
    for line in (*_unfinished(folder, record, own), *_damaged_metrics(folder, record)):
        print(printable(line), file=sys.stderr)
    if programs := tell_programs(job_folder(folder, one) for one in record):
        print(programs)
    try:
        write_csv(record, folder / "sweep.csv")
    except OSError as error:
        print(printable(f"{folder / 'sweep.csv'} cannot be written: {error.strerror}"), file=sys.stderr)
        return
    written = ["sweep.jsonl", "sweep.csv", *(_picture(folder, record) if draw else [])]
    print(f"written: {', '.join(written)} in {printable(str(folder))}")


def _picture(folder: Path, record: Sequence[Outcome]) -> list[str]:
    """Draw it. The table stands without."""
    from ._picture import draw

    try:
        return draw(folder, best_first(record))
    except Exception as error:
        print(printable(f"no picture: {type(error).__name__}: {error}"), file=sys.stderr)
        return []


def best_first(record: Sequence[Outcome]) -> list[Outcome]:
    """Completed jobs from the best on, then the others by their number."""
    return sorted(record, key=lambda one: (one.status != COMPLETED, _rank(one), one.job))


def _rank(one: Outcome) -> float:
    """What is shown, so that jobs which look equal stand in their order."""
    return math.inf if one.best is None or one.status != COMPLETED else float(_shown(one.best))


def _shown(best: float) -> str:
    return f"{best:.4f}" if abs(best) >= 1e-3 else f"{best:.3g}"


# ---- the table


def _table(record: Sequence[Outcome], own: dict[int, list[str]]) -> Iterator[str]:
    counts = Counter(one.status for one in record)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    yield f"{len(record)} {'jobs' if len(record) > 1 else 'job'}: {told}"
    metrics = {one.metric for one in record if one.metric}
    rows = [_cells(one, " ".join(own[one.job]), len(metrics) > 1) for one in best_first(record)]
    head = {"best": " ".join(["best", *metrics]) if len(metrics) == 1 else "best"}
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [[head.get(name, name) for name in names], *([row[name] for name in names] for row in rows[:MOST_ROWS])]
    yield from table(lines, left=[number for number, name in enumerate(names) if name in FLUSH_LEFT])
    if len(rows) > MOST_ROWS:
        yield f"and {len(rows) - MOST_ROWS} more in sweep.csv"


def _cells(one: Outcome, overrides: str, with_metric: bool) -> dict[str, str]:
    """A row, by the names of its columns. A column that no job fills is left out."""
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
    """`1:02:03`, `2:03`."""
    if one.started is None or one.ended is None:
        return ""
    taken = round((datetime.fromisoformat(one.ended) - datetime.fromisoformat(one.started)).total_seconds())
    hours, minutes, seconds = taken // 3600, taken // 60 % 60, taken % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def write_csv(record: Sequence[Outcome], file: Path) -> None:
    """One row for each job, with a column for each key that they differ in."""
    values = swept([one.overrides for one in record])
    keys = list(dict.fromkeys(key for point in values for key in point))
    names = ["status", "metric", "best", "best_step", "steps", "tokens_per_second", "started", "ended", "checkpoint"]
    names += ["folder", "reason"]
    with open_new(file, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["job", *keys, *names])
        for one, point in zip(record, values, strict=True):
            writer.writerow([one.job, *(point.get(key) for key in keys), *(getattr(one, name) for name in names)])


# ---- what did not get through


def _unfinished(folder: Path, record: Sequence[Outcome], own: dict[int, list[str]]) -> Iterator[str]:
    """Why each job is not completed; equal reasons once, with their jobs. Tracebacks come whole."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in record:
        if one.status not in (COMPLETED, WAITING):
            groups.setdefault((one.status, one.reason or ""), []).append(one)
    told = 0
    for (status, reason), jobs in groups.items():
        first = jobs[0]
        yield f"xlstm-hydra: {_label(jobs, own)}: {status}{f': {reason}' if reason else ''}"
        if last := _last(first):
            yield f"  {'its' if len(jobs) == 1 else f'of job {first.job} the'} last metrics: {last}"
        error = job_folder(folder, first) / ERROR_FILE
        if status == FAILED and error.exists() and told < MOST_TRACEBACKS:
            told += 1
            yield from (
                f"  {line}" for line in error.read_text(encoding="utf-8", errors="replace").split("\n")[:MOST_LINES]
            )
        elif status == FAILED and error.exists():
            yield f"  its traceback is in {error}"


def _damaged_metrics(folder: Path, record: Sequence[Outcome]) -> Iterator[str]:
    """The lines of the jobs' metrics that were left out."""
    for one in record:
        file = job_folder(folder, one) / METRICS_FILE
        try:
            reports = read_metrics_file(file).reports()
        except OSError as error:
            reports = [f"cannot be read: {error.strerror}"]
        yield from (f"xlstm-hydra: {file}, {text}; it is left out" for text in reports)


def _label(jobs: Sequence[Outcome], own: dict[int, list[str]]) -> str:
    numbers = [str(one.job) for one in jobs]
    if len(jobs) == 1:
        return f"job {numbers[0]}{f' ({shlex.join(own[jobs[0].job])})' if own[jobs[0].job] else ''}"
    few = numbers if len(numbers) <= 12 else [*numbers[:10], "..."]
    return f"{len(jobs)} jobs ({', '.join(few)})"


def _last(one: Outcome) -> str:
    shown = {name: value for name, value in one.metrics.items() if value is not None and name != "lr"}
    return ", ".join(
        f"{name} {value:,.0f}" if name in ("step", "tokens_per_second") else f"{name} {value:.4g}"
        for name, value in shown.items()
    )
