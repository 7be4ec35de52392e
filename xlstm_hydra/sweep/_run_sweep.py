"""Run a sweep: split, check and plan its points, launch its jobs, and print the results."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, read_write

from xlstm_hydra._logging import log
from xlstm_hydra.errors import reason
from xlstm_hydra.hydra import (
    OnInvalid,
    Point,
    SweeperConfig,
    SweepLoader,
    check_points,
    common,
    differing,
    hydra_rules,
    interval_types,
    invalid_points,
    is_run,
    jobs_with,
    launcher_rules,
    split,
)
from xlstm_hydra.preemption import waiting_while
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import is_restarted

from ._commands import SUBDIR
from ._jobs import job_folder, write_traceback
from ._outcomes import (
    FAILED,
    INVALID,
    RECORD_FILE,
    RUNNING,
    WAITING,
    Outcome,
    now,
    read_record,
    update_fields,
    update_record,
)
from ._plans import is_planned, plan_points
from ._results import finish_sweep
from ._resume import RESUME
from ._sweep_folder import check_job_folder, check_sweep_folder, start_sweep, undo_start

_JOB_NUMBER = re.compile(r"hydra[.:]job\.(num|id)\b")
"""Pattern of an interpolation of the job number."""

CONFIG_FILE = "multirun.yaml"
"""File in the sweep folder with the config of the sweep."""

FEW = 4
"""Maximum number of jobs that are listed by number."""

Jobs = Mapping[int, Sequence[str]]
"""Overrides of jobs, by job number."""


def run_sweep(
    config: DictConfig, loader: SweepLoader, launcher: Launcher, settings: SweeperConfig, arguments: Sequence[str]
) -> list[Sequence[JobReturn]]:
    """Run a sweep. Exit with the exit status of the sweep if it is not 0.

    Args:
        config: the config of the sweep.
        loader: composes the configs of the jobs.
        launcher: runs the jobs.
        settings: the settings of the sweeper.
        arguments: the overrides; some list several values.

    Raises:
        ConfigError: no job can start. The error lists the problems of each point.
    """
    if problems := [*settings.rules(), *launcher_rules(config.hydra.launcher), *hydra_rules(config)]:
        raise ConfigError(problems)
    settings = _resumed_if_restarted(config, settings)
    if is_run(config):
        check_sweep_folder(Path(config.hydra.sweep.dir), settings.resume)
    texts = [f"{key}={value}" for key, value in (settings.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*texts, *arguments])
    if problems := list(interval_types(overrides, config)):
        raise ConfigError(problems)
    points = split(overrides, settings.num_samples, settings.seed, settings.max_jobs)
    if not is_run(config):
        return _run_others(config, loader, launcher, points, settings.max_batch_size)
    _refuse_one_folder(config, points)
    checked = check_points(loader, config, points)
    needs_number = _asks_for_number(config, checked)
    if not needs_number:
        checked = _once(checked)
    invalid = _invalid(config, checked, settings.on_invalid)
    first = next(job for job in range(len(checked)) if job not in invalid)
    check_job_folder(config, loader, checked[first].overrides, first)
    sweep = _Sweep(config, launcher, settings, needs_number or _is_one_by_one(config))
    returns, status = sweep.run([point.overrides for point in checked], invalid)
    if status:
        sys.exit(status)
    return returns


def _refuse_one_folder(config: DictConfig, points: Sequence[Sequence[str]]) -> None:
    """Check that jobs do not share a folder.

    Raises:
        ConfigError: all jobs would have the same folder.
    """
    raw: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if len(points) > 1 and "${" not in str(raw["subdir"]):
        fix = "Remove this setting, or add a part that differs between jobs, such as the job number, hydra.job.num."
        raise ConfigError([Problem({"hydra.sweep.subdir": raw["subdir"]}, "all jobs would have the same folder", fix)])


def _resumed_if_restarted(config: DictConfig, settings: SweeperConfig) -> SweeperConfig:
    """Resume the sweep if SLURM has restarted this process with the same command line."""
    if settings.resume or not is_restarted() or not (Path(config.hydra.sweep.dir) / RECORD_FILE).exists():
        return settings
    log.info("restarted by SLURM: resuming the missing and failed jobs of the sweep")
    with read_write(config.hydra):
        config.hydra.sweeper.resume = True
        config.hydra.overrides.hydra.append(f"{RESUME}=true")
    return replace(settings, resume=True)


def _once(points: list[Point]) -> list[Point]:
    """Remove points that would only repeat the run of an earlier point."""
    seen: dict[Any, Point] = {}
    for point in points:
        own = [text for text in point.overrides if text.startswith("hydra")]
        seen.setdefault(str(point.overrides) if point.problems else (repr(point.run), *own), point)
    if again := len(points) - len(seen):
        what = "duplicates another and is" if again == 1 else "duplicate others and are"
        log.info("%d of %d points %s skipped", again, len(points), what)
    return list(seen.values())


def _asks_for_number(config: DictConfig, points: Sequence[Point]) -> bool:
    """True if a job may depend on its number in other ways than through the name of its folder."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    del plain["hydra"]["sweep"]["subdir"]
    texts = itertools.chain([str(plain)], *(point.overrides for point in points))
    return any(_JOB_NUMBER.search(text) for text in texts)


def _is_one_by_one(config: DictConfig) -> bool:
    """True if jobs that are launched together must have consecutive numbers, as counted by Hydra: jobs run one after
    another anyway, or the user has chosen the names of the job folders."""
    raw: Any = OmegaConf.to_container(config.hydra, resolve=False)
    has_own_names = raw["sweep"]["subdir"] not in ("${hydra.job.num}", "${hydra:job.num}")
    return has_own_names or raw["launcher"]["_target_"].endswith(".BasicLauncher")


def _invalid(config: DictConfig, points: Sequence[Point], on_invalid: OnInvalid) -> dict[int, list[Problem]]:
    """Return the numbers of the points to skip, with the problems of each.

    Raises:
        ConfigError: a point is invalid and `on_invalid` is stop, or all points are invalid.
    """
    found = invalid_points(points)
    if found and (on_invalid == OnInvalid.stop or len(found) == len(points)):
        raise refuse_points(points, found)
    rest = {number: point.run for number, point in enumerate(points) if number not in found}
    found |= plan_points({number: run for number, run in rest.items() if is_planned(run)}, config.hydra.launcher)
    if found and (on_invalid == OnInvalid.stop or len(found) == len(points)):
        raise refuse_points(points, found)
    if found:
        log.warning("%s", invalid_list(points, found, "skipped"))
    return found


def refuse_points(points: Sequence[Point], found: Mapping[int, Sequence[Problem]]) -> ConfigError:
    """Return an error with the problems of the invalid points: one line if all points have the same problem, else a
    list."""
    texts = jobs_with(found)
    if len(texts) == 1 and len(found) == len(points):
        return ConfigError([Problem.about("", *texts)])
    skip = "; hydra.sweeper.on_invalid=skip skips invalid points" if len(found) < len(points) else ""
    fix = f"no job was started{skip}"
    return ConfigError([replace(Problem.about("", invalid_list(points, found, fix)), has_lines=True)])


def invalid_list(points: Sequence[Point], found: Mapping[int, Sequence[Problem]], what: str) -> str:
    """Return the problems as a list, one problem per line with the jobs that have it.

    Args:
        points: all points.
        found: the problems, by point number.
        what: a description of what happens to the invalid points.
    """
    own = differing([point.overrides for point in points])
    lines = [f"{len(found)} of {len(points)} points {'is' if len(found) == 1 else 'are'} invalid: {what}"]
    for text, numbers in jobs_with(found).items():
        few = f"job{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
        which = few if len(numbers) <= FEW else f"{len(numbers)} jobs"
        shared = " ".join(common(own, numbers))
        which = which if len(numbers) < len(points) else "all jobs"
        lines.append(f"  {which}{f' ({shared})' if shared else ''}: {text}")
    return "\n".join(lines)


class _Sweep:
    """Launches the checked jobs of a sweep."""

    def __init__(self, config: DictConfig, launcher: Launcher, settings: SweeperConfig, one_by_one: bool) -> None:
        self.config, self.launcher, self.settings = config, launcher, settings
        self.folder, self.one_by_one = Path(config.hydra.sweep.dir), one_by_one

    def run(
        self, points: list[list[str]], invalid: Mapping[int, Sequence[Problem]]
    ) -> tuple[list[Sequence[JobReturn]], int]:
        """Launch all jobs, even if some of them fail. Return their results and the exit status.

        Raises:
            ConfigError: the launcher rejects all jobs of a new sweep. The sweep folder is returned to its previous
            state.
        """
        is_new, had_config = not (self.folder / RECORD_FILE).exists(), (self.folder / CONFIG_FILE).exists()
        todo = start_sweep(self.folder, points, self.settings.resume)
        returns: list[Sequence[JobReturn]] = []
        error: BaseException | None = None
        try:
            save_config(self.config, self.folder, again=self.settings.resume)
            reasons = {job: "; ".join(map(str, invalid[job])) for job in todo if job in invalid}
            skipped = [Outcome(job=job, overrides=points[job], status=INVALID, reason=reasons[job]) for job in reasons]
            update_record(self.folder, skipped)
            with waiting_while(self.is_running):
                for batch, returned in self.launch({job: points[job] for job in todo if job not in invalid}):
                    returns.append(returned)
                    errors = [done._return_value if done.status == JobStatus.FAILED else None for done in returned]
                    _record_early_failures(self.folder, dict(zip(batch, errors, strict=True)))
        except BaseException as stop:
            error = stop
        if isinstance(error, ConfigError) and is_new and not self.has_started(set(todo) - set(invalid)):
            if not had_config:
                (self.folder / CONFIG_FILE).unlink(missing_ok=True)
            undo_start(self.folder)
            raise error
        return returns, finish_sweep(self.folder, error)

    def launch(self, jobs: Jobs) -> Iterator[tuple[Jobs, Sequence[JobReturn]]]:
        """Launch the jobs in batches. Yield each batch with the results of its jobs. If the launcher stops because a
        job failed, the remaining batches are still launched.

        Raises:
            Exception: the first error raised by the launcher.
        """
        error: Exception | None = None
        for batch in batches(jobs, self.settings.max_batch_size, self.one_by_one):
            try:
                yield batch, self.launcher.launch(numbered(batch), initial_job_idx=min(batch))
            except Exception as stop:
                error = error or stop
                if not self.has_started(batch):
                    raise
        if error is not None:
            raise error

    def is_running(self) -> bool:
        """True if a job is recorded as running."""
        return any(outcome.status == RUNNING for outcome in read_record(self.folder))

    def has_started(self, jobs: Collection[int]) -> bool:
        """True if at least one of these jobs has started."""
        waiting = {outcome.job for outcome in read_record(self.folder) if outcome.status == WAITING}
        return not waiting.issuperset(jobs)


def _record_early_failures(folder: Path, errors: Mapping[int, BaseException | None]) -> None:
    """Record the failures that jobs could not record themselves, for example if a process cannot import this package.

    Args:
        folder: the sweep folder.
        errors: the error of each job, by job number; None if the job did not fail.
    """
    waiting = {one.job: one for one in read_record(folder) if one.status == WAITING}
    changes: dict[int, dict[str, Any]] = {}
    for job, error in errors.items():
        if error is not None and job in waiting:
            own = job_folder(folder, waiting[job])
            own.mkdir(parents=True, exist_ok=True)
            write_traceback(own, error)
            changes[job] = {"status": FAILED, "reason": reason(error), "started": now(), "ended": now()}
    if changes:
        update_fields(folder, changes)


def batches(jobs: Jobs, size: int | None, one_by_one: bool = False) -> Iterator[dict[int, list[str]]]:
    """Split jobs into batches that are launched together.

    Args:
        jobs: all jobs.
        size: maximum size of a batch; None: no limit.
        one_by_one: allow only consecutive job numbers in a batch.
    """
    batch: dict[int, list[str]] = {}
    for job, overrides in jobs.items():
        if batch and (len(batch) == size or (one_by_one and job - 1 not in batch)):
            yield batch
            batch = {}
        batch[job] = list(overrides)
    if batch:
        yield batch


def numbered(batch: Jobs) -> list[list[str]]:
    """Return the overrides of the jobs in a batch. Hydra numbers these jobs consecutively, so a job that would get a
    wrong number also gets an override for the name of its folder."""
    return [
        [*overrides, *([] if job == number else [f"{SUBDIR}={job}"])]
        for number, (job, overrides) in enumerate(batch.items(), min(batch))
    ]


def save_config(config: DictConfig, folder: Path, again: bool = False) -> None:
    """Write the config of a sweep to the sweep folder. If `again`, keep an existing file."""
    file = folder / CONFIG_FILE
    if not (again and file.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, file)


def _run_others(
    config: DictConfig, loader: SweepLoader, launcher: Launcher, points: list[list[str]], size: int | None
) -> list[Sequence[JobReturn]]:
    """Run a sweep of another Hydra app. Its configs are composed but not checked. After all jobs have run, raise the
    error of the first job that failed."""
    for point in points:
        loader.load_sweep_config(config, point)
    save_config(config, Path(config.hydra.sweep.dir))
    returns = [
        launcher.launch(list(batch.values()), initial_job_idx=min(batch))
        for batch in batches(dict(enumerate(points)), size)
    ]
    for job in itertools.chain.from_iterable(returns):
        _ = job.return_value
    return returns
