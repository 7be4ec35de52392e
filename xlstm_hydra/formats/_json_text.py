"""Text -> one JSON object, strictly: whatever is wrong with it is one `MetadataError`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, show

MAX_SIZE = 16 * 2**20
"""Bytes (of a text: characters) that metadata may have; that of the largest models is below 100 kB."""

MAX_DEPTH = 64
"""Objects within objects that metadata may have."""

MAX_VALUES = 50_000
"""Objects, lists and values that metadata may have: enough for a list of ten thousand parameters, and soon read."""

LFS_POINTER = "a Git LFS pointer is in its place. Run git lfs pull in its repository to download the file"
"""What is wrong with a file of which Git has not downloaded the content."""

_LFS_START = b"version https://git-lfs.github.com/spec/"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAYBE_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
"""A text without this holds no half of a character. One with it may, or may hold two that are one character."""


class MetadataError(ConfigError):
    """Metadata that cannot be read, with the path of every field that is wrong."""


class _Fault(str):
    """Stands for a value that JSON has no place for, until its path is known."""


def parse(text: str | bytes, what: str = "metadata", fix: str = "The file may be cut off.") -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        text: the text.
        what: it should be, for messages.
        fix: the way out where it is not JSON.

    Raises:
        MetadataError: it is none, or something in it is no proper JSON.
    """
    if not isinstance(text, str | bytes):
        raise error("", f"expected text, got a {type(text).__name__}", "Read the file first.")
    if len(text) > MAX_SIZE:
        raise error("", f"{len(text):,} bytes are no {what}: at most {MAX_SIZE:,} are read")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if is_lfs_pointer(text):
            raise error("", LFS_POINTER)
        if text.startswith("\ufeff"):
            raise error("", "begins with a byte order mark", "Save it as UTF-8 without one.")
        faults: list[_Fault] = []
        content = _decoder(faults, what).decode(text)
        _refuse_bulk(content, what)
        problems = list(_located(content)) if faults or _MAYBE_SURROGATE.search(text) else []
    except json.JSONDecodeError as found:
        where = f"line {found.lineno}, column {found.colno}"
        raise error("", f"not JSON: {found.msg.removesuffix(' at')} at {where}", fix) from None
    except UnicodeDecodeError as found:
        fix = fix and "The file may be damaged."
        raise error("", f"not UTF-8: {found.reason} at byte {found.start:,}", fix) from None
    except RecursionError:
        raise error("", f"nested too deeply to be {what}") from None
    if problems:
        raise MetadataError(problems)
    if not isinstance(content, dict):
        raise error("", f"expected a JSON object, got a {type(content).__name__}")
    return content


def error(path: str, text: str, fix: str = "") -> MetadataError:
    """A `MetadataError` with one problem."""
    return MetadataError([Problem.about(path, text, fix)])


def is_lfs_pointer(text: bytes | str) -> bool:
    """True if the content of a file, or its first bytes, is what Git has in place of a file that LFS stores."""
    start = text[: len(_LFS_START)]
    return (start.encode("utf-8", "replace") if isinstance(start, str) else start) == _LFS_START


def path_part(name: object) -> str:
    """A key as a part of a path: printable, and not too long."""
    text = str(name)
    text = text if text.isprintable() else show(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _decoder(faults: list[_Fault], what: str) -> json.JSONDecoder:
    def fault(text: str) -> _Fault:
        faults.append(_Fault(text))
        return faults[-1]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            seen: set[str] = set()
            content |= {name: fault("stands there twice") for name, _ in pairs if name in seen or seen.add(name)}
        return content

    def integer(text: str) -> Any:
        return int(text) if len(text) < 20 else fault(f"a whole number of {len(text)} digits is no {what}")

    def number(text: str) -> Any:
        value = float(text)
        return value if math.isfinite(value) else fault(f"{path_part(text)} is too large for a number")

    def constant(text: str) -> Any:
        return fault(f"{text} is not JSON. Numbers that are not finite are written as strings")

    return json.JSONDecoder(object_pairs_hook=unique, parse_int=integer, parse_float=number, parse_constant=constant)


def _located(value: Any) -> Iterator[Problem]:
    if isinstance(value, _Fault):
        yield Problem.about("", str(value))
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield Problem.about("", f"{show(value)} holds half of a character (a lone surrogate), which is no text")
    elif isinstance(value, dict):
        for name, item in value.items():
            found = (*_located(name), *_located(item))
            yield from (problem.at(path_part(name)) for problem in found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from (problem.at(f"[{index}]") for problem in _located(item))


def _refuse_bulk(content: Any, what: str) -> None:
    """Refuse what is deeper or larger than metadata, before anything looks closer."""
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        level = [item for value in level if isinstance(value, dict | list) for item in _items(value)]
        count += len(level)
        if count > MAX_VALUES:
            raise error("", f"more than {MAX_VALUES:,} values are no {what}")
        if not level:
            return
    raise RecursionError


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
