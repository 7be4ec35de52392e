"""Partial configs: some values are missing or unreadable, but rules about the other values can be checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, independent

from ._hints import hints, is_config, kind, required

_PLACEHOLDERS = {bool: False, int: 1, float: 1.0, str: "x", list: []}
"""Placeholders for required values that could not be read, by type."""


def unchecked(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return an instance without checking the rules of its class, so that the rules between groups can be checked even
    if the class would reject the values."""
    config = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in values:
            object.__setattr__(config, field.name, values[field.name])
        elif field.default is not dataclasses.MISSING:
            object.__setattr__(config, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(config, field.name, field.default_factory())
    return config


def partial(cls: Any, values: Mapping[str, Any]) -> Any:
    """Like `unchecked`, but with placeholders for missing required values."""
    types = {name: kind(hints(cls)[name]) for name in required(cls)}
    missing = {name: type_ for name, type_ in types.items() if name not in values and type_ in _PLACEHOLDERS}
    return unchecked(cls, {name: type_(_PLACEHOLDERS[type_]) for name, type_ in missing.items()} | dict(values))


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all fields of a dataclass and of its nested dataclasses."""
    for name in hints(type(config)) if is_config(config) else ():
        yield f"{prefix}{name}"
        yield from keys_of(getattr(config, name, None), f"{prefix}{name}.")


def other_problems(config: Any, known: Sequence[Problem]) -> list[Problem]:
    """Return the broken rules of a partial config, except rules that depend on a value with a known problem."""
    try:
        getattr(config, "__post_init__", bool)()
    except ConfigError as error:
        return independent(error.problems, known)
    except (AttributeError, ValueError, TypeError, ArithmeticError):
        pass  # a user's class that does not expect missing values
    return []
