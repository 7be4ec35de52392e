"""Conditions of the machine, such as a full disk, that Orbax and TensorStore meet: one `OSError` instead of the many
tracebacks that their threads print."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlstm_hydra.runs import end_abandoned_requests, ignore_abandoned_requests

log = logging.getLogger("xlstm_hydra")

_ABSL = logging.getLogger("absl")
_CODE = re.compile(r"\[os_error_code='(\d+)'")
"""How TensorStore gives the number of the system's error, in the text of a `ValueError`."""
_STATUSES = {"NOT_FOUND": errno.ENOENT, "PERMISSION_DENIED": errno.EACCES, "UNAVAILABLE": errno.EIO}
"""What such a text begins with, where it has no number."""
_GONE = ("Checkpoint directory does not exist", "No ArrayMetadata found")
"""How Orbax begins the text of a `ValueError` where a folder that it has made is not there any more."""


class SaveError(OSError):
    """A step was not saved. `str` gives the step, the folder and the reason."""

    def __init__(self, step: int | None, folder: Path, cause: OSError) -> None:
        what = "writing the checkpoints" if step is None else f"saving step {step}"
        super().__init__(cause.errno, f"{what} in {folder} failed: {reason(cause)}")

    def __str__(self) -> str:
        return self.strerror or ""


def reason(error: OSError) -> str:
    """The reason in the system's words, and the file, where it is known."""
    text = error.strerror or str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return text if name is None else f"{text}: {name}"


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error that an error of Orbax or TensorStore has come from, or None."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        text = str(error)
        code = int(found[1]) if (found := _CODE.search(text)) else None
        if code is None and isinstance(error, ValueError):  # an error of another process may begin alike
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
        end_abandoned_requests()
        raise SaveError(step, folder, cause) from error


class Listener(logging.Filter):
    """Keeps the errors that Orbax's threads log, while something is saved. The main thread raises one of them."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[BaseException] = []
        ignore_abandoned_requests()
        for other in [each for each in _ABSL.filters if isinstance(each, Listener)]:
            _ABSL.removeFilter(other)
        _ABSL.addFilter(self)

    def stop(self) -> None:
        """Let everything be printed again, where no thread is left that may log an error."""
        _ABSL.removeFilter(self)
        self.report()

    def raise_heard(self) -> None:
        """Raise what was heard, if anything was: an error of the system rather than what follows from it."""
        if self._heard:
            raise next((error for error in self._heard if system_error(error)), self._heard[0])

    def report(self) -> None:
        """Log what was heard of a step that is saved all the same, and forget it."""
        heard, self._heard = self._heard, []
        for text in dict.fromkeys(f"{type(error).__name__}: {error}".partition("\n")[0] for error in heard):
            log.warning("Orbax reported an error, but has saved the step: %s", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep an error, and print anything else: a warning is about something that Orbax can do without."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.ERROR:
            return True
        self._heard.append(error)
        return False
