"""The database of an Optuna study: opened before anything starts, and its failures in one message."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xlstm_hydra.errors import first_line
from xlstm_hydra.problems import ConfigError, Problem

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
