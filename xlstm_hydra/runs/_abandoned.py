"""Requests that TensorStore has open when one of them fails, which Python would print one traceback each for.

Orbax closes the event loop as soon as one request has failed, and raises that one's error. The others end later: in
threads of TensorStore, which find the loop closed, or in futures that nobody reads.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import sys
import traceback
import types
from typing import Any

_MARKS = ("/orbax/", "[tensorstore_spec=", "[os_error_code=")
"""What the name of a file of Orbax, or the text of an error of TensorStore, has in it."""


@functools.cache
def ignore_abandoned_requests() -> None:
    """From now on, print nothing about requests of TensorStore that end after their event loop."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (_found_closed_loop(unraisable.exc_value) or _is_coroutine_of_orbax(unraisable.object)):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_orbax(record))


@functools.cache
def end_abandoned_requests() -> None:
    """Let the coroutines of such requests end while Python is whole: at its end they print that they cannot import."""
    atexit.register(gc.collect)


def _found_closed_loop(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    return any(frame.name == "call_soon_threadsafe" for frame in traceback.extract_tb(error.__traceback__))


def _is_coroutine_of_orbax(value: object) -> bool:
    return isinstance(value, types.CoroutineType) and _MARKS[0] in value.cr_code.co_filename


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """True if asyncio logs a task or future of Orbax that nobody waits for any more."""
    error = record.exc_info[1] if record.exc_info else None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)] if error else []
    return any(mark in text for text in (record.getMessage(), str(error), *files) for mark in _MARKS)
