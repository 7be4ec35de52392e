"""Common rules: value ranges, allowed values, and fields without effect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from typing import Any

from xlstm_hydra.problems import Problem, either, near_name, show


def one_of(config: Any, key: str, options: Iterable[str], *, optional: bool = False) -> Iterator[Problem]:
    """Check that a field has one of the values `options` (or null, if `optional`)."""
    value, options = getattr(config, key), list(options)
    if value in options or (optional and value is None):
        return
    choices = either([*options, "null"] if optional else options)
    near = near_name(value, options)
    hint = f" (did you mean {near}?)" if near else ""
    yield Problem({key: value}, "not a known value", f"Choose {choices}{hint}.")


def at_least(config: Any, low: float, *keys: str, above: bool = False) -> Iterator[Problem]:
    """Check that the fields `keys` are finite and `>= low` (`> low` if `above`). Fields that are null are skipped."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not (low < value < math.inf if above else low <= value < math.inf):
            bound = f"greater than {low}" if above else f"{low} or more"
            yield Problem({key: value}, f"must be {bound}{'' if math.isfinite(value) else ' and finite'}")


def below(config: Any, high: float, *keys: str, inclusive: bool = False) -> Iterator[Problem]:
    """Check that the fields `keys` are `< high` (`<= high` if `inclusive`). NaN is not reported here but by
    `at_least`."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and (value > high if inclusive else value >= high):
            yield Problem({key: value}, f"must be {'at most' if inclusive else 'less than'} {high}")


def own_name(config: Any) -> Iterator[Problem]:
    """Check that the field `name`, which identifies the class in plain data, has the value that the class defines."""
    name = getattr(type(config), "name", None)
    if isinstance(name, str) and config.name != name:
        yield Problem({"name": config.name}, f"must be {name} for {type(config).__name__}", f"Set {{name}}={name}.")


def unused(config: Any, key: str, because: str, value: Any, fix: str = "") -> Iterator[Problem]:
    """Check that the field `key` is left at its default. Call this if the field has no effect because the field
    `because` has the value `value`."""
    known = next(field for field in fields(config) if field.name == key)
    default = known.default if known.default_factory is MISSING else known.default_factory()
    if getattr(config, key) != default:
        given = {key: getattr(config, key), because: value}
        rule = f"has no effect with this {{{because}}}"
        yield Problem(given, rule, fix or f"Leave {{{key}}} at {show(default)}.", unused={key: default})
