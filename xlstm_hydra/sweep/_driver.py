"""What the process that sweeps does around the jobs: the record at the beginning, the results at the end."""

from __future__ import annotations

import fcntl
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from xlstm_hydra._printable import shell_line
from xlstm_hydra.errors import reason, text_of
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import LOCK_FILE as RUN_LOCK
from xlstm_hydra.runs import RunFolder, open_lock, saved_steps

from ._alive import alive, job_folder, mended
from ._command import COMMAND_FILE, keep_command
from ._inside import refuse_folders_outside, refuse_sweep_links
from ._job import keep_traceback
from ._outcome import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    INVALID,
    LOCK_FILE,
    LOST,
    PREEMPTED,
    RECORD_FILE,
    REFUSED,
    RUNNING,
    WAITING,
    Outcome,
    amend_record,
    log,
    now,
    read_record,
    remove_leftovers,
    repair_record,
    update_record,
)
from ._point_labels import differing

DRIVER_LOCK = ".sweeping.lock"
"""Held by the process that sweeps."""

DOES_NOT_FIT = 3
"""Exit status of plans of which none fits its devices."""


_locks: dict[Path, IO[str]] = {}
"""Held by this process from `begin` to `finish`, by the folder of the sweep."""

_undo: dict[Path, ExitStack] = {}
"""What leaves the folder of a sweep as it was before `begin`, by the folder."""


def check_folder(folder: Path, resume: bool = False) -> None:
    """Make sure that a sweep can begin in a folder, before that takes time. Nothing is left there.

    Raises:
        ConfigError: another sweep is recorded there, and not to be gone on with, or another process is at work there,
            or it is the folder of a run.
    """
    folder = folder.absolute()
    refuse_run_folder(folder)
    if not (folder / RECORD_FILE).exists():
        return
    with _sweep_folder(folder).writing():
        refuse_sweep_links(folder)
        _drive(folder)
    try:
        if not resume:
            raise ConfigError([_recorded_already(folder, mended(folder, read_record(folder)))])
    finally:
        _leave(folder)


def refuse_run_folder(folder: Path) -> None:
    """Make sure that a sweep does not begin in the folder of a run.

    Raises:
        ConfigError: it would.
    """
    has_config = (folder / "config.yaml").exists() and (folder / RUN_LOCK).exists()
    if has_config or saved_steps(folder):
        text, fix = "is the folder of a run", "A sweep needs its own folder: choose another with hydra.sweep.dir=DIR."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def begin(folder: Path, points: Sequence[Sequence[str]], resume: bool = False) -> list[int]:
    """Open the record of a sweep: all its jobs wait.

    Args:
        folder: that of the sweep.
        points: the overrides of each job.
        resume: go on with a sweep that is recorded there, with what is missing or failed.

    Returns:
        The numbers of the jobs to run.

    Raises:
        ConfigError: the folder has a record already, or one of other points, or another process is at work there.
    """
    folder = folder.absolute()
    with make_sweep_folder(folder) as undo:
        _drive(folder)
        undo.callback(_leave, folder)
        todo = _open(folder, [list(point) for point in points], resume)
        keep_command(folder)
        _undo[folder] = undo.pop_all()
    return todo


@contextmanager
def make_sweep_folder(folder: Path) -> Iterator[ExitStack]:
    """Make the folder of a sweep. What is done inside can add to what is undone if it fails, or keep that for later.

    Raises:
        ConfigError: the folder cannot be made or written, or a link leads out of it.
    """
    place = _sweep_folder(folder)
    with ExitStack() as undo, place.writing():
        place.make(folder, undo)
        refuse_sweep_links(folder)
        yield undo
        undo.pop_all()


def _sweep_folder(folder: Path) -> RunFolder:
    return RunFolder(folder, {"hydra.sweep.dir": str(folder)}, "Choose another folder with hydra.sweep.dir=DIR.")


def withdraw(folder: Path) -> None:
    """Take back what `begin` has left in the folder of a new sweep of which no job was started."""
    folder = folder.absolute()
    for name in (RECORD_FILE, COMMAND_FILE, LOCK_FILE, DRIVER_LOCK):
        (folder / name).unlink(missing_ok=True)
    _undo.pop(folder).close()


def _open(folder: Path, points: list[list[str]], resume: bool) -> list[int]:
    if not (folder / RECORD_FILE).exists():
        update_record(folder, [Outcome(job=job, overrides=point) for job, point in enumerate(points)])
        return list(range(len(points)))
    damaged = repair_record(folder) if resume else 0
    record = read_record(folder)
    refuse_folders_outside(folder, record)
    record = mended(folder, record)
    if not resume:
        raise ConfigError([_recorded_already(folder, record)])
    record = _with_lost(record, points, damaged)
    _refuse_other_points(folder, record, points)
    running = {outcome.job for outcome in alive(folder, record)}
    todo = [one.job for one in record if one.status != COMPLETED and one.job not in running]
    for job in sorted(running):
        log.info("job %d still runs, and is not started again", job)
    done = sum(one.status == COMPLETED for one in record)
    log.info("going on with the sweep in %s: %d of %d jobs are completed", folder, done, len(record))
    # What is typed anew says how jobs run, and does not make another point of one.
    fresh = [replace(one, status=WAITING, reason=None, cluster_job=None) if one.job in todo else one for one in record]
    update_record(folder, fresh)
    return todo


def _with_lost(record: list[Outcome], points: Sequence[Sequence[str]], damaged: int) -> list[Outcome]:
    """The record with the jobs whose lines were damaged, and of which nothing is known but their points: they run."""
    known = {one.job for one in record}
    lost = [job for job in range(len(points)) if job not in known]
    if len(lost) > damaged:
        return record
    return sorted([*record, *(Outcome(job=job, overrides=[*points[job]]) for job in lost)], key=lambda one: one.job)


def _recorded_already(folder: Path, record: Sequence[Outcome]) -> Problem:
    done = sum(one.status == COMPLETED for one in record)
    text = f"a sweep is recorded there already, with {len(record)} jobs, {done} of them completed"
    fix = f"{resume_line(folder)} goes on with what is missing or failed; for another sweep, choose another folder."
    return Problem({"hydra.sweep.dir": str(folder)}, text, fix)


def _refuse_other_points(folder: Path, record: Sequence[Outcome], points: Sequence[Sequence[str]]) -> None:
    """The numbers of jobs mean the same points as before. What all jobs have may be another."""
    before, after = differing([one.overrides for one in record]), differing(points)
    numbers = [one.job for one in record]
    if before == after and numbers == list(range(len(points))):
        return
    changed = [job for job, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
    if changed:
        job = changed[0]
        text = f"its job {job} is {' '.join(before[job])!r}, and would be {' '.join(after[job])!r}"
    else:
        count = f"{len(before)} jobs, of which the last is job {max(numbers)}" if numbers else "no jobs"
        text = f"it has {count}, and would have {len(after)}"
    fix = "A sweep goes on with the points that it began with; for others, choose another folder."
    raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def resume_line(folder: Path) -> str:
    """What is typed to go on with a sweep."""
    near = os.path.relpath(folder)
    place = str(folder) if near.startswith("..") else near
    return shell_line(["xlstm-hydra", f"resume_sweep={place}"])


# ---- the process that sweeps


def _drive(folder: Path) -> None:
    """Let no other process sweep in the folder."""
    lock = open_lock(folder / DRIVER_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        text, fix = "another process is sweeping in this folder", "Wait until it has ended, or choose another folder."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)]) from None
    except OSError as error:
        log.warning("%s: no lock, so a second sweep there would not be noticed (%s)", folder, error.strerror)
    _locks[folder] = lock


def _leave(folder: Path) -> None:
    if folder in _locks:
        _locks.pop(folder).close()


# ---- the end


def note_unrecorded(folder: Path, errors: Mapping[int, BaseException | None]) -> None:
    """Record jobs that failed before they could do so themselves, such as in a process that does not find this package.

    Args:
        folder: that of the sweep.
        errors: by the number of the job; None: it did not fail.
    """
    waiting = {one.job: one for one in read_record(folder) if one.status == WAITING}
    changes: dict[int, dict[str, Any]] = {}
    for job, error in errors.items():
        if error is not None and job in waiting:
            own = job_folder(folder, waiting[job])
            own.mkdir(parents=True, exist_ok=True)
            keep_traceback(own, error)
            changes[job] = {"status": FAILED, "reason": reason(error), "started": now(), "ended": now()}
    if changes:
        amend_record(folder, changes)


def finish(folder: Path, error: BaseException | None = None) -> int:
    """Mend the record of a sweep, tell its results, and draw them.

    Args:
        folder: that of the sweep.
        error: what ended the launching of jobs early.

    Returns:
        The exit status: 0 all completed, 1 some failed, were lost or interrupted, or still run, or the record cannot be
        written, 2 some were refused or all are invalid, 3 plans of which none fits, 75 the others were preempted, 130
        the sweep was interrupted.
    """
    folder = folder.absolute()
    try:
        unwritten = _mend(folder)
        record = mended(folder, read_record(folder))
        still = [one for one in alive(folder, record) if one.status in (WAITING, RUNNING, PREEMPTED)]
        fits = _tell(folder, record, still, error)
        status = _status(record, fits, error)
        if unwritten is not None:
            print(f"xlstm-hydra: {folder / RECORD_FILE} cannot be written: {unwritten.strerror}", file=sys.stderr)
        return status if unwritten is None else status or 1
    finally:
        _undo.pop(folder, None)
        _leave(folder)


def _mend(folder: Path) -> OSError | None:
    """Write what has become of all jobs into the record. Returns why it cannot be written, such as on a full disk."""
    try:
        remove_leftovers(folder)
        repair_record(folder)
        update_record(folder, mended(folder, read_record(folder)))
    except OSError as error:
        return error
    return None


def _tell(folder: Path, record: Sequence[Outcome], still: Sequence[Outcome], error: BaseException | None) -> bool:
    """Print what there is to say. Returns whether one of the plans fits, if there are any."""
    from ._results import tell_plans, tell_results  # rich and matplotlib wake up here

    fits = tell_plans(folder, [one for one in record if one.task == "plan"])
    others = [one for one in record if one.task != "plan"]
    if others:
        tell_results(folder, others, draw=error is None)
    if isinstance(error, Exception):
        print(text_of(error, "xlstm-hydra: the sweep has ended early"), file=sys.stderr)
    elif error is not None:
        print("xlstm-hydra: the sweep was interrupted", file=sys.stderr)
    _tell_running(still)
    counts = Counter(one.status for one in record)
    if counts.keys() - {COMPLETED, INVALID} and (folder / COMMAND_FILE).exists():
        print(f"{resume_line(folder)} runs what is missing or failed", file=sys.stderr)
    return fits


def _tell_running(still: Sequence[Outcome]) -> None:
    """What goes on without the process that sweeps, and how to stop it."""
    if not still:
        return
    numbers = ", ".join(str(one.job) for one in still)
    print(f"still running or queued: job {numbers}" if len(still) == 1 else f"still running or queued: jobs {numbers}")
    if clustered := [one.cluster_job for one in still if one.cluster_job]:
        print(f"to stop what is on the cluster: scancel {' '.join(clustered)}")


def _status(record: Sequence[Outcome], fits: bool, error: BaseException | None) -> int:
    """The exit status: that of the signal which has ended the sweep itself, else that of the worst job. A job that can
    go on by itself (preempted) hides none that cannot."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and error.code == STATUS:
        return STATUS
    if not record:  # none of its lines could be read
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
