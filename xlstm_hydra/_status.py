"""The status line: what the process is doing, while it takes longer than a second.

On a terminal it is the last line of stderr. It is rewritten every second and removed at the end. Elsewhere, and in the
log file, it is a line of the log. A thread draws the line, because the main thread is busy with the work. The thread is
a daemon and owns the line, so the line is removed however the work ends. Output of other code starts at the first
column, over the status line, and `Console` removes the line before it prints.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import TextIO

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable

PATIENCE_SECONDS, LONG_SECONDS = 1.0, 10.0
"""Time until work has a status line, and time from which its end is logged."""

_JOIN_SECONDS = 1.0
"""Longest wait for the thread, which may be blocked by a terminal that does not read (Ctrl-S)."""

_REMOVE = "\r\x1b[2K"
_IS_STATUS = "is_status"
"""Attribute of a log record: true if a terminal shows the same text in its status line."""

_shown: list[threading.Event] = []
"""The current status lines, the innermost last. Each is an event that is set at its end."""


def _write(text: str) -> None:
    """Replace the status line on the terminal."""
    try:
        sys.stderr.write(f"{_REMOVE}{text[: _width(sys.stderr) - 1]}\r" if text else _REMOVE)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # the terminal is closed


def _width(terminal: TextIO) -> int:
    """Number of columns of a terminal; 80 if it does not report it."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns or 80
    except OSError:
        return 80


_draw: Callable[[str], None] = _write
"""Shows a status; the empty text removes it."""

_lock = threading.RLock()
"""Held while the status line is drawn, and while other lines are printed."""


@contextmanager
def status(text: str, in_log: bool = True) -> Iterator[None]:
    """Show what the work inside is, if it takes longer than a second and the log level of the process is INFO.

    Args:
        text: such as "compiling the training step".
        in_log: if false, show it only on a terminal, for a command whose output is read by other programs.
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
    """Inside, show statuses with a function, such as one that writes them into a progress bar."""
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
    """True if stderr is a terminal that can rewrite its last line, and no worker process shares it."""
    try:
        is_terminal = sys.stderr.isatty()
    except ValueError:  # closed
        return False
    return is_terminal and os.environ.get("TERM") != "dumb" and parent_process() is None


def _new_lock() -> None:
    """Replace the lock in a forked process, where the thread that holds it does not exist."""
    global _lock
    _lock = threading.RLock()
    _shown.clear()


os.register_at_fork(after_in_child=_new_lock)


class Console(logging.StreamHandler):
    """The log on the terminal or in a pipe. On a terminal, the facts of a run are wrapped at words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the status line shows the same."""
        if getattr(record, _IS_STATUS, False) and self._is_terminal() and _draws_line():
            return
        with _lock:
            if _shown:
                _draw("")
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, wrapped to the width of the terminal if it is a fact."""
        text, indent = super().format(record), getattr(record, "indent", None)
        if indent is None or not self._is_terminal():
            return text
        width = max(_width(self.stream), 2 * indent)
        lines = textwrap.wrap(
            text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        return "\n".join(lines)

    def _is_terminal(self) -> bool:
        try:
            return self.stream.isatty()
        except ValueError:  # closed
            return False
