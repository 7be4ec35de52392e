"""Convert typed values to plain JSON values.

A value gets a `_type_` tag only if its annotation does not determine its type: in a union, under `Any`, or for a
subclass of the declared class.
"""

from __future__ import annotations

import enum
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, show

from ._decode import PATHS, read
from ._hints import (
    MAPPINGS,
    PAIRS,
    TAG,
    dotted,
    hints,
    is_config,
    is_loose,
    item_hint,
    kind,
    mapping_hints,
    members,
    strip,
    type_name,
    variant,
)
from ._scalars import Flags, dtype_name, unwrap


def encode_fields(config: Any) -> dict[str, Any]:
    """Return a dataclass as a dict of plain JSON values."""
    return {name: _at(name, encode, getattr(config, name), hint) for name, hint in hints(type(config)).items()}


def encode(value: Any, hint: Any = Any) -> Any:
    """Return a value as plain JSON. `decode(hint, encode(value, hint))` restores it.

    Raises:
        ConfigError: a part of the value has no plain form (a lambda, an array, bytes). The message contains the path of
            that part.
    """
    hint = strip(hint)
    if kind(hint) is typing.Union:
        return _encode_union(value, hint)
    value = unwrap(value)
    if is_config(value):
        return _encode_config(value, kind(hint))
    plain = _plain(value, hint)
    tag = _tag(value) if is_loose(hint) else None
    return {TAG: tag, "value": plain} if tag else plain


def _at(step: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except ConfigError as error:
        raise ConfigError(problem.at(step) for problem in error.problems) from None


def _encode_config(value: Any, declared: Any) -> dict[str, Any]:
    plain = encode_fields(value)
    is_known = is_dataclass(declared) and variant(declared, plain)[0] is type(value)
    return plain if is_known else {TAG: dotted(type(value)), **plain}


def _encode_union(value: Any, hint: Any) -> Any:
    options = members(hint)
    if value is None or len(options) == 1:
        return encode(value, options[0]) if value is not None else None
    if is_config(value):
        objects = [member for member in options if is_dataclass(kind(member)) or kind(member) in MAPPINGS]
        return encode(value, objects[0]) if len(objects) == 1 else {TAG: dotted(type(value)), **encode_fields(value)}
    for member in options:
        plain = encode(value, member)
        if _gives_back(member, plain, value):
            return plain if _gives_back(hint, plain, value) else {TAG: type_name(member), "value": plain}
    if unwrap(value) is not value:
        return _encode_union(unwrap(value), hint)
    # The value is not exactly of any member type: an int for a float, a list for a tuple.
    readable = (plain for plain in (encode(value, member) for member in options) if not read(hint, plain, Flags())[1])
    return next(readable, encode(value))


def _gives_back(hint: Any, plain: Any, value: Any) -> bool:
    got, problems = read(hint, plain, Flags())
    return not problems and _identical(got, value)


def _tag(value: Any) -> str | None:
    """Return the tag for the type of a value under `Any`, or None if JSON preserves the type."""
    if isinstance(value, enum.Enum):
        return dotted(type(value))
    if isinstance(value, float):
        return None if math.isfinite(value) else "float"
    if isinstance(value, PurePath):
        return next(name for name, cls in PATHS.items() if isinstance(value, cls))
    if dtype_name(value) is not None:
        return "dtype"
    return next((cls.__name__ for cls in (tuple, set, frozenset) if isinstance(value, cls)), None)


def _plain(value: Any, hint: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, enum.Enum):
        by_value = isinstance(value, enum.Flag) or hint in (int, float, str)
        return _plain(value.value, hint) if by_value else value.name
    if isinstance(value, int | float | str):
        return _plain_number(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _encode_mapping(value, hint)
    if isinstance(value, list | tuple):
        return [_at(f"[{index}]", encode, item, item_hint(hint, index)) for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((encode(item, item_hint(hint, 0)) for item in value), key=repr)
    if (name := dtype_name(value)) is not None:
        return name
    if isinstance(value, type) or "<" not in getattr(value, "__qualname__", "<"):
        return dotted(value)
    raise ConfigError([Problem.about("", f"a {type(value).__name__} cannot be stored as JSON: {show(value)}")])


def _plain_number(value: float | str) -> Any:
    """Convert an int, float or str, including non-finite floats and instances of subclasses."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _encode_mapping(value: Mapping[Any, Any], hint: Any) -> dict[str, Any]:
    key_hint, item_hint = mapping_hints(hint)
    keys = [encode(key, key_hint) for key in value]
    items = [_at(str(key), encode, item, item_hint) for key, item in value.items()]
    names = [str(key) for key in keys]
    texts = all(_gives_back(key_hint, name, key) for name, key in zip(names, value, strict=True))
    if texts and len({*names, TAG}) == len(names) + 1:
        return dict(zip(names, items, strict=True))
    return {TAG: PAIRS, "value": [list(pair) for pair in zip(keys, items, strict=True)]}


# ---- comparison


def same(left: Any, right: Any, hint: Any = Any) -> bool:
    """True if two values are encoded the same way: NaN equals NaN, and a class equals its dotted path."""
    try:
        return encode(left, hint) == encode(right, hint)
    except ConfigError:
        return _identical(left, right)


def same_fields(left: Any, right: Any) -> bool:
    """True if `same` holds for every field of two dataclass instances that is not excluded with `compare=False`."""
    annotations = hints(type(left))
    return all(
        same(getattr(left, field.name, None), getattr(right, field.name, None), annotations.get(field.name, Any))
        for field in fields(left)
        if field.compare
    )


def _identical(left: Any, right: Any) -> bool:
    """True if type and value are equal. NaN equals NaN, and all spellings of a dtype are equal."""
    if dtype_name(left) is not None:
        return dtype_name(left) == dtype_name(right)
    if left is right or type(left) is not type(right):
        return left is right
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_identical, left, right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_identical(left[key], right[key]) for key in left)
    if is_config(left):
        return same_fields(left, right)
    return bool(left == right) or bool(left != left and right != right)
