"""Conditions of the machine, such as a full disk, that Orbax and TensorStore meet: one `OSError` instead of the many
tracebacks that their threads print."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlstm_hydra.metadata._abandoned import ignore_abandoned_requests

_ABSL = logging.getLogger("absl")
_CODE = re.compile(r"\[os_error_code='(\d+)'")
"""How TensorStore gives the number of the system's error, in the text of a `ValueError`."""


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
    return text if error.filename is None else f"{text}: {os.fsdecode(error.filename)}"


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error that an error of Orbax or TensorStore has come from, or None."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        if found := _CODE.search(str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__
    return None


@contextmanager
def saving(step: int | None, folder: Path) -> Iterator[None]:
    """Raise what keeps a step from being saved as a `SaveError`, if the system is the cause. None: no step in particular."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        raise SaveError(step, folder, cause) from error


class Listener:
    """Hears what Orbax's threads log. Errors of the system are kept for the main thread, and not printed."""

    def __init__(self) -> None:
        self.heard: OSError | None = None
        """The first one."""
        ignore_abandoned_requests()
        _ABSL.addFilter(self._is_needed)

    def stop(self) -> None:
        """Let everything be printed again."""
        _ABSL.removeFilter(self._is_needed)

    def _is_needed(self, record: logging.LogRecord) -> bool:
        error = system_error(record.exc_info[1]) if record.exc_info else None
        self.heard = self.heard or error
        return error is None
