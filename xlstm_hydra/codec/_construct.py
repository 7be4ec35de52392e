"""Type checks and conversions for configs that are constructed in Python."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from xlstm_hydra.problems import ConfigError, Problem

from ._decode import collect
from ._hints import hints, is_loose, item_hint, kind, members, strip
from ._partial import other_problems, partial
from ._scalars import Flags

_LOSSLESS = Flags(lossless=True)


def types_first(post_init: Callable[..., None]) -> Callable[..., None]:
    """Decorate a `__post_init__` so that the types of all fields are checked and converted before it runs.

    If it calls the decorated `__post_init__` of a base class, the types are checked only once, by the outermost call.
    """

    @functools.wraps(post_init)
    def __post_init__(self: Any, *args: Any) -> None:
        if type(self).__post_init__ is __post_init__ and (problems := convert_fields(self)):
            raise ConfigError([*problems, *_rules_of_others(self, problems)])
        post_init(self, *args)

    return __post_init__


def _rules_of_others(config: Any, wrong: list[Problem]) -> list[Problem]:
    """Return the broken rules that do not depend on a field whose value has a wrong type."""
    keys = {re.split(r"[.\[]", key)[0] for problem in wrong for key in problem.keys}
    values = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(config)}
    rest = partial(type(config), {name: value for name, value in values.items() if name not in keys})
    return other_problems(rest, wrong) if not convert_fields(rest) else []


def convert_fields(config: Any) -> list[Problem]:
    """Convert the value of every field to its annotated type if no information is lost: 3 to 3.0, a tuple to a list.
    Return a problem for every value that cannot be converted."""
    problems: list[Problem] = []
    for name, hint, plain, items in _checks(type(config)):
        value = getattr(config, name, None)
        if type(value) in plain or (items and type(value) is list and items.issuperset(map(type, value))):
            continue
        converted, found = collect(hint, value, _LOSSLESS)
        problems += [problem.at(name) for problem in found]
        if not found and converted is not value:
            setattr(config, name, converted)
    return problems


class _Check(NamedTuple):
    """Type check of a field."""

    name: str
    hint: Any
    plain: frozenset[Any]
    """Types of values that are accepted without further checks."""
    items: frozenset[Any]
    """Types of the elements of lists that are accepted without further checks."""


@functools.cache
def _checks(cls: type) -> list[_Check]:
    """Return the checks of all fields whose annotation is more specific than `Any`."""
    named = {name: (hint, _parts(hint)) for name, hint in hints(cls).items()}
    return [
        _Check(name, hint, _plain(parts), _plain(item_hint(part, 0) for part in parts if kind(part) is list))
        for name, (hint, parts) in named.items()
        if not any(map(is_loose, parts))
    ]


def _plain(parts: Iterable[Any]) -> frozenset[Any]:
    return frozenset(part for part in parts if part in (bool, int, float, str, type(None)))


def _parts(hint: Any) -> list[Any]:
    """Return the members of a union, including None. For any other annotation, return a list that contains only the
    annotation."""
    hint = strip(hint)
    if kind(hint) is not typing.Union:
        return [hint]
    return [*members(hint), *([type(None)] if type(None) in typing.get_args(hint) else [])]
