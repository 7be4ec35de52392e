"""The folder of a sweep: check, create and lock it, and open its record."""

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
"""Locked by the sweeping process."""

_locks: dict[Path, IO[str]] = {}
"""Locks that this process holds from `start_sweep` to `end_sweep`, by the folder of the sweep."""

_undo: dict[Path, ExitStack] = {}
"""Restores the folder of a sweep to its state before `start_sweep`, by the folder."""

_NEW_SWEEP = "Start a new sweep in another folder (hydra.sweep.dir=DIR)."

_WRITTEN = (RECORD_FILE, RECORD_LOCK, SWEEP_LOCK, COMMAND_FILE, "multirun.yaml", "study.db")

_SUBDIR_FIX = "Remove it, or choose a name that contains the job number, hydra.job.num."


def check_sweep_folder(folder: Path, resume: bool = False) -> None:
    """Make sure that a sweep can start in a folder, before any longer work. The folder is left unchanged.

    Raises:
        ConfigError: another sweep is recorded there and `resume` is false, another process is sweeping there, or it is
        the folder of a run.
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
    """Make sure that a sweep does not start in the folder of a run.

    Raises:
        ConfigError: it would.
    """
    has_config = (folder / "config.yaml").exists() and (folder / RUN_LOCK).exists()
    if has_config or saved_steps(folder):
        text, fix = "is the folder of a run", "A sweep needs its own folder: choose another with hydra.sweep.dir=DIR."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def start_sweep(folder: Path, points: Sequence[Sequence[str]], resume: bool = False) -> list[int]:
    """Open the record of a sweep, with all jobs waiting.

    Args:
        folder: the folder of the sweep.
        points: the overrides of each job.
        resume: run the missing and failed jobs of the sweep that is recorded there.

    Returns:
        The numbers of the jobs to run.

    Raises:
        ConfigError: the folder already has a record, or one with other points, or another process is sweeping there.
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
    """Create the folder of a sweep. The stack undoes that if the block fails; the block may add to it, or take it over.

    Raises:
        ConfigError: the folder cannot be created or written, or a link leads out of it.
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
    """Undo `start_sweep` for a new sweep in which no job was started."""
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
    # Arguments that are typed again affect how jobs run, but not their points.
    fresh = [replace(one, status=WAITING, reason=None, cluster_job=None) if one.job in todo else one for one in record]
    update_record(folder, fresh)
    return todo


def _with_lost(record: list[Outcome], points: Sequence[Sequence[str]], damaged: int) -> list[Outcome]:
    """Add the jobs whose lines were damaged to the record. Only their points are known, so they run again."""
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
    """Make sure that job numbers refer to the same points as before. Overrides that all jobs share may differ."""
    before, after = differing([one.overrides for one in record]), differing(points)
    numbers = [one.job for one in record]
    if before == after and numbers == list(range(len(points))):
        return
    changed = [job for job, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]]
    if changed:
        job = changed[0]
        text = f"its job {job} is {' '.join(before[job])!r}, but would become {' '.join(after[job])!r}"
    else:
        count = f"{len(before)} jobs with numbers up to {max(numbers)}" if numbers else "no jobs"
        text = f"it has {count}, but would get {len(after)} jobs"
    fix = "A sweep can only be resumed with the same points. For others, choose another folder."
    raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])


def resume_line(folder: Path) -> str:
    """Return the command that resumes a sweep."""
    near = os.path.relpath(folder)
    return shell_line(["xlstm-hydra", f"resume_sweep={folder if near.startswith('..') else near}"])


def _lock_sweep(folder: Path) -> None:
    """Keep other processes from sweeping in a folder.

    Raises:
        ConfigError: another one is sweeping there.
    """
    lock = lock_folder(folder, SWEEP_LOCK, "sweep")
    if lock is None:
        text, fix = "another process is sweeping in this folder", "Wait until it has ended, or choose another folder."
        raise ConfigError([Problem({"hydra.sweep.dir": str(folder)}, text, fix)])
    _locks[folder] = lock


def end_sweep(folder: Path) -> None:
    """Unlock the folder of a sweep, and keep its contents."""
    _undo.pop(folder, None)
    if lock := _locks.pop(folder, None):
        lock.close()


def refuse_sweep_links(folder: Path, key: str = "hydra.sweep.dir") -> None:
    """Make sure that no link in the folder of a sweep leads out of it. Only if a sweep is recorded there, the whole
    folder is checked: a new one may start in a folder with other files.

    Raises:
        ConfigError: with the first such link.
    """
    numbered = [item for item in folder.iterdir() if item.name.isdigit()] if folder.is_dir() else []
    is_recorded = os.path.lexists(folder / RECORD_FILE)
    paths = [folder] if is_recorded else [*(folder / name for name in _WRITTEN), *numbered]
    refuse_links_out(folder, paths, {key: str(folder)}, f"Remove it. {_NEW_SWEEP}")


def refuse_folders_outside(folder: Path, record: Iterable[Outcome], key: str = "hydra.sweep.dir") -> None:
    """Make sure that the recorded folders of the jobs are in the folder of the sweep.

    Raises:
        ConfigError: with the first one that is not.
    """
    inside = os.path.realpath(folder)
    for one in record:
        path = os.path.realpath(os.path.join(inside, one.folder or str(one.job)))
        if os.path.commonpath([inside, path]) != inside:
            text = (
                f"the recorded folder of its job {one.job} is {one.folder!r}, which is outside the folder of the sweep"
            )
            raise ConfigError([Problem({key: str(folder)}, text, _NEW_SWEEP)])


def check_job_folder(config: DictConfig, loader: SweepLoader, overrides: Sequence[str], job: int) -> None:
    """Make sure that the folder of a job can be created. It is removed again.

    Args:
        config: the config of the sweep.
        loader: composes the jobs.
        overrides: the overrides of the job.
        job: its number.

    Raises:
        ConfigError: its name cannot be resolved, or it cannot be created.
    """
    cfg = loader.load_sweep_config(config, list(overrides))
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num, cfg.hydra.job.id = job, str(job)
    raw: Any = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    given = {SUBDIR: raw["subdir"]}
    is_here = cfg.hydra.launcher._target_.endswith(".BasicLauncher")
    if "oc.env" in str(raw["subdir"]) and not is_here:
        return  # a variable that may only be set in the process of the job
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
        with make_sweep_folder(Path(cfg.hydra.sweep.dir).absolute()) as made:  # has its own message
            undo.push(made.pop_all())
        with folder.writing():
            folder.make(path, undo)
