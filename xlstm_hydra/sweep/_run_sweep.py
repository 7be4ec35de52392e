"""A sweep: its points are split, checked and planned, its jobs launched, and its results printed."""

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
"""What stands in a config that asks for the number of its job."""

CONFIG_FILE = "multirun.yaml"
"""The config of the sweep, in its folder."""

FEW = 4
"""So many numbers of jobs are listed."""

Jobs = Mapping[int, Sequence[str]]
"""Overrides by the number of the job."""


def run_sweep(
    config: DictConfig, loader: SweepLoader, launcher: Launcher, settings: SweeperConfig, arguments: Sequence[str]
) -> list[Sequence[JobReturn]]:
    """Run a sweep, and leave with its exit status unless all is well.

    Args:
        config: of the sweep.
        loader: what composes its jobs.
        launcher: what runs them.
        settings: of the sweeper.
        arguments: the overrides, some with several values.

    Raises:
        ConfigError: no job can start: with what is wrong with each point.
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
    """Make sure that jobs do not share a folder.

    Raises:
        ConfigError: they would.
    """
    raw: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if len(points) > 1 and "${" not in str(raw["subdir"]):
        fix = "Leave it out, or put into it what differs, such as the number of the job, hydra.job.num."
        raise ConfigError([Problem({"hydra.sweep.subdir": raw["subdir"]}, "is the folder of all jobs", fix)])


def _resumed_if_restarted(config: DictConfig, settings: SweeperConfig) -> SweeperConfig:
    """If SLURM has restarted this process, with the same command line, resume its sweep and the jobs of it."""
    if settings.resume or not is_restarted() or not (Path(config.hydra.sweep.dir) / RECORD_FILE).exists():
        return settings
    log.info("started again by SLURM: the sweep goes on with what is missing or failed")
    with read_write(config.hydra):
        config.hydra.sweeper.resume = True
        config.hydra.overrides.hydra.append(f"{RESUME}=true")
    return replace(settings, resume=True)


def _once(points: list[Point]) -> list[Point]:
    """Each run once, also where it was typed twice: it would give the same again."""
    seen: dict[Any, Point] = {}
    for point in points:
        own = [text for text in point.overrides if text.startswith("hydra")]
        seen.setdefault(str(point.overrides) if point.problems else (repr(point.run), *own), point)
    if again := len(points) - len(seen):
        what = "is the same as another, and is" if again == 1 else "are the same as others, and are"
        log.info("%d of %d points %s run once", again, len(points), what)
    return list(seen.values())


def _asks_for_number(config: DictConfig, points: Sequence[Point]) -> bool:
    """Whether a job may depend on its number other than by the name of its folder."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    del plain["hydra"]["sweep"]["subdir"]
    texts = itertools.chain([str(plain)], *(point.overrides for point in points))
    return any(_JOB_NUMBER.search(text) for text in texts)


def _is_one_by_one(config: DictConfig) -> bool:
    """Whether jobs are to be launched under the numbers that Hydra counts: because they run one after the other anyway,
    or because their folders have names of the user's."""
    raw: Any = OmegaConf.to_container(config.hydra, resolve=False)
    has_own_names = raw["sweep"]["subdir"] not in ("${hydra.job.num}", "${hydra:job.num}")
    return has_own_names or raw["launcher"]["_target_"].endswith(".BasicLauncher")


def _invalid(config: DictConfig, points: Sequence[Point], on_invalid: OnInvalid) -> dict[int, list[Problem]]:
    """The points that are skipped, each with what is wrong with it.

    Raises:
        ConfigError: they are not to be skipped, or there are no others.
    """
    found = invalid_points(points)
    if found and (on_invalid == OnInvalid.stop or len(found) == len(points)):
        raise refuse_points(points, found)
    rest = {number: point.run for number, point in enumerate(points) if number not in found}
    found |= plan_points({number: run for number, run in rest.items() if is_planned(run)}, config.hydra.launcher)
    if found and (on_invalid == OnInvalid.stop or len(found) == len(points)):
        raise refuse_points(points, found)
    if found:
        log.warning("%s", invalid_table(points, found, "skipped"))
    return found


def refuse_points(points: Sequence[Point], found: Mapping[int, Sequence[Problem]]) -> ConfigError:
    """Return an error that says why no job was started: in one line if all points have one problem, else in a table."""
    texts = jobs_with(found)
    if len(texts) == 1 and len(found) == len(points):
        return ConfigError([Problem.about("", *texts)])
    skip = "; hydra.sweeper.on_invalid=skip leaves them out" if len(found) < len(points) else ""
    fix = f"no job was started{skip}"
    return ConfigError([replace(Problem.about("", invalid_table(points, found, fix)), has_lines=True)])


def invalid_table(points: Sequence[Point], found: Mapping[int, Sequence[Problem]], what: str) -> str:
    """A table of what is wrong, each thing once with the jobs that have it.

    Args:
        points: all of them.
        found: by the numbers of those that have problems.
        what: becomes of them.
    """
    from xlstm_hydra._table import table  # 30 ms

    own = differing([point.overrides for point in points])
    rows = [("job", "overrides", "reason")]
    for text, numbers in jobs_with(found).items():
        which = ", ".join(map(str, numbers)) if len(numbers) <= FEW else f"{len(numbers)} of {len(points)}"
        which = "all" if len(numbers) == len(points) else which
        rows.append((which, " ".join(common(own, numbers)), text))
    lines = table([(f"  {first}", *others) for first, *others in rows], left=range(3))
    return "\n".join([f"{len(found)} of {len(points)} points are invalid: {what}", *lines])


class _Sweep:
    """The launching of jobs that have been checked."""

    def __init__(self, config: DictConfig, launcher: Launcher, settings: SweeperConfig, one_by_one: bool) -> None:
        self.config, self.launcher, self.settings = config, launcher, settings
        self.folder, self.one_by_one = Path(config.hydra.sweep.dir), one_by_one

    def run(
        self, points: list[list[str]], invalid: Mapping[int, Sequence[Problem]]
    ) -> tuple[list[Sequence[JobReturn]], int]:
        """Launch all jobs that are to be run, whatever becomes of single ones. Returns the exit status too.

        Raises:
            ConfigError: the launcher takes none of the jobs of a new sweep, which leaves nothing behind then.
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
        """Each batch, and what its jobs return. Where a launcher gives up because one of its jobs has failed, the
        others follow.

        Raises:
            Exception: what a launcher gave up with.
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
        """Whether a job runs, as far as is recorded."""
        return any(outcome.status == RUNNING for outcome in read_record(self.folder))

    def has_started(self, jobs: Collection[int]) -> bool:
        """Whether a launcher got one of these jobs to run."""
        waiting = {outcome.job for outcome in read_record(self.folder) if outcome.status == WAITING}
        return not waiting.issuperset(jobs)


def _record_early_failures(folder: Path, errors: Mapping[int, BaseException | None]) -> None:
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
            write_traceback(own, error)
            changes[job] = {"status": FAILED, "reason": reason(error), "started": now(), "ended": now()}
    if changes:
        update_fields(folder, changes)


def batches(jobs: Jobs, size: int | None, one_by_one: bool = False) -> Iterator[dict[int, list[str]]]:
    """Jobs that are launched together.

    Args:
        jobs: all of them.
        size: the most that are; None: all.
        one_by_one: whether only those are whose numbers follow each other.
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
    """The overrides of jobs that Hydra numbers from that of the first on, with the folder of each that would get
    another number so."""
    return [
        [*overrides, *([] if job == number else [f"{SUBDIR}={job}"])]
        for number, (job, overrides) in enumerate(batch.items(), min(batch))
    ]


def save_config(config: DictConfig, folder: Path, again: bool = False) -> None:
    """Leave the config of a sweep in its folder, where it began."""
    file = folder / CONFIG_FILE
    if not (again and file.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, file)


def _run_others(
    config: DictConfig, loader: SweepLoader, launcher: Launcher, points: list[list[str]], size: int | None
) -> list[Sequence[JobReturn]]:
    """Run a sweep of another app, of whose configs nothing is known: all must compose. Raises what the first job that
    fails raised, when all have run."""
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
