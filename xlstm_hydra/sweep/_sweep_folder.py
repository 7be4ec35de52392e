"""The sweep folder: check, create and lock it, and open the record of the sweep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from xlstm_hydra._logging import log
from xlstm_hydra._printable import shell_line
from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import SweepLoader, differing
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import LOCK_FILE as RUN_LOCK
from xlstm_hydra.runs import RunFolder, lock_folder, refuse_links_out, saved_steps

from ._commands import COMMAND_FILE, SUBDIR, append_command
from ._jobs import reconciled, running_jobs
from ._outcomes import (
    COMPLETED,
    RECORD_FILE,
    RECORD_LOCK,
    WAITING,
    Outcome,
    read_record,
    repair_record,
    update_record,
)

SWEEP_LOCK = ".sweeping.lock"
"""File that is locked by the sweeping process."""

_locks: dict[Path, IO[str]] = {}
"""Locks that this process holds from `start_sweep` to `end_sweep`, by sweep folder."""

_undo: dict[Path, ExitStack] = {}
"""Stacks of callbacks that return a sweep folder to its state before `start_sweep`, by sweep folder."""

_NEW_SWEEP = "Start a new sweep in another folder (hydra.sweep.dir=DIR)."

_WRITTEN = (RECORD_FILE, RECORD_LOCK, SWEEP_LOCK, COMMAND_FILE, "multirun.yaml", "study.db")

_SUBDIR_FIX = "Remove it, or choose a name that contains the job number, hydra.job.num."


def check_sweep_folder(folder: Path, resume: bool = False) -> None:
    """Check, before any time-consuming work, that a sweep can start in a folder. The folder is left unchanged.

    Raises:
        ConfigError: the folder already contains a sweep and `resume` is false, another process is sweeping in the
        folder, or it is a run folder.
    """
    folder = folder.absolute()
    refuse_run_folder(folder)
    if not (folder / RECORD_FILE).exists():
        return
    with _sweep_folder(folder).writing():
        refuse_sweep_links(folder)
        _lock_sweep(folder)
    try:
        if not resume:
            raise ConfigError([_recorded_already(folder, reconciled(folder, read_record(folder)))])
    finally:
        end_sweep(folder)


def refuse_run_folder(folder: Path) -> None:
    """Check that a sweep does not start in a run folder.

    Raises:
        ConfigError: the folder is a run folder.
    """
    has_config = (folder / "config.yaml").exists() and (folder / RUN_LOCK).exists()
    if has_config or saved_steps(folder):
        text, fix = "is a run folder", "A sweep needs its own folder: choose another with hydra.sweep.dir=DIR."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def start_sweep(folder: Path, points: Sequence[Sequence[str]], resume: bool = False) -> list[int]:
    """Lock a sweep folder and open its record, in which all jobs to run are waiting.

    Args:
        folder: the sweep folder.
        points: the overrides of each job.
        resume: run the missing and failed jobs of the sweep recorded in the folder.

    Returns:
        The numbers of the jobs to run.

    Raises:
        ConfigError: the folder already contains a sweep and `resume` is false, the recorded sweep has other points, or
        another process is sweeping in the folder.
    """
    folder = folder.absolute()
    with make_sweep_folder(folder) as undo:
        _lock_sweep(folder)
        undo.callback(end_sweep, folder)
        todo = _open(folder, [list(point) for point in points], resume)
        append_command(folder)
        _undo[folder] = undo.pop_all()
    return todo


@contextmanager
def make_sweep_folder(folder: Path) -> Iterator[ExitStack]:
    """Create a sweep folder. If the block fails, the yielded stack of callbacks removes the folder again. The block may
    add callbacks to the stack, or take them over with `pop_all`.

    Raises:
        ConfigError: the folder cannot be created or written, or contains a link that leads out of it.
    """
    sweep = _sweep_folder(folder)
    with ExitStack() as undo, sweep.writing():
        sweep.make(folder, undo)
        refuse_sweep_links(folder)
        yield undo
        undo.pop_all()


def _sweep_folder(folder: Path) -> RunFolder:
    return RunFolder(folder, {"hydra.sweep.dir": str(folder)}, "Choose another folder with hydra.sweep.dir=DIR.")


def undo_start(folder: Path) -> None:
    """Undo `start_sweep` for a new sweep in which no job has started."""
    folder = folder.absolute()
    for name in (RECORD_FILE, COMMAND_FILE, RECORD_LOCK, SWEEP_LOCK):
        (folder / name).unlink(missing_ok=True)
    _undo.pop(folder).close()


def _open(folder: Path, points: list[list[str]], resume: bool) -> list[int]:
    if not (folder / RECORD_FILE).exists():
        update_record(folder, [Outcome(job=job, overrides=point) for job, point in enumerate(points)])
        return list(range(len(points)))
    damaged = repair_record(folder) if resume else 0
    record = read_record(folder)
    refuse_folders_outside(folder, record)
    record = reconciled(folder, record)
    if not resume:
        raise ConfigError([_recorded_already(folder, record)])
    record = _with_lost(record, points, damaged)
    _refuse_other_points(folder, record, points)
    running = {outcome.job for outcome in running_jobs(folder, record)}
    todo = [one.job for one in record if one.status != COMPLETED and one.job not in running]
    for job in sorted(running):
        log.info("job %d is still running and is not started again", job)
    done = sum(one.status == COMPLETED for one in record)
    log.info("resuming the sweep in %s: %d of %d jobs are completed", folder, done, len(record))
    # On resumption, new arguments may change how jobs run, but not their points.
    fresh = [replace(one, status=WAITING, reason=None, cluster_job=None) if one.job in todo else one for one in record]
    update_record(folder, fresh)
    return todo


def _with_lost(record: list[Outcome], points: Sequence[Sequence[str]], damaged: int) -> list[Outcome]:
    """Return the record, extended by the jobs whose lines were damaged. Only the points of these jobs are known, so
    they run again."""
    known = {one.job for one in record}
    lost = [job for job in range(len(points)) if job not in known]
    if len(lost) > damaged:
        return record
    return sorted([*record, *(Outcome(job=job, overrides=[*points[job]]) for job in lost)], key=lambda one: one.job)


def _recorded_already(folder: Path, record: Sequence[Outcome]) -> Problem:
    done = sum(one.status == COMPLETED for one in record)
    text = f"already contains a sweep with {len(record)} jobs, {done} of them completed"
    fix = f"To run the missing and failed jobs: {resume_line(folder)}. For a new sweep, choose another folder."
    return Problem({"hydra.sweep.dir": str(folder)}, text, fix)


def _refuse_other_points(folder: Path, record: Sequence[Outcome], points: Sequence[Sequence[str]]) -> None:
    """Check that job numbers refer to the same points as in the record. Overrides shared by all jobs may differ."""
    before, after = differing([one.overrides for one in record]), differing(points)
    numbers = [one.job for one in record]
    if before == after and numbers == list(range(len(points))):
        return
    changed = [job for job, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
    if changed:
        job = changed[0]
        text = f"its job {job} has the overrides {' '.join(before[job])!r}, but would get {' '.join(after[job])!r}"
    else:
        count = f"{len(before)} jobs with numbers up to {max(numbers)}" if numbers else "no jobs"
        text = f"this sweep has {count}, but would get {len(after)} jobs"
    fix = "A sweep can only be resumed with the same points. For other points, choose another folder."
    raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def resume_line(folder: Path) -> str:
    """Return the command that resumes a sweep."""
    near = os.path.relpath(folder)
    return shell_line(["xlstm-hydra", f"resume_sweep={folder if near.startswith('..') else near}"])


def _lock_sweep(folder: Path) -> None:
    """Prevent other processes from sweeping in a folder.

    Raises:
        ConfigError: another process is sweeping in the folder.
    """
    lock = lock_folder(folder, SWEEP_LOCK, "sweep")
    if lock is None:
        text, fix = "a sweep is already running in this folder", "Wait until it has ended, or choose another folder."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])
    _locks[folder] = lock


def end_sweep(folder: Path) -> None:
    """Unlock a sweep folder, and keep its contents."""
    _undo.pop(folder, None)
    if lock := _locks.pop(folder, None):
        lock.close()


def refuse_sweep_links(folder: Path, key: str = "hydra.sweep.dir") -> None:
    """Check that no link in a sweep folder leads out of the folder. The whole folder is checked only if it contains a
    recorded sweep, because a new sweep may start in a folder with other files.

    Raises:
        ConfigError: a link leads out of the folder. The error names the first such link.
    """
    numbered = [item for item in folder.iterdir() if item.name.isdigit()] if folder.is_dir() else []
    is_recorded = os.path.lexists(folder / RECORD_FILE)
    paths = [folder] if is_recorded else [*(folder / name for name in _WRITTEN), *numbered]
    refuse_links_out(folder, paths, {key: str(folder)}, f"Remove it. {_NEW_SWEEP}")


def refuse_folders_outside(folder: Path, record: Iterable[Outcome], key: str = "hydra.sweep.dir") -> None:
    """Check that the recorded job folders are inside the sweep folder.

    Raises:
        ConfigError: a job folder is outside. The error names the first such job.
    """
    inside = os.path.realpath(folder)
    for one in record:
        path = os.path.realpath(os.path.join(inside, one.folder or str(one.job)))
        if os.path.commonpath([inside, path]) != inside:
            text = f"the recorded folder of job {one.job} is {one.folder!r}, which is outside the sweep folder"
            raise ConfigError([Problem({key: str(folder)}, text, _NEW_SWEEP)])


def check_job_folder(config: DictConfig, loader: SweepLoader, overrides: Sequence[str], job: int) -> None:
    """Check that a job folder can be created. The folder is removed again.

    Args:
        config: the config of the sweep.
        loader: composes the config of the job.
        overrides: the overrides of the job.
        job: the job number.

    Raises:
        ConfigError: the name of the folder cannot be resolved, or the folder cannot be created.
    """
    cfg = loader.load_sweep_config(config, list(overrides))
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num, cfg.hydra.job.id = job, str(job)
    raw: Any = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    given = {SUBDIR: raw["subdir"]}
    is_here = cfg.hydra.launcher._target_.endswith(".BasicLauncher")
    if "oc.env" in str(raw["subdir"]) and not is_here:
        return  # the environment variable may be set only in the job's process
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        path = Path(str(cfg.hydra.sweep.dir), str(cfg.hydra.sweep.subdir)).absolute()
    except OmegaConfBaseException as error:
        raise ConfigError([Problem.about(f"{SUBDIR}={raw['subdir']}", first_line(error), _SUBDIR_FIX)]) from None
    finally:
        HydraConfig.instance().cfg = before
    folder = RunFolder(path, given, _SUBDIR_FIX)
    with ExitStack() as undo:
        with make_sweep_folder(Path(cfg.hydra.sweep.dir).absolute()) as made:  # raises its own error
            undo.push(made.pop_all())
        with folder.writing():
            folder.make(path, undo)
