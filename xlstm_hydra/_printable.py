"""Escape text from files before it is shown in messages, logs and tables."""

from __future__ import annotations

import logging
import os
import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def printable(text: str, keep: str = "") -> str:
    """Return a text with every unprintable character replaced by its escape, such as `\\x1b` or `\\n`. Text from a file
    must not be able to move the cursor, start a new line, or reverse the writing direction.

    Args:
        text: any text.
        keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii") for char in text
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines with unprintable characters escaped."""
    return printable(text, keep="\n\t")


def wrapped(text: str, width: int, indent: str = "", further: str = "") -> list[str]:
    """Wrap a text at spaces. A word that is longer than the width, such as a path, is not broken.

    Args:
        text: one paragraph.
        width: maximum number of columns of a line.
        indent: indentation of all lines.
        further: additional indentation of all lines except the first.
    """
    return textwrap.TextWrapper(width, indent, indent + further, break_long_words=False, break_on_hyphens=False).wrap(
        text
    )


def short_path(path: Path) -> str:
    """Return a path below the working directory as a path relative to the working directory, and any other path
    unchanged."""
    try:
        return str(path.relative_to(os.getcwd())) if path != Path(os.getcwd()) else str(path)
    except (ValueError, OSError):  # the path is outside the working directory, or the working directory was removed
        return str(path)


class PrintableFormatter(logging.Formatter):
    """Format log messages with unprintable characters escaped. The second and later lines of a message are indented, so
    that text from a file cannot be mistaken for another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (a name of the standard library)
        """Return the formatted message of a record."""
        first, *others = printable_lines(super().formatMessage(record)).split("\n")
        return "\n".join([first, *(line if line[:1] in ("", " ", "\t") else f"  {line}" for line in others)])

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return a traceback as text, with unprintable characters escaped."""
        return printable_lines(super().formatException(ei))


def shell_line(words: Iterable[str]) -> str:
    """Return a command line that a shell splits into these words. Words with unprintable characters are written as
    `printf` calls, which work in every shell."""
    return " ".join(shlex.quote(word) if word.isprintable() else f"\"$(printf '{_escaped(word)}')\"" for word in words)


def _escaped(word: str) -> str:
    """Return a word as a format string for `printf`."""
    special = {"\\": r"\\", "'": r"\047", "%": "%%"}
    return "".join(special.get(char, char) if char.isprintable() else _octal(char) for char in word)


def _octal(char: str) -> str:
    handler = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", handler))
