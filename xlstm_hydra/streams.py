"""Safe standard output and error: a closed pipe or terminal must not end a run."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from xlstm_hydra._logging import log

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)
"""`errno` values of a pipe or terminal that is closed at the other end."""

_failed = WeakSet[logging.FileHandler]()
"""Log files for which a warning has already been logged."""


class _Stream(io.FileIO):
    """Stream on a file descriptor that discards output that cannot be written, and stores the first error. Once the
    other end is closed, all later output is discarded."""

    failed: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = self.failed or error
            if error.errno in _GONE:
                _discard(self.fileno())
            return memoryview(data).nbytes


class LogFile(logging.FileHandler):
    """Handler for the log file of a run. If the file cannot be written, for example because the disk is full, one
    warning is logged."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (a name of the standard library)
        """See `warn_once`."""
        warn_once(self, record)

    def close(self) -> None:
        """Close the file. Lines that could not be written are dropped."""
        with suppress(OSError):
            super().close()


def warn_once(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Log a single warning about a log file that cannot be written. By default, `logging` prints a traceback for each
    line."""
    error = sys.exception()
    if not isinstance(error, OSError):
        logging.FileHandler.handleError(handler, record)
    elif handler not in _failed:
        _failed.add(handler)  # before the warning, which goes to the same file
        log.warning("the log %s cannot be written: %s", handler.baseFilename, error.strerror)


def keep_streams() -> None:
    """Make it safe to write to standard output and error even after the other end is closed.

    A stream that is closed when the program starts is opened on the null device. Otherwise the next opened file would
    get the file descriptor of the stream, and printed text would end up in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _discard(number)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if number and stream is getattr(sys, f"__{name}__") and not isinstance(_raw(stream), _Stream):
            setattr(sys, name, _guarded(stream))


def unwritten() -> str | None:
    """Flush standard output. Return an error message if output was lost, or None. Output lost because the other end was
    closed is not reported."""
    sys.stdout.flush()
    error = getattr(_raw(sys.stdout), "failed", None)
    return None if error is None or error.errno in _GONE else f"standard output cannot be written: {error.strerror}"


def _guarded(stream: Any) -> io.TextIOWrapper:
    """Return a stream on the same file descriptor that escapes characters it cannot encode."""
    stream.flush()
    raw = _Stream(stream.fileno(), "w", closefd=False)
    binary: Any = raw if stream.write_through else io.BufferedWriter(raw)
    settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(binary, stream.encoding, "backslashreplace", **settings)


def _raw(stream: Any) -> Any:
    binary = getattr(stream, "buffer", None)
    return getattr(binary, "raw", binary)


def _discard(number: int) -> None:
    """Open the null device on a given file descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
