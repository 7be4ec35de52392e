"""Configs of which some values are missing or could not be read, so that the rules about the others can be checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, independent

from ._hints import hints, is_config, kind, required

_STAND_INS = {bool: False, int: 1, float: 1.0, str: "x", list: []}
"""Values in the place of those that are required and could not be read, by type."""


def unchecked(cls: Any, values: Mapping[str, Any]) -> Any:
    """An instance that has not passed its own rules, so that the rules between groups can still be tried."""
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
    """An instance like `unchecked`, with stand-ins for the required values that are missing."""
    types = {name: kind(hints(cls)[name]) for name in required(cls)}
    missing = {name: type_ for name, type_ in types.items() if name not in values and type_ in _STAND_INS}
    return unchecked(cls, {name: type_(_STAND_INS[type_]) for name, type_ in missing.items()} | dict(values))


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of the fields of a dataclass and of those that it holds."""
    for name in hints(type(config)) if is_config(config) else ():
        yield f"{prefix}{name}"
        yield from keys_of(getattr(config, name, None), f"{prefix}{name}.")


def other_problems(config: Any, known: Sequence[Problem]) -> list[Problem]:
    """The rules of its own that a partial config breaks, without those that follow from a known problem."""
    try:
        getattr(config, "__post_init__", bool)()
    except ConfigError as error:
        return independent(error.problems, known)
    except (AttributeError, ValueError, TypeError, ArithmeticError):
        pass  # of a class of the user's, which does not expect a value that is missing
    return []
