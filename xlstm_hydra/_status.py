"""The status line, which shows the current operation if it takes longer than a second.

On a terminal, the status line is the last line of stderr, rewritten every second and removed at the end of the
operation. If stderr is not a terminal, and in the log file, it is an ordinary log line. A daemon thread draws and
removes the status line, because the main thread is busy. The cursor stays in the first column, so output of other code
overwrites the status line; `Console` removes the status line before it prints.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import TextIO

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable, wrapped

PATIENCE_SECONDS, LONG_SECONDS = 1.0, 10.0
"""Seconds after which an operation gets a status line, and seconds after which its end is logged too."""

_JOIN_SECONDS = 1.0
"""Timeout in seconds for the thread to end. It may be blocked by a paused terminal (Ctrl-S)."""

_REMOVE = "\r\x1b[2K"
_IS_STATUS = "is_status"
"""Name of the attribute that marks log records with a status text. They are not printed on a terminal that shows the
same text in its status line."""

_shown: list[threading.Event] = []
"""The current operations, innermost last, each represented by the event that is set when the operation ends."""


def _write(text: str) -> None:
    """Replace the status line on the terminal. An empty text removes it."""
    try:
        sys.stderr.write(f"{_REMOVE}{text[: _width(sys.stderr) - 1]}\r" if text else _REMOVE)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # the terminal is closed


def _width(terminal: TextIO) -> int:
    """Return the number of columns of a terminal, or 80 if it is unknown."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns or 80
    except OSError:
        return 80


_draw: Callable[[str], None] = _write
"""Function that shows a status text. An empty text removes the status line."""

_lock = threading.RLock()
"""Held while the status line is drawn and while a log record is printed."""


@contextmanager
def status(text: str, in_log: bool = True) -> Iterator[None]:
    """Show a text while the `with` block runs, if it takes longer than a second and INFO messages are logged.

    Args:
        text: the operation, such as "compiling the training step".
        in_log: if false, show the text only on a terminal, for a command whose output is read by other programs.
    """
    if not log.isEnabledFor(logging.INFO):
        yield
        return
    text, start, done = printable(text), time.monotonic(), threading.Event()
    thread = threading.Thread(target=_show, args=[text, start, done, in_log], name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_JOIN_SECONDS)
    if in_log and (seconds := time.monotonic() - start) > LONG_SECONDS:
        log.info("%s: done after %.0f s", text, seconds, extra={_IS_STATUS: True})


@contextmanager
def drawn_by(draw: Callable[[str], None]) -> Iterator[None]:
    """Inside the `with` block, show status texts with `draw`, for example in a progress bar."""
    global _draw
    before, _draw = _draw, draw
    try:
        yield
    finally:
        _draw = before


def erasure() -> str:
    """Return the characters that remove the status line, for code that writes to the file descriptor of stderr."""
    return _REMOVE if _shown and _draw is _write else ""


def _show(text: str, start: float, done: threading.Event, in_log: bool) -> None:
    if done.wait(PATIENCE_SECONDS):
        return
    if in_log:
        log.info("%s ...", text, extra={_IS_STATUS: True})
    if not _draws_line():
        return
    _shown.append(done)
    try:
        while not done.is_set():
            with _lock:
                if _shown[-1] is done and not done.is_set():
                    _draw(f"{text}  {time.monotonic() - start:.0f} s")
            done.wait(1.0)
    finally:
        with _lock:
            _draw("")
            _shown.remove(done)


def _draws_line() -> bool:
    """True if stderr is a terminal that can rewrite its last line, and this process is not a worker."""
    try:
        is_terminal = sys.stderr.isatty()
    except ValueError:  # stderr is closed
        return False
    return is_terminal and os.environ.get("TERM") != "dumb" and parent_process() is None


def _new_lock() -> None:
    """Replace the lock in a forked process, where the thread that may have held the lock does not exist."""
    global _lock
    _lock = threading.RLock()
    _shown.clear()


os.register_at_fork(after_in_child=_new_lock)


class Console(logging.StreamHandler):
    """Log handler for a terminal or a pipe. On a terminal, lines logged by `log_fact` are wrapped between words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the status line shows the same text."""
        if getattr(record, _IS_STATUS, False) and self._is_terminal() and _draws_line():
            return
        with _lock:
            if _shown:
                _draw("")
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, wrapped to the width of the terminal if `log_fact` logged it."""
        text, indent = super().format(record), getattr(record, "indent", None)
        if indent is None or not self._is_terminal():
            return text
        width = max(_width(self.stream), 2 * indent)
        return "\n".join(wrapped(text, width, further=" " * indent))

    def _is_terminal(self) -> bool:
        try:
            return self.stream.isatty()
        except ValueError:  # the stream is closed
            return False
