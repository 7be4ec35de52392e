"""Text that comes from files, on its way into messages, logs and tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


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


def shell_line(words: Iterable[str]) -> str:
    """Return a command line that a shell reads as these words. Those with characters that are not printable are quoted
    as `$'...'`, which bash, zsh and ksh read."""
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    text = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(text)}'"
