"""Checkpoints with files that are missing, empty, cut off or altered."""

from __future__ import annotations

import errno
import json
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlstm_hydra.formats import LFS_POINTER, is_lfs_pointer
from xlstm_hydra.problems import ConfigError, Problem

from ._abandoned import end_abandoned_requests, ignore_abandoned_requests

_CODE = re.compile(r"\[os_error_code='(\d+)'")
"""How TensorStore gives the number of the system's error."""

_ORBAX = "/orbax/"
"""Part of the names of Orbax's own files."""


class DamagedCheckpoint(ConfigError):
    """Files of a checkpoint are missing, cut off or altered."""


class DamageFound(DamagedCheckpoint):
    """Files of a checkpoint differ from its manifest. Of several processes, all have found the same."""


@contextmanager
def attributed_to(key: str, checkpoint: Path | str) -> Iterator[None]:
    """What is wrong with a checkpoint is told with the key that names it."""
    try:
        yield
    except ConfigError as error:
        where = f"{key}={checkpoint}"
        kind = type(error) if isinstance(error, DamagedCheckpoint) else ConfigError
        raise kind(Problem.about(where, str(found)) for found in error.problems) from error.__cause__


@contextmanager
def reading(what: str, folder: Path | None = None) -> Iterator[None]:
    """What Orbax and TensorStore raise where files of a checkpoint are missing or cut off, as a `DamagedCheckpoint`.

    Args:
        what: is read.
        folder: where it lies, to find the damaged file.

    Raises:
        DamagedCheckpoint: files are missing or cut off.
        OSError: the machine cannot read them.
    """
    ignore_abandoned_requests()
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not _is_of_reading(error):
            raise
        end_abandoned_requests()
        broken = None if folder is None else next(_broken_files(folder), None)
        if broken is None and (number := _of_machine(error)) is not None:
            raise OSError(number, f"its {what} cannot be read: {os.strerror(number)}", folder) from error
        reason = broken or str(error.__cause__ or error).partition("\n")[0].partition(" [tensorstore_spec")[0]
        text, fix = (
            f"its {what} cannot be read: {reason.removesuffix('.')}",
            "The checkpoint may be cut off; choose another step.",
        )
        raise DamagedCheckpoint([Problem.about("", text, fix)]) from error


def _is_of_reading(error: Exception) -> bool:
    """True for an error about what a file holds: those of files and of their text, an `Exception` and no more, which
    Orbax raises for what TensorStore says of an array, and what Orbax's code meets where altered JSON is other than it
    expects. Such an error that another module raises is a bug."""
    if type(error) is Exception or isinstance(error, OSError | KeyError | ValueError):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, AttributeError | TypeError | IndexError | NotImplementedError) and _ORBAX in raised_in


def _of_machine(error: BaseException | None) -> int | None:
    """Return the number of the system's error, such as a network that is down, after which the checkpoint may be whole;
    None for another error, and for a file that is not there."""
    while error is not None:
        found = _CODE.search(str(error))
        number = int(found[1]) if found else error.errno if isinstance(error, OSError) else None
        if number is not None:
            return None if number == errno.ENOENT else number
        error = error.__cause__
    return None


def _broken_files(folder: Path) -> Iterator[str]:
    """Files that are empty or not whole, and how."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "commit_success.txt"):
        if file.stat().st_size == 0:
            yield f"{file} is empty"
        elif file.stat().st_size < 1000 and is_lfs_pointer(file.read_bytes()):
            yield f"{file}: {LFS_POINTER}"
        elif file.name in ("_METADATA", "_sharding") or file.parent.name == "array_metadatas":
            try:
                json.loads(file.read_bytes())
            except ValueError:
                yield f"{file} is cut off"
