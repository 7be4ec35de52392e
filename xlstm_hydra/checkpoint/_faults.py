"""Errors of Orbax and TensorStore: one error with the cause (a full disk, a damaged checkpoint) instead of the many
tracebacks that their threads print.

Orbax closes the event loop as soon as one request of TensorStore fails, and raises the error of that request. The other
requests end later: in threads of TensorStore, where the loop is closed, or in futures that are never read. Python would
print a traceback for each of them.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import json
import logging
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlstm_hydra.formats import LFS_POINTER, is_lfs_pointer
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import DamagedCheckpoint

log = logging.getLogger("xlstm_hydra")

_ABSL = logging.getLogger("absl")
_CODE = re.compile(r"\[os_error_code='(\d+)'")
"""The errno of the operating system in a `ValueError` of TensorStore."""
_STATUSES = {"NOT_FOUND": errno.ENOENT, "PERMISSION_DENIED": errno.EACCES, "UNAVAILABLE": errno.EIO}
"""Start of such a message that has no errno, with the errno that it means."""
_GONE = ("Checkpoint directory does not exist", "No ArrayMetadata found")
"""Start of a `ValueError` of Orbax if a folder that it created no longer exists."""


_ORBAX = "/orbax/"
"""Part of the path of every source file of Orbax."""

_MARKS = (_ORBAX, "[tensorstore_spec=", "[os_error_code=")
"""Text that identifies a source file of Orbax or an error of TensorStore."""


class SaveError(OSError):
    """A step could not be saved. The message has the step, the folder and the reason."""

    def __init__(self, step: int | None, folder: Path, cause: OSError) -> None:
        what = "writing the checkpoints" if step is None else f"saving step {step}"
        super().__init__(cause.errno, f"{what} in {folder} failed: {reason(cause)}")

    def __str__(self) -> str:
        return self.strerror or ""


def reason(error: OSError) -> str:
    """Return the error text of the operating system, and the file if it is known."""
    text = error.strerror or str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return text if name is None else f"{text}: {name}"


def system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that caused an error of Orbax or TensorStore; None if there is none."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        text = str(error)
        code = int(found[1]) if (found := _CODE.search(text)) else None
        if code is None and isinstance(error, ValueError):  # other types may come from another process
            code = errno.ENOENT if text.startswith(_GONE) else _STATUSES.get(text.partition(":")[0])
        if code is not None:
            return OSError(code, os.strerror(code))
        error = error.__cause__
    return None


@contextmanager
def saving(step: int | None, folder: Path) -> Iterator[None]:
    """Raise what keeps a step (None: no step in particular) from being saved as a `SaveError`, if the system is the
    cause. An error of another kind, which is a bug, passes."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        if cause.errno == errno.ENOENT and step is not None and not any(folder.glob(f"{step}*")):
            cause = FileNotFoundError(errno.ENOENT, "the folder has been removed")
        _end_abandoned_requests()
        raise SaveError(step, folder, cause) from error


class Listener(logging.Filter):
    """Log filter that collects the errors logged by Orbax's threads during a save. The main thread raises one of
    them."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[BaseException] = []
        _ignore_abandoned_requests()
        for other in [each for each in _ABSL.filters if isinstance(each, Listener)]:
            _ABSL.removeFilter(other)
        _ABSL.addFilter(self)

    def stop(self) -> None:
        """Stop collecting. Call it when no thread of Orbax is running any more."""
        _ABSL.removeFilter(self)
        self.report()

    def raise_heard(self) -> None:
        """Raise a collected error, if there is one. Errors of the operating system come first: they are the cause."""
        if self._heard:
            raise next((error for error in self._heard if system_error(error)), self._heard[0])

    def report(self) -> None:
        """Log and discard the collected errors. The step was saved in spite of them."""
        heard, self._heard = self._heard, []
        for text in dict.fromkeys(f"{type(error).__name__}: {error}".partition("\n")[0] for error in heard):
            log.warning("Orbax reported an error, but the step was saved: %s", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Collect errors, and print everything else. Warnings do not affect the save."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.ERROR:
            return True
        self._heard.append(error)
        return False


@contextmanager
def listening() -> Iterator[None]:
    """Collect the errors that Orbax's threads log during a save. If the checkpoint was saved, log them as warnings. If
    it was not, keep collecting: remaining threads may log more."""
    listener = Listener()
    yield
    listener.stop()


@contextmanager
def reading(what: str, folder: Path | None = None) -> Iterator[None]:
    """Raise errors of Orbax and TensorStore about missing or truncated files as a `DamagedCheckpoint`.

    Args:
        what: name of the content, for the message.
        folder: its folder, searched for the damaged file.

    Raises:
        DamagedCheckpoint: files are missing or truncated.
        OSError: the operating system cannot read the files.
    """
    _ignore_abandoned_requests()
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not _is_of_reading(error):
            raise
        _end_abandoned_requests()
        broken = None if folder is None else next(_broken_files(folder), None)
        if broken is None and (number := _of_machine(error)) is not None:
            raise OSError(number, f"its {what} cannot be read: {os.strerror(number)}", folder) from error
        reason = broken or str(error.__cause__ or error).partition("\n")[0].partition(" [tensorstore_spec")[0]
        text, fix = (
            f"its {what} cannot be read: {reason.removesuffix('.')}",
            "The checkpoint may be incomplete; choose another step.",
        )
        raise DamagedCheckpoint([Problem.about("", text, fix)]) from error


def _is_of_reading(error: Exception) -> bool:
    """True for an error about the content of a file: errors of files and of parsing; a plain `Exception`, which Orbax
    raises for errors of TensorStore; and type and attribute errors that Orbax's own code raises for unexpected JSON.
    The same errors raised by another module are bugs."""
    if type(error) is Exception or isinstance(error, OSError | KeyError | ValueError):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, AttributeError | TypeError | IndexError | NotImplementedError) and _ORBAX in raised_in


def _of_machine(error: BaseException | None) -> int | None:
    """Return the errno of an operating system error that does not imply a damaged checkpoint, such as a network
    failure. None for any other error, and for a missing file."""
    while error is not None:
        found = _CODE.search(str(error))
        number = int(found[1]) if found else error.errno if isinstance(error, OSError) else None
        if number is not None:
            return None if number == errno.ENOENT else number
        error = error.__cause__
    return None


def _broken_files(folder: Path) -> Iterator[str]:
    """Yield a description of each empty or truncated file."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "commit_success.txt"):
        if file.stat().st_size == 0:
            yield f"{file} is empty"
        elif file.stat().st_size < 1000 and is_lfs_pointer(file.read_bytes()):
            yield f"{file}: {LFS_POINTER}"
        elif file.name in ("_METADATA", "_sharding") or file.parent.name == "array_metadatas":
            try:
                json.loads(file.read_bytes())
            except ValueError:
                yield f"{file} is truncated"


@functools.cache
def _ignore_abandoned_requests() -> None:
    """Never print messages about requests of TensorStore that end after their event loop was closed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (_found_closed_loop(unraisable.exc_value) or _is_coroutine_of_orbax(unraisable.object)):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_orbax(record))


@functools.cache
def _end_abandoned_requests() -> None:
    """Collect the coroutines of such requests at exit, before modules are unloaded. Later, they would print import
    errors."""
    atexit.register(gc.collect)


def _found_closed_loop(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    return any(frame.name == "call_soon_threadsafe" for frame in traceback.extract_tb(error.__traceback__))


def _is_coroutine_of_orbax(value: object) -> bool:
    return isinstance(value, types.CoroutineType) and _ORBAX in value.cr_code.co_filename


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """True if asyncio logs an abandoned task or future of Orbax."""
    error = record.exc_info[1] if record.exc_info else None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)] if error else []
    return any(mark in text for text in (record.getMessage(), str(error), *files) for mark in _MARKS)
