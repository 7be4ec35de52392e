"""JSON in the folder of a sweep, which may be damaged or come from someone else: read strictly, as typed values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field
from datetime import datetime
from typing import Any

from xlstm_hydra.formats import parse
from xlstm_hydra.problems import ConfigError, nearest, show

MAX_JOBS = 10**9
"""No sweep has so many."""

_OR_NULL = " | None"

_CLUSTER_JOB = re.compile(r"[0-9]\w*([_+.]\w+)*", re.ASCII)


class Damaged(ValueError):
    """Text that no sweep has written. The message says what is wrong with it, in one line."""


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Args:
        text: the text.
        what: it should be, for the message.

    Raises:
        Damaged: it is not JSON, or not an object.
    """
    try:
        return parse(text, what, fix="")
    except ConfigError as error:
        text = "; ".join(str(problem) for problem in error.problems)
        raise Damaged(text.replace(" at line 1, column", " at column")) from None


def check_fields(content: Mapping[str, Any], known: Iterable[Field[Any]]) -> None:
    """Make sure that an object has the fields of a dataclass, with values of their types.

    Raises:
        Damaged: with every field that is unknown, missing or of another type.
    """
    by_name = {one.name: one for one in known}
    faults = [f"{name}: no such field. {nearest(name, by_name)}" for name in content if name not in by_name]
    for name, one in by_name.items():
        if name in content:
            faults += _faults(name, str(one.type), content[name])
        elif one.default is MISSING and one.default_factory is MISSING:
            faults.append(f"{name}: missing")
    if faults:
        raise Damaged("; ".join(faults))


def _faults(name: str, type_name: str, value: Any) -> Iterator[str]:
    check, expected = _SPECIAL.get(name) or _KINDS[type_name.removesuffix(_OR_NULL)]
    is_optional = type_name.endswith(_OR_NULL)
    if not (check(value) or (is_optional and value is None)):
        yield f"{name}: expected {expected}{' or null' if is_optional else ''}, got {show(value)}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return _is_text(value) and "\0" not in value


def _is_time(value: Any) -> bool:
    try:
        return _is_text(value) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


Kind = tuple[Callable[[Any], bool], str]
"""True for a value of a type, and the name of the type for messages."""

_KINDS: dict[str, Kind] = {
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (_is_number, "a number"),
    "str": (_is_text, "a string"),
    "list[str]": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of strings"),
    "dict[str, float | None]": (
        lambda value: isinstance(value, dict) and all(one is None or _is_number(one) for one in value.values()),
        "names with numbers",
    ),
}
"""By the annotation of a field, without `| None`."""

_SPECIAL: dict[str, Kind] = {
    "job": (lambda value: type(value) is int and 0 <= value < MAX_JOBS, "the number of a job"),
    "folder": (_is_path, "a path"),
    "checkpoint": (_is_path, "a path"),
    "started": (_is_time, "a time"),
    "ended": (_is_time, "a time"),
    "cluster_job": (lambda value: _is_text(value) and bool(_CLUSTER_JOB.fullmatch(value)), "the number of a SLURM job"),
}
"""By the name of a field."""
