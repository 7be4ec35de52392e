"""Text that comes from files, on its way into messages, logs and tables."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from typing import Any


def printable(text: str, keep: str = "") -> str:
    """Return a text in which each character that is not printable is replaced by its escape, such as `\\x1b` or `\\n`:
    text in a file must not move the cursor, begin a line of its own, or reverse the direction of what follows.

    Args:
        text: from anywhere.
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii") for char in text
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines, with escapes in place of characters that are not printable."""
    return printable(text, keep="\n\t")


class PrintableFormatter(logging.Formatter):
    """Writes log messages with escapes in place of characters that are not printable. Further lines of a message are
    indented, so that text from a file cannot pass for another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (a name of the standard library)
        """Return the text of a record."""
        first, *others = printable_lines(super().formatMessage(record)).split("\n")
        return "\n".join([first, *(line if line[:1] in ("", " ", "\t") else f"  {line}" for line in others)])

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the text of a traceback."""
        return printable_lines(super().formatException(ei))


def shell_line(words: Iterable[str]) -> str:
    """Return a command line that a shell reads as these words. Those with characters that are not printable are the
    output of `printf`, which gives them back in any shell."""
    return " ".join(shlex.quote(word) if word.isprintable() else f"\"$(printf '{_escaped(word)}')\"" for word in words)


def _escaped(word: str) -> str:
    """A word as the format of `printf`."""
    special = {"\\": r"\\", "'": r"\047", "%": "%%"}
    return "".join(special.get(char, char) if char.isprintable() else _octal(char) for char in word)


def _octal(char: str) -> str:
    handler = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", handler))
