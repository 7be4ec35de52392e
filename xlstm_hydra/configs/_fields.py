"""Effects of config fields, recorded in dataclass metadata: what changes if the value of a field changes."""

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
"""Kinds of effects, from the strongest to the weakest. parameters: names or shapes of parameters change. numerics:
losses change. layout: devices, memory or time change, but losses are equal up to rounding. bookkeeping: only the output
and saved files change."""

_KEY = "xlstm_hydra"


@dataclass(frozen=True)
class Effect:
    """Effect of changing a field. A field that declares no effect has the strongest one, which is the default."""

    kind: str = PARAMETERS
    """Kind of the effect: a key of `KINDS`."""

    compiled: bool = True
    """True if a change requires recompilation of the step."""

    traced: bool = False
    """True for a number that is passed to the compiled step as an argument. Only a change from or to 0 or null requires
    recompilation."""


def affects(kind: str, *, compiled: bool = True, traced: bool = False) -> Mapping[str, Effect]:
    """Return the metadata of a field: `lr: float = field(default=1e-3, metadata=affects(NUMERICS, traced=True))`.

    Args:
        kind: kind of the effect, a key of `KINDS`.
        compiled: True if the compiled step depends on the value. Ignored for bookkeeping.
        traced: True if the value is passed to the compiled step as an argument."""
    assert kind in KINDS and (compiled or not traced)
    return {_KEY: Effect(kind, compiled and not traced and kind != BOOKKEEPING, traced)}


def effect_of(config_class: type, name: str) -> Effect:
    """Return the effect of a field, as declared by the first class in the method resolution order that declares it. A
    subclass can therefore change the default of a field without repeating its effect."""
    own = (cls.__dict__.get("__dataclass_fields__", {}).get(name) for cls in config_class.__mro__)
    return next((field.metadata[_KEY] for field in own if field is not None and _KEY in field.metadata), Effect())


@functools.cache
def effects_of(config_class: type) -> Mapping[str, Effect]:
    """Return the effect of every field of a config class, by name."""
    return {field.name: effect_of(config_class, field.name) for field in fields(config_class)}
