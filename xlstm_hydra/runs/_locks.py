"""Locks on files, which let one process at a time write in a folder. They go with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from xlstm_hydra._logging import log
from xlstm_hydra.problems import ConfigError, Problem

LOCK_FILE = ".lock"
"""Name of the file that a run locks in its folder while it writes there."""


def open_lock(file: Path) -> IO[str]:
    """Open a file to lock it, made if it is not there. It keeps its content.

    Raises:
        OSError: it is a link, or cannot be made.
    """
    return open(file, "a", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666), encoding="utf-8")


def lock(file: IO[str], shared: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process has locked it.

    Raises:
        OSError: the file system has no locks, such as that of some clusters.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_folder(folder: Path, name: str, what: str) -> IO[str] | None:
    """Lock a file in a folder, and return it. Log a warning if the file system has no locks.

    Args:
        folder: the folder.
        name: of the file.
        what: works in the folder, for the warning: run or sweep.

    Returns:
        The open file; None if another process has locked it.
    """
    file = open_lock(folder / name)
    try:
        is_locked = lock(file)
    except OSError as error:
        log.warning("%s: no lock, so a second %s there would not be noticed (%s)", folder, what, error.strerror)
        return file
    if not is_locked:
        file.close()
    return file if is_locked else None


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from writing in a folder.

    Raises:
        ConfigError: another run is writing there.
    """
    while True:
        file = lock_folder(folder, LOCK_FILE, "run")
        if file is None:
            text = "another run is writing in this folder"
            fix = "Wait until it has ended, or choose another folder."
            raise ConfigError([Problem({"hydra.run.dir": str(folder)}, text, fix)])
        with file:
            if _is_in(folder, file):
                yield
                return


def is_held(folder: Path) -> bool:
    """True if a run is writing in a folder (see `hold_folder`)."""
    try:
        with (folder / LOCK_FILE).open() as file:
            return not lock(file, shared=True)
    except OSError:  # there is no such file, or no locks on this file system
        return False


def _is_in(folder: Path, file: IO[str]) -> bool:
    """True if a lock file is still the one in the folder. A run that is rejected removes the one that it has made."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
    except FileNotFoundError:
        return False
