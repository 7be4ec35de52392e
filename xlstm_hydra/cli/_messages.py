"""Error messages, exit status and logging, common to all console commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from xlstm_hydra._printable import PrintableFormatter, printable_lines
from xlstm_hydra.errors import status_of, text_of
from xlstm_hydra.preemption import Preempted
from xlstm_hydra.streams import keep_streams, unwritten


@contextmanager
def command(name: str) -> Iterator[None]:
    """Print an error raised inside the `with` block as one message, and exit with its status. Only bugs are printed
    with a traceback.

    Args:
        name: name of the command, printed before each message.
    """
    keep_streams()
    try:
        with _printable_logs():
            yield
        _check_output(name)
    except Preempted as error:
        if error.text:
            _print(f"{name}: {error}")
        raise
    except SystemExit as stop:
        if not stop.code:
            _check_output(name)
        raise
    except KeyboardInterrupt as error:
        _print(f"{name}: {'; '.join(['interrupted', *map(str, error.args)])}")
        sys.exit(130)
    except Exception as error:
        _print(text_of(error, name))
        sys.exit(status_of(error))


@contextmanager
def _printable_logs() -> Iterator[None]:
    """Inside the `with` block, print log records of level WARNING and above to stderr, and escape unprintable
    characters. Hydra replaces this handler when it configures the logging of a run."""
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(PrintableFormatter())
    if not root.handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _check_output(name: str) -> None:
    if (reason := unwritten()) is not None:
        _print(f"{name}: {reason}")
        sys.exit(1)


def _print(text: str) -> None:
    print(printable_lines(text), file=sys.stderr)
