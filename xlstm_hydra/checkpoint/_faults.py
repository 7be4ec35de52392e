"""Orbax and TensorStore errors: raise one error with the cause (a full disk, a damaged checkpoint) instead of the many
tracebacks that the threads of these libraries print.

Orbax closes its event loop as soon as one TensorStore request fails, and raises the error of that request. The other
requests end later and fail in turn, in TensorStore threads that find the loop closed, or in futures that are never
awaited. Python would print a traceback for each of these requests.
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

from xlstm_hydra._logging import log
from xlstm_hydra.formats import LFS_POINTER, is_lfs_pointer
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import DamagedCheckpoint

_ABSL = logging.getLogger("absl")
_CODE = re.compile(r"\[os_error_code='(\d+)'")
"""Pattern of the errno in the message of a TensorStore `ValueError`."""
_STATUSES = {"NOT_FOUND": errno.ENOENT, "PERMISSION_DENIED": errno.EACCES, "UNAVAILABLE": errno.EIO}
"""Status at the start of a TensorStore message without an errno, with the errno that it stands for."""
_GONE = ("Checkpoint directory does not exist", "No ArrayMetadata found")
"""Prefixes of the message of Orbax's `ValueError` for a folder that Orbax created and that no longer exists."""


_ORBAX = "/orbax/"
"""Part of the path of every Orbax source file."""

_MARKS = (_ORBAX, "[tensorstore_spec=", "[os_error_code=")
"""Text that identifies an Orbax source file or a TensorStore error."""


class SaveError(OSError):
    """Error for a step that could not be saved. The message contains the step, the folder and the reason."""

    def __init__(self, step: int | None, folder: Path, cause: OSError) -> None:
        what = "writing the checkpoints" if step is None else f"saving step {step}"
        super().__init__(cause.errno, f"{what} in {folder} failed: {reason(cause)}")

    def __str__(self) -> str:
        return self.strerror or ""


def reason(error: OSError) -> str:
    """Return the error text of the operating system, followed by the file name if it is known."""
    text = error.strerror or str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return text if name is None else f"{text}: {name}"


def system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system error that caused an Orbax or TensorStore error; None if there is none."""
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
    """Convert errors raised in the block to a `SaveError` if a system error is the cause. Other errors, which are bugs,
    are raised unchanged. `step` is the step being saved; None if the block saves no particular step."""
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
    """Log filter that collects the errors logged by Orbax threads during a save. The main thread then raises one of
    these errors."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[BaseException] = []
        _ignore_abandoned_requests()
        for other in [each for each in _ABSL.filters if isinstance(each, Listener)]:
            _ABSL.removeFilter(other)
        _ABSL.addFilter(self)

    def stop(self) -> None:
        """Stop collecting, and report the collected errors. Call this when no Orbax thread is running any more."""
        _ABSL.removeFilter(self)
        self.report()

    def raise_heard(self) -> None:
        """Raise a collected error, if there is one. Operating system errors take precedence, because they are the
        cause."""
        if self._heard:
            raise next((error for error in self._heard if system_error(error)), self._heard[0])

    def report(self) -> None:
        """Log the collected errors as warnings and discard them, because the step was saved despite these errors."""
        heard, self._heard = self._heard, []
        for text in dict.fromkeys(f"{type(error).__name__}: {error}".partition("\n")[0] for error in heard):
            log.warning("Orbax reported an error, but the step was saved: %s", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Collect errors, and let all other records be logged. Warnings do not affect the save."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.ERROR:
            return True
        self._heard.append(error)
        return False


@contextmanager
def listening() -> Iterator[None]:
    """Collect the errors that Orbax threads log during a save. If the block succeeds, log the errors as warnings. If
    the block fails, keep collecting, because remaining threads may log more errors."""
    listener = Listener()
    yield
    listener.stop()


@contextmanager
def reading(what: str, folder: Path | None = None) -> Iterator[None]:
    """Convert Orbax and TensorStore errors about missing or truncated files to a `DamagedCheckpoint`.

    Args:
        what: the name of the content, for the message.
        folder: the folder of the content, which is searched for the damaged file.

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
    """True for errors about the content of a file: file and parsing errors; a plain `Exception`, which Orbax raises for
    TensorStore errors; and errors such as `TypeError` that Orbax itself raises for unexpected JSON. Such a `TypeError`
    is a bug if another module raises it."""
    if type(error) is Exception or isinstance(error, OSError | KeyError | ValueError):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, AttributeError | TypeError | IndexError | NotImplementedError) and _ORBAX in raised_in


def _of_machine(error: BaseException | None) -> int | None:
    """Return the errno of an operating system error that does not imply a damaged checkpoint, such as a network
    failure. Return None for any other error, and for a missing file."""
    while error is not None:
        found = _CODE.search(str(error))
        number = int(found[1]) if found else error.errno if isinstance(error, OSError) else None
        if number is not None:
            return None if number == errno.ENOENT else number
        error = error.__cause__
    return None


def _broken_files(folder: Path) -> Iterator[str]:
    """Yield a description of each file that is empty, truncated or a Git LFS pointer."""
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
    """Suppress messages about TensorStore requests that end after their event loop was closed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (_found_closed_loop(unraisable.exc_value) or _is_coroutine_of_orbax(unraisable.object)):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_orbax(record))


@functools.cache
def _end_abandoned_requests() -> None:
    """At exit, collect the coroutines of abandoned requests before modules are unloaded. Otherwise, they would print
    import errors."""
    atexit.register(gc.collect)


def _found_closed_loop(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    return any(frame.name == "call_soon_threadsafe" for frame in traceback.extract_tb(error.__traceback__))


def _is_coroutine_of_orbax(value: object) -> bool:
    return isinstance(value, types.CoroutineType) and _ORBAX in value.cr_code.co_filename


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """True for a log record of asyncio about an abandoned Orbax task or future."""
    error = record.exc_info[1] if record.exc_info else None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)] if error else []
    return any(mark in text for text in (record.getMessage(), str(error), *files) for mark in _MARKS)
