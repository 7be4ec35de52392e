"""Requests that TensorStore has open when one of them fails, which Python would print one traceback each for."""

from __future__ import annotations

import functools
import sys
from typing import Any


@functools.cache
def ignore_abandoned_requests() -> None:
    """From now on, print nothing where a request of TensorStore ends after its event loop.

    Orbax closes the loop as soon as one request has failed, and raises that one's error. The others end later, in
    threads of TensorStore, and find the loop closed.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_abandoned(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook


def _is_abandoned(error: BaseException | None) -> bool:
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
        return False
    trace, functions = error.__traceback__, set()
    while trace is not None:
        functions.add(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return "call_soon_threadsafe" in functions
