"""The modules of a user: found in the current folder, unless it is one that may come from someone else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from xlstm_hydra.problems import ConfigError, Problem

_SAFE_PATH = "PYTHONSAFEPATH"
"""Has Python not look for modules in the current folder when it starts."""


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
