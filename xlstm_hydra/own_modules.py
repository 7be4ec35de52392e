"""Import the user's own modules from the current folder, unless that folder may come from someone else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from xlstm_hydra.problems import ConfigError, Problem

_SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable that prevents Python from importing modules from the current folder."""


def find_own_modules(named: Iterable[Path] = ()) -> None:
    """Make modules in the current folder importable, as `python -m` does but a console command does not. If the current
    folder is, or is inside, one of the folders `named`, nothing is imported from it.

    Args:
        named: folders of saved runs or sweeps named on the command line, which may have been written by someone else.

    Raises:
        ConfigError: the current folder no longer exists.
    """
    try:
        folder = os.getcwd()
    except OSError as error:
        text = f"the current folder cannot be used: {error.strerror}"
        fix = "The folder may have been removed. Change to another folder with cd."
        raise ConfigError([Problem({}, text, fix)]) from None
    if any(Path(folder).is_relative_to(root) for root in named):
        _import_nothing_from(folder)
    elif folder not in sys.path:
        sys.path.append(folder)


def change_folder(folder: Path, *, import_modules: bool) -> None:
    """Change the current folder.

    Args:
        folder: the new current folder.
        import_modules: make modules in the new folder importable, in this process and in processes started later.
            False: import nothing from the new folder.
    """
    before = os.getcwd()
    sys.path[:] = [entry or before for entry in sys.path]
    os.chdir(folder)
    if import_modules:
        find_own_modules()
    else:
        os.environ[_SAFE_PATH] = "1"


def _import_nothing_from(folder: str) -> None:
    """Exclude a folder from the import path, also in processes that are started in the folder."""
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or folder) != os.path.realpath(folder)]
    os.environ[_SAFE_PATH] = "1"
