"""What another value of a field changes, as it stands in the metadata of the field."""

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
"""How much a difference matters, the most first: other names or shapes of parameters; other losses; other devices,
memory or time with the same losses up to rounding; only what is shown and kept."""

_KEY = "xlstm_hydra"


@dataclass(frozen=True)
class Effect:
    """What another value of a field changes. The default is that of a field that does not say: everything."""

    kind: str = PARAMETERS
    """How much it matters: a key of `KINDS`."""

    compiled: bool = True
    """True if another value is another compiled step."""

    traced: bool = False
    """True for a number that the compiled step has as an argument. Only whether it is 0 or null is compiled in."""


def affects(kind: str, *, compiled: bool = True, traced: bool = False) -> Mapping[str, Effect]:
    """Return the metadata of a field: `lr: float = field(default=1e-3, metadata=affects(NUMERICS, traced=True))`.

    Args:
        kind: how much another value matters, a key of `KINDS`.
        compiled: whether the compiled step depends on it. Bookkeeping never does.
        traced: whether the compiled step has it as an argument.
    """
    assert kind in KINDS and (compiled or not traced)
    return {_KEY: Effect(kind, compiled and not traced and kind != BOOKKEEPING, traced)}


def effect_of(config_class: type, name: str) -> Effect:
    """Return what a field changes, as the nearest class in the order of inheritance says: a subclass may give a field
    another default without saying it again."""
    own = (cls.__dict__.get("__dataclass_fields__", {}).get(name) for cls in config_class.__mro__)
    return next((field.metadata[_KEY] for field in own if field is not None and _KEY in field.metadata), Effect())


@functools.cache
def effects_of(config_class: type) -> Mapping[str, Effect]:
    """Return what each field of a config class changes, by its name."""
    return {field.name: effect_of(config_class, field.name) for field in fields(config_class)}
