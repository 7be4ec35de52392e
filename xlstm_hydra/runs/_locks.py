"""File locks that allow only one process at a time to write to a folder. The operating system releases the locks of a
process when it ends."""

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
"""Name of the file that a run locks while it writes to its folder."""


def open_lock(file: Path) -> IO[str]:
    """Open a lock file. Create it if it does not exist, otherwise keep its content.

    Raises:
        OSError: the file is a link, or it cannot be opened or created.
    """
    return open(file, "a", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666), encoding="utf-8")


def lock(file: IO[str], shared: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock.

    Raises:
        OSError: the file system does not support locks, as on some clusters.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_folder(folder: Path, name: str, what: str) -> IO[str] | None:
    """Lock a file in a folder and return it. Log a warning if the file system does not support locks.

    Args:
        folder: the folder.
        name: the name of the file.
        what: the kind of job that writes to the folder ("run" or "sweep"), for the warning.

    Returns:
        The open file, or None if another process holds the lock.
    """
    file = open_lock(folder / name)
    try:
        is_locked = lock(file)
    except OSError as error:
        log.warning("%s: cannot be locked (%s); a second %s there would not be detected", folder, error.strerror, what)
        return file
    if not is_locked:
        file.close()
    return file if is_locked else None


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder inside the `with` block, so that no other run writes to it.

    Raises:
        ConfigError: another run is writing to the folder.
    """
    while True:
        file = lock_folder(folder, LOCK_FILE, "run")
        if file is None:
            text = "another run is writing in this folder"
            fix = "Wait until it ends, or choose another folder."
            raise ConfigError([Problem({"hydra.run.dir": str(folder)}, text, fix)])
        with file:
            if _is_in(folder, file):
                yield
                return


def is_held(folder: Path) -> bool:
    """True if a run is writing to a folder (see `hold_folder`)."""
    try:
        with (folder / LOCK_FILE).open() as file:
            return not lock(file, shared=True)
    except OSError:  # no such file, or a file system without locks
        return False


def _is_in(folder: Path, file: IO[str]) -> bool:
    """True if an open lock file is still the lock file in the folder. A rejected run removes the lock file that it
    created, so a file that another run has opened may no longer exist in the folder."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
    except FileNotFoundError:
        return False
