"""Messages for system errors that end a run: the cause, the last checkpoint, and how to continue."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from xlstm_hydra._printable import shell_line
from xlstm_hydra.checkpoint import SaveError, reason
from xlstm_hydra.errors import way_out
from xlstm_hydra.runs import saved_steps
from xlstm_hydra.streams import warn_once


class RunEnded(OSError):
    """System error that ended a run, such as a full disk. `str` returns the complete message."""


@contextmanager
def faults_reported(folder: Path) -> Iterator[None]:
    """Convert an `OSError` raised in the block to a `RunEnded` that also names the last checkpoint in `folder` and the
    command that continues the run.

    Raises:
        RunEnded: an `OSError` was raised in the block.
    """
    try:
        with _log_files_may_fail():
            yield
    except OSError as error:
        if error.errno == errno.EBADF:  # a bug, not a system error
            raise
        raise RunEnded(_message(error, folder.absolute())) from error


def _message(error: OSError, folder: Path) -> str:
    what = str(error) if isinstance(error, SaveError) else _failure(error, folder)
    return f"{what}. {_what_is_saved(folder)} {_way_out(error, folder)}"


def _failure(error: OSError, folder: Path) -> str:
    if error.strerror is None or error.filename is not None:
        return reason(error)
    return f"writing in {folder} failed: {error.strerror}"


def _what_is_saved(folder: Path) -> str:
    steps = _steps(folder)
    if steps:
        return f"The last complete checkpoint is step {steps[-1]}."
    return "There is no complete checkpoint."


def _way_out(error: OSError, folder: Path) -> str:
    way = way_out(error) or "Fix the cause"
    if _steps(folder):
        return f"{way}, then continue with {shell_line(['xlstm-hydra', f'resume={folder}'])}"
    return f"{way}, then start the run again."


def _steps(folder: Path) -> list[int]:
    try:
        return saved_steps(folder)
    except OSError:
        return []


@contextmanager
def _log_files_may_fail() -> Iterator[None]:
    """Warn only once about each log file that cannot be written, even if its handler is not a `LogFile`."""
    files = [each for each in logging.getLogger().handlers if isinstance(each, logging.FileHandler)]
    for handler in files:
        handler.handleError = partial(warn_once, handler)
    try:
        yield
    finally:
        for handler in files:
            del handler.handleError
