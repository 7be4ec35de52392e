"""Strict parsing of a JSON object. Every error is a `MetadataError`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, show

MAX_SIZE = 16 * 2**20
"""Maximum size of metadata in bytes (or characters). The largest models need less than 100 kB."""

MAX_DEPTH = 64
"""Maximum nesting depth of metadata."""

MAX_VALUES = 50_000
"""Maximum number of objects, lists and scalars in metadata: enough for ten thousand parameter arrays, and still fast to
read."""

LFS_POINTER = "the file is only a Git LFS pointer. Run git lfs pull in its repository to download it"
"""Message for a file that Git LFS has not downloaded."""

_LFS_START = b"version https://git-lfs.github.com/spec/"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAYBE_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
"""Matches every text that contains a lone surrogate, but also some texts with valid surrogate pairs."""


class MetadataError(ConfigError):
    """Metadata cannot be read. The problems contain the paths of all wrong fields."""


class _Fault(str):
    """Placeholder for an invalid JSON value, with the error message. Reported once the path of the value is known."""


def parse(text: str | bytes, what: str = "metadata", fix: str = "The file may be cut off.") -> dict[str, Any]:
    """Parse a text as a JSON object.

    Args:
        text: the JSON text.
        what: name of the expected content, for messages.
        fix: the suggested fix if the text is not JSON.

    Raises:
        MetadataError: the text is not a JSON object, or a part of it is invalid JSON.
    """
    if not isinstance(text, str | bytes):
        raise error("", f"expected text, got a {type(text).__name__}", "Pass the content of the file.")
    if len(text) > MAX_SIZE:
        raise error("", f"too large for {what}: {len(text):,} bytes, at most {MAX_SIZE:,} are allowed")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if is_lfs_pointer(text):
            raise error("", LFS_POINTER)
        if text.startswith("\ufeff"):
            raise error("", "begins with a byte order mark", "Save the file as UTF-8 without a byte order mark.")
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
    """Return a `MetadataError` with one problem."""
    return MetadataError([Problem.about(path, text, fix)])


def is_lfs_pointer(text: bytes | str) -> bool:
    """True if the content of a file, or its first bytes, is a Git LFS pointer."""
    start = text[: len(_LFS_START)]
    return (start.encode("utf-8", "replace") if isinstance(start, str) else start) == _LFS_START


def path_part(name: object) -> str:
    """Return a key as part of a path: without unprintable characters, and at most 80 characters long."""
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
            content |= {name: fault("duplicate key") for name, _ in pairs if name in seen or seen.add(name)}
        return content

    def integer(text: str) -> Any:
        return int(text) if len(text) < 20 else fault(f"a whole number of {len(text)} digits is too long for {what}")

    def number(text: str) -> Any:
        value = float(text)
        return value if math.isfinite(value) else fault(f"{path_part(text)} is too large for a number")

    def constant(text: str) -> Any:
        return fault(f"{text} is not JSON. Numbers that are not finite must be strings")

    return json.JSONDecoder(object_pairs_hook=unique, parse_int=integer, parse_float=number, parse_constant=constant)


def _located(value: Any) -> Iterator[Problem]:
    if isinstance(value, _Fault):
        yield Problem.about("", str(value))
    elif isinstance(value, str) and _SURROGATE.search(value):
        yield Problem.about("", f"{show(value)} contains a lone surrogate (half a character)")
    elif isinstance(value, dict):
        for name, item in value.items():
            found = (*_located(name), *_located(item))
            yield from (problem.at(path_part(name)) for problem in found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from (problem.at(f"[{index}]") for problem in _located(item))


def _refuse_bulk(content: Any, what: str) -> None:
    """Reject content that is nested too deeply or has too many values. Called before any other check."""
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        level = [item for value in level if isinstance(value, dict | list) for item in _items(value)]
        count += len(level)
        if count > MAX_VALUES:
            raise error("", f"too large for {what}: more than {MAX_VALUES:,} values")
        if not level:
            return
    raise RecursionError


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
