"""Optuna studies (`hydra/sweeper=optuna`): check the settings `hydra.sweeper.*`, run the trials, open the database."""

from __future__ import annotations

import inspect
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hydra._internal.utils import _locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import ConfigDict, at_least, below
from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import SweepLoader, check_points, first_point, require_engine, unreadable
from xlstm_hydra.problems import ConfigError, Problem, show

from ._outcomes import COMPLETED, RECORD_FILE, read_record
from ._results import finish_sweep
from ._sweep_folder import check_job_folder, make_sweep_folder, refuse_run_folder

_NOTHING_FOUND = ("No trials are completed", "Record does not exist")
"""Parts of the errors that different Optuna versions raise for a study without a completed trial."""


@dataclass(kw_only=True)
class StudyConfig(ConfigDict):
    """Settings of `hydra/sweeper=optuna`. Settings that only one version of Hydra's plugin has are not checked."""

    sampler: Any = None
    """An Optuna sampler, or a config that creates one. null: Optuna's default."""

    direction: Any = "minimize"
    """minimize or maximize."""

    storage: Any = None
    """URL of the study's database, or an Optuna storage. null: in memory."""

    study_name: str | None = None
    """Name of the study in the database. null: Optuna chooses a name."""

    n_trials: int = 20
    """Number of trials."""

    n_jobs: int = 1
    """Number of trials launched at the same time."""

    max_failure_rate: float = 1.0
    """Maximum fraction of failed trials in a batch. Above it, the study ends."""

    params: dict[str, Any] | None = None
    """Overrides applied before those of the command line."""

    custom_search_space: str | None = None
    """Import path of a function that suggests additional values for each trial."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> StudyConfig:
        """Convert the settings passed to the sweeper. Raise a ConfigError that lists every invalid value."""
        names = [each.name for each in fields(StudyConfig) if each.name in settings]
        try:
            return StudyConfig(**{name: _plain(settings[name]) for name in names})
        except ConfigError as error:
            raise ConfigError([problem.at("hydra.sweeper") for problem in error.problems]) from None

    def rules(self) -> Iterator[Problem]:
        """Check ranges, the direction, the sampler and storage types, and that the search space function exists."""
        yield from at_least(self, 1, "n_trials", "n_jobs")
        yield from at_least(self, 0, "max_failure_rate")
        yield from below(self, 1, "max_failure_rate", inclusive=True)
        if self.direction not in ("minimize", "maximize", ["minimize"], ["maximize"]):
            text = "must be minimize or maximize, because the result of a run is a single number"
            yield Problem({"direction": self.direction}, text)
        yield from self._objects()
        yield from self._function()

    def _objects(self) -> Iterator[Problem]:
        from optuna.samplers import BaseSampler
        from optuna.storages import BaseStorage

        if not (_is_made_later(self.storage) or isinstance(self.storage, str | BaseStorage)):
            yield Problem.about("storage", f"expected a database URL or null, got {show(self.storage)}")
        if not (_is_made_later(self.sampler) or callable(self.sampler) or isinstance(self.sampler, BaseSampler)):
            fix = "Choose a sampler with hydra/sweeper/sampler=NAME."
            yield Problem.about("sampler", f"expected an Optuna sampler, got {show(self.sampler)}", fix)

    def _function(self) -> Iterator[Problem]:
        if not self.custom_search_space:
            return
        given = {"custom_search_space": self.custom_search_space}
        fix = "Write the path of a function, such as package.module.function."
        try:
            found = _locate(self.custom_search_space)
        except (ImportError, ValueError) as error:
            yield Problem(given, f"cannot be imported: {first_line(error.__cause__ or error)}", fix)
            return
        if not callable(found):
            yield Problem(given, "is not a function", fix)

    def overrides(self, arguments: Sequence[str]) -> list[Override]:
        """Parse the overrides in `params` and on the command line. Raise a ConfigError if any is malformed."""
        parser, found, problems = OverridesParser.create(), [], []
        for text in (*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments):
            try:
                found.append(parser.parse_override(text))
            except HydraException as error:
                problems.append(unreadable(text, error))
        if problems:
            raise ConfigError(problems)
        return found


def _is_made_later(value: Any) -> bool:
    """True for null, and for a config that Hydra 1.4 instantiates when the study starts."""
    return value is None or (isinstance(value, dict) and "_target_" in value)


def _plain(value: Any) -> Any:
    """Convert OmegaConf lists and dicts to plain Python lists and dicts."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class Study:
    """Study run by Hydra's Optuna sweeper. The objective is checked first, an existing study in the sweep folder is
    continued, and overrides that are not searched are passed to the jobs unchanged."""

    def __init__(
        self, settings: Mapping[str, Any], context: HydraContext, task: TaskFunction, config: DictConfig
    ) -> None:
        require_engine("hydra/sweeper", "optuna")
        self.settings, self.config, self.loader = StudyConfig.of(settings), config, context.config_loader
        self.folder = Path(config.hydra.sweep.dir)
        _check_objective(config)
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        known = inspect.signature(OptunaSweeper).parameters  # depend on the plugin version
        given: dict[str, Any] = {name: settings.get(name) for name in known}
        given |= {name: getattr(self.settings, name) for name in ("n_trials", "n_jobs", "max_failure_rate")}
        self.storage = given.get("storage")
        if isinstance(self.storage, str):
            given["storage"] = storage_url(self.storage, config.hydra.sweep.dir)
        self.theirs = OptunaSweeper(**given)
        self.theirs.setup(hydra_context=context, task_function=task, config=config)

    def run(self, arguments: Sequence[str]) -> None:
        """Run the trials. Exit with an error status if no trial is completed.

        Args:
            arguments: the overrides; some list several values.

        Raises:
            ConfigError: no key is searched, an override of all trials is invalid, or the database cannot be opened.
        """
        self._check(arguments)
        with make_sweep_folder(self.folder):
            if isinstance(self.storage, str):
                open_storage(self.storage, self.config.hydra.sweep.dir)
        parsed = zip(arguments, OverridesParser.create().parse_overrides([*arguments]), strict=True)
        searched = self.settings.params or {}  # the command line may fix some of these
        fixed = [text for text, one in parsed if not one.is_sweep_override() and one.key_or_group not in searched]
        sweeper: Any = self.theirs.sweeper
        sweeper.launcher = _NumberedLauncher(sweeper.launcher, fixed, _next_number(self.folder))
        errors = storage_errors(self.storage) if isinstance(self.storage, str) else nullcontext()
        with _reported(self.folder), errors:
            self.theirs.sweep([text for text in arguments if text not in fixed])

    def _check(self, arguments: Sequence[str]) -> None:
        """Check that at least one key is searched, and that the overrides shared by all trials are valid."""
        overrides = self.settings.overrides(arguments)
        fixed = {one.key_or_group for one in overrides if not one.is_sweep_override()}
        searched = {one.key_or_group for one in overrides if one.is_sweep_override()} - fixed
        if not searched and not self.settings.custom_search_space:
            fix = "Add a search space, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
            raise ConfigError([Problem.about("hydra/sweeper=optuna", "no key has a search space", fix)])
        loader = SweepLoader(self.loader)
        [point] = check_points(loader, self.config, [first_point(overrides)])
        broken = [problem for problem in point.broken if not searched & {*problem.keys}]
        if problems := [*point.refused, *broken]:
            raise ConfigError(problems)
        refuse_run_folder(self.folder)
        check_job_folder(self.config, loader, point.overrides, 0)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Print the results of the trials at the end. Exit with an error status if no trial is completed."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as stop:
        if not (folder / RECORD_FILE).exists():
            if isinstance(stop, StorageError):  # no trial was started
                raise ConfigError([Problem.about("hydra.sweeper.storage", str(stop))]) from None
            raise
        error = None if any(text in str(stop) for text in _NOTHING_FOUND) else stop
    status = finish_sweep(folder, error)
    if error is not None:
        print("to continue the study with new trials, run the same command again", file=sys.stderr)
    if error is not None or not any(outcome.status == COMPLETED for outcome in read_record(folder)):
        sys.exit(status)


class _NumberedLauncher(Launcher):
    """Launcher that numbers jobs starting at `first` and adds the overrides `shared` to every job."""

    def __init__(self, launcher: Launcher, shared: Sequence[str], first: int) -> None:
        self.launcher, self.shared, self.first = launcher, list(shared), first

    def setup(self, **settings: Any) -> None:
        """Do nothing: the launcher is already set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch the jobs with the overrides that all jobs share. Their numbers start after those of earlier jobs."""
        points = [[*self.shared, *overrides] for overrides in job_overrides]
        return self.launcher.launch(points, initial_job_idx=self.first + initial_job_idx)


def _next_number(folder: Path) -> int:
    """Return the job number that follows the highest number of an existing job folder."""
    names = [path.name for path in folder.iterdir() if re.fullmatch(r"\d+", path.name)]
    return max(map(int, names), default=-1) + 1


def _check_objective(config: DictConfig) -> None:
    """Check that runs return a result that a study can minimize."""
    task, batches = (OmegaConf.select(config, key) for key in ("task.name", "trainer.eval_batches"))
    if task == "generate":
        fix = "Choose task=train, evaluate or plan."
        raise ConfigError([Problem({"task": task}, "has no result that a study could minimize", fix)])
    if task == "train" and batches == 0:
        text, fix = "a study minimizes the validation loss, which is not measured", "Set it to 1 or more."
        raise ConfigError([Problem({"trainer.eval_batches": batches}, text, fix)])


# ---- the database

SQLITE = "sqlite:///"

_SPECIAL = frozenset("?%#{}")
"""Characters with a special meaning in database URLs or in Optuna."""

_FIXES = {
    "locked": "Another process is using the database. Wait until that process has ended, or choose another storage.",
    "not a database": "Choose another file, or remove it.",
    "readonly": "Choose a writable file in a writable folder.",
    "unable to open": "Choose a file in an existing, writable folder.",
    "full": "Free some disk space.",
    "": "Choose another storage, such as the default, a file in the sweep folder.",
}
"""Suggested fixes, by a part of the error message."""


class StorageError(OSError):
    """Error if the database of a study cannot be read or written."""


def storage_url(storage: str, sweep: str) -> str:
    """Return the URL of a study's database with special characters in the folder `sweep` escaped. Hydra composes the
    URL without escaping, for example `sqlite:///a?b/study.db`."""
    path = storage.removeprefix(SQLITE)
    if path == storage or not path.startswith(sweep) or not _SPECIAL & {*sweep}:
        return storage
    name, question, query = path[len(sweep) :].partition("?")
    return f"{SQLITE}file:{quote(f'{Path(sweep).absolute()}{name}')}?uri=true{'&' if question else ''}{query}"


def open_storage(storage: str, sweep: str) -> None:
    """Open the database of a study for writing, and close it.

    Raises:
        ConfigError: the database cannot be opened.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        study = RDBStorage(storage_url(storage, sweep))
        engine: Any = study.engine
        if engine.dialect.name == "sqlite":  # SQLite also opens read-only files
            with closing(engine.raw_connection()) as connection:
                connection.cursor().execute("BEGIN IMMEDIATE")
                connection.cursor().execute("CREATE TABLE is_it_writable (answer INTEGER)")
                connection.rollback()
        study.remove_session()
    except (SQLAlchemyError, sqlite3.Error, ImportError, OSError, RuntimeError, ValueError) as error:
        shown = _without_password(storage)
        text = _reason(error).replace(storage, shown)
        fix = next(fix for words, fix in _FIXES.items() if words in text)
        problem = Problem({"hydra.sweeper.storage": shown}, f"the study database cannot be opened: {text}", fix)
        raise ConfigError([problem]) from None


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Convert errors of a study's database to a StorageError with a one-line message.

    Raises:
        StorageError: the database cannot be read or written.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except Exception as error:
        for cause in _chain(error):  # Hydra's sweeper fails while it handles the first error
            if isinstance(cause, (SQLAlchemyError, StorageInternalError)):
                shown = _without_password(storage)
                raise StorageError(f"the study database {shown} cannot be used: {_reason(cause)}") from error
        raise


def _without_password(storage: str) -> str:
    """Return a database URL as it was typed, with the password replaced by `***`."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url: Any = make_url(storage)
    except (ArgumentError, ValueError):
        return re.sub(r":(?!//).*@", ":***@", storage)
    return storage if url.password is None else url.render_as_string(hide_password=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """Return the first line of the database's own message, without the messages of the libraries that wrap it."""
    while isinstance(cause := getattr(error, "orig", None) or error.__cause__, BaseException):
        error = cause
    return first_line(error)
