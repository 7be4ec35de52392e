"""Requests that TensorStore has open when one of them fails, which Python would print one traceback each for.

Orbax closes the event loop as soon as one request has failed, and raises that one's error. The others end later: in
threads of TensorStore, which find the loop closed, or in futures that nobody reads.
"""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from typing import Any


@functools.cache
def ignore_abandoned_requests() -> None:
    """From now on, print nothing about requests of TensorStore that end after their event loop."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _found_closed_loop(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: not _is_unread_future(record))


def _found_closed_loop(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    return any(frame.name == "call_soon_threadsafe" for frame in traceback.extract_tb(error.__traceback__))


def _is_unread_future(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None or "never retrieved" not in record.getMessage():
        return False
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return (
        any("orbax" in file for file in files) or "tensorstore_spec=" in str(error) or "[os_error_code=" in str(error)
    )
