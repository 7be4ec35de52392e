"""Tokens as people read them, while they come."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable

Decode = Callable[[Iterable[int]], str]
"""Turns the next tokens of a sequence into what is shown of them."""


def byte_decoder() -> Decode:
    """UTF-8. A character is given when its last byte has come; bytes that are none become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    no_byte = b"\xff"  # what is not valid UTF-8 anywhere
    return lambda tokens: decoder.decode(b"".join(bytes([token]) if token < 256 else no_byte for token in tokens))


def id_decoder() -> Decode:
    """Numbers with a space behind each."""
    return lambda tokens: "".join(f"{token} " for token in tokens)


def show(text: str) -> None:
    """Put text on the terminal at once, without the control characters that could do something to it."""
    safe = (char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
    sys.stdout.write("".join(safe))
    sys.stdout.flush()
