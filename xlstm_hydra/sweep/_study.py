"""An Optuna study: its settings `hydra.sweeper.*` with `hydra/sweeper=optuna`, and its database, which is opened before
anything starts, and whose failures are one message."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hydra._internal.utils import _locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from xlstm_hydra.configs import ConfigDict
from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import unreadable
from xlstm_hydra.problems import ConfigError, Problem, at_least, below, show

_DIRECTIONS = ("minimize", "maximize")

SQLITE = "sqlite:///"

_SPECIAL = frozenset("?%#{}")
"""Characters that have a meaning in the URL of a database, or in what Optuna makes of it."""

_FIXES = {
    "locked": "Another process is using it: wait until it has ended, or choose another storage.",
    "not a database": "Choose another file, or remove it.",
    "readonly": "Choose a folder and a file that can be written.",
    "unable to open": "Choose a file in a folder that exists and can be written.",
    "full": "Free some disk space.",
}

_HERE = "Choose another storage, such as the default, a file in the folder of the sweep."


@dataclass(kw_only=True)
class StudyConfig(ConfigDict):
    """The option `hydra/sweeper=optuna`. Settings that only one version of Hydra's plugin has are not checked."""

    sampler: Any = None
    """An Optuna sampler, or what makes one. null: Optuna's default."""

    direction: Any = "minimize"
    """minimize or maximize."""

    storage: Any = None
    """The URL of the study's database, or an Optuna storage. null: in memory."""

    study_name: str | None = None
    """The name of the study in its database. null: Optuna chooses one."""

    n_trials: int = 20
    """Number of trials."""

    n_jobs: int = 1
    """Number of trials that the launcher is given at a time."""

    max_failure_rate: float = 1.0
    """Share of the trials of a batch that may fail before the study ends."""

    params: dict[str, Any] | None = None
    """Overrides that come before those of the command line, which replace them."""

    custom_search_space: str | None = None
    """Path of a function that suggests further values for each trial."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> StudyConfig:
        """Read the settings that the sweeper got.

        Raises:
            ConfigError: with every wrong value.
        """
        known = {each.name for each in fields(StudyConfig)}
        plain = {key: _plain(value) for key, value in settings.items() if key in known}
        try:
            return StudyConfig(**plain)
        except ConfigError as error:
            raise ConfigError([problem.at("hydra.sweeper") for problem in error.problems]) from None

    def rules(self) -> Iterator[Problem]:
        """Ranges; one direction; objects are Optuna's; the function exists."""
        yield from at_least(self, 1, "n_trials", "n_jobs")
        yield from at_least(self, 0, "max_failure_rate")
        yield from below(self, 1, "max_failure_rate", inclusive=True)
        if self.direction not in (*_DIRECTIONS, *([one] for one in _DIRECTIONS)):
            text = "must be minimize or maximize: the result of a run is one number"
            yield Problem({"direction": self.direction}, text)
        yield from self._objects()
        yield from self._function()

    def _objects(self) -> Iterator[Problem]:
        from optuna.samplers import BaseSampler
        from optuna.storages import BaseStorage

        if not (_is_made_later(self.storage) or isinstance(self.storage, str | BaseStorage)):
            yield Problem.about("storage", f"expected the URL of a database or null, got {show(self.storage)}")
        if not (_is_made_later(self.sampler) or callable(self.sampler) or isinstance(self.sampler, BaseSampler)):
            fix = "Choose one with hydra/sweeper/sampler=NAME."
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
        """Return the overrides of `params`, then those of the command line.

        Raises:
            ConfigError: with each that Hydra cannot read.
        """
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
    """True for null, and for a config from which Hydra 1.4 makes an object when the study begins."""
    return value is None or (isinstance(value, dict) and "_target_" in value)


def _plain(value: Any) -> Any:
    """Lists and dicts of OmegaConf as those of Python."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class StorageError(OSError):
    """The database of a study cannot be read or written."""


def storage_url(storage: str, sweep: str) -> str:
    """The URL of a study's database, in which the characters of the sweep's folder stand for themselves.

    Args:
        storage: as composed, such as `sqlite:///a?b/study.db`.
        sweep: the folder of the sweep, such as `a?b`.
    """
    path = storage.removeprefix(SQLITE)
    if path == storage or not path.startswith(sweep) or not _SPECIAL & {*sweep}:
        return storage
    name, question, query = path[len(sweep) :].partition("?")
    return f"{SQLITE}file:{quote(f'{Path(sweep).absolute()}{name}')}?uri=true{'&' if question else ''}{query}"


def open_storage(storage: str, sweep: str) -> None:
    """Open the database of a study for writing, and close it.

    Args:
        storage: as composed.
        sweep: the folder of the sweep.

    Raises:
        ConfigError: it cannot be opened.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    failures = (SQLAlchemyError, sqlite3.Error, ImportError, OSError, RuntimeError, ValueError)
    try:
        study = RDBStorage(storage_url(storage, sweep))
        engine: Any = study.engine
        if engine.dialect.name == "sqlite":  # which opens what it cannot write
            with closing(engine.raw_connection()) as connection:
                connection.cursor().execute("BEGIN IMMEDIATE")
                connection.cursor().execute("CREATE TABLE is_it_writable (answer INTEGER)")
                connection.rollback()
        study.remove_session()
    except failures as error:
        shown = _without_password(storage)
        text = _reason(error).replace(storage, shown)
        fix = next((fix for words, fix in _FIXES.items() if words in text), _HERE)
        problem = Problem({"hydra.sweeper.storage": shown}, f"the database of the study cannot be opened: {text}", fix)
        raise ConfigError([problem]) from None


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turn errors of a study's database into a StorageError with one line.

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
                raise StorageError(f"the database of the study, {shown}, cannot be used: {_reason(cause)}") from error
        raise


def _without_password(storage: str) -> str:
    """Return the URL of a database as it was typed, with `***` for its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url: Any = make_url(storage)
    except (ArgumentError, ValueError):
        return re.sub(r":(?!//).*@", ":***@", storage)
    return storage if url.password is None else url.render_as_string(hide_password=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it followed."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """The words of the database, without those of the libraries around it."""
    while isinstance(cause := getattr(error, "orig", None) or error.__cause__, BaseException):
        error = cause
    return first_line(error)
