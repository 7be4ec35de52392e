"""Start and end of every console command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xlstm_hydra._printable import PrintableFormatter, printable_lines
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.errors import status_of, text_of
from xlstm_hydra.preemption import Preempted
from xlstm_hydra.streams import keep_streams, unwritten

_SAFE_PATH = "PYTHONSAFEPATH"
"""Has Python not look for modules in the current folder when it starts."""


@contextmanager
def command(name: str) -> Iterator[None]:
    """Print what a command ends with as one message, and exit with its status. Only a bug is printed with a traceback.

    Args:
        name: of the command, in front of each message.
    """
    keep_streams()
    try:
        with _printable_logs():
            yield
        _refuse_unwritten(name)
    except Preempted as error:
        if error.text:
            _print(f"{name}: {error}")
        raise
    except SystemExit as stop:
        if not stop.code:
            _refuse_unwritten(name)
        raise
    except KeyboardInterrupt as error:
        _print(f"{name}: {'; '.join(['interrupted', *map(str, error.args)])}")
        sys.exit(130)
    except Exception as error:
        _print(text_of(error, name))
        sys.exit(status_of(error))


@contextmanager
def _printable_logs() -> Iterator[None]:
    """Print warnings on standard error, with escapes in place of characters that are not printable. Hydra replaces this
    when it configures the logging of a run."""
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(PrintableFormatter())
    if not root.handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def find_own_modules(named: Iterable[Path] = ()) -> None:
    """Find the user's own modules in the current folder, which a console command would not. Where the current folder
    is one that the user names as a saved run or sweep, or in it, nothing in it is imported.

    Args:
        named: folders that are read, and may come from someone else.

    Raises:
        ConfigError: there is no current folder any more.
    """
    try:
        folder = os.getcwd()
    except OSError as error:
        text = f"the current folder cannot be used: {error.strerror}"
        fix = "It may have been removed; change to another one with cd."
        raise ConfigError([Problem({}, text, fix)]) from None
    if any(Path(folder).is_relative_to(root) for root in named):
        _import_nothing_from(folder)
    elif folder not in sys.path:
        sys.path.append(folder)


def change_folder(folder: Path, *, import_modules: bool) -> None:
    """Change the current folder.

    Args:
        folder: the new one.
        import_modules: find modules in it too, here and in processes that are started later.
    """
    before = os.getcwd()
    sys.path[:] = [entry or before for entry in sys.path]
    os.chdir(folder)
    if import_modules:
        find_own_modules()
    else:
        os.environ[_SAFE_PATH] = "1"


def _import_nothing_from(folder: str) -> None:
    """Remove a folder from where modules are found, also in processes that are started in it."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or folder) != os.path.realpath(folder)]
    os.environ[_SAFE_PATH] = "1"


def _refuse_unwritten(name: str) -> None:
    if (reason := unwritten()) is not None:
        _print(f"{name}: {reason}")
        sys.exit(1)


def _print(text: str) -> None:
    print(printable_lines(text), file=sys.stderr)
