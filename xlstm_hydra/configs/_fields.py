"""Effect of a config field, recorded in its dataclass metadata: what changes when its value changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields

PARAMETERS, NUMERICS, LAYOUT, BOOKKEEPING = "parameters", "numerics", "layout", "bookkeeping"

KINDS = {
    PARAMETERS: "changes the parameters",
    NUMERICS: "changes numerics",
    LAYOUT: "changes only layout or speed",
    BOOKKEEPING: "bookkeeping",
}
"""Kinds of effects, from the strongest to the weakest: on names or shapes of parameters; on losses; on devices, memory
or time, with equal losses up to rounding; on output and saved files only."""

_KEY = "xlstm_hydra"


@dataclass(frozen=True)
class Effect:
    """Effect of a change of a field. The default, used for fields that declare none, is the strongest effect."""

    kind: str = PARAMETERS
    """Kind of the effect, a key of `KINDS`."""

    compiled: bool = True
    """True if a change requires a new compilation of the step."""

    traced: bool = False
    """True for a number that is an argument of the compiled step. Only a change from or to 0 or null needs a
    compilation."""


def affects(kind: str, *, compiled: bool = True, traced: bool = False) -> Mapping[str, Effect]:
    """Return the metadata of a field: `lr: float = field(default=1e-3, metadata=affects(NUMERICS, traced=True))`.

    Args:
        kind: kind of the effect, a key of `KINDS`.
        compiled: True if the compiled step depends on the field. Ignored for bookkeeping.
        traced: True if the field is an argument of the compiled step.
    """
    assert kind in KINDS and (compiled or not traced)
    return {_KEY: Effect(kind, compiled and not traced and kind != BOOKKEEPING, traced)}


def effect_of(config_class: type, name: str) -> Effect:
    """Return the effect of a field, declared by the nearest class in the order of inheritance: a subclass may change
    the default of a field without repeating its effect."""
    own = (cls.__dict__.get("__dataclass_fields__", {}).get(name) for cls in config_class.__mro__)
    return next((field.metadata[_KEY] for field in own if field is not None and _KEY in field.metadata), Effect())


@functools.cache
def effects_of(config_class: type) -> Mapping[str, Effect]:
    """Return the effect of every field of a config class, by name."""
    return {field.name: effect_of(config_class, field.name) for field in fields(config_class)}
