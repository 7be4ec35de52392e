"""The types of the values in a foreign format: each reads a recorded value as what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xlstm_hydra.codec import Instance, ReprError, class_in, parse_repr

_DTYPE_PREFIXES = ("", "jax.numpy", "jnp", "numpy", "jax._src.numpy.scalar_types", "ml_dtypes")


class WrongType(Exception):  # noqa: N818 (it never leaves this package)
    """A value of another type than the field's, with what was expected."""


Kind = Callable[[Any], Any]
"""Reads a recorded value as what it stands for, or raises `WrongType`."""


def integer(data: Any) -> int:
    """A whole number."""
    if type(data) is int or (type(data) is float and data.is_integer() and abs(data) < 2**53):
        return int(data)
    raise WrongType("a whole number")


def number(data: Any) -> float:
    """A finite number."""
    if type(data) is int or (type(data) is float and math.isfinite(data)):
        return float(data)
    raise WrongType("a number")


def boolean(data: Any) -> bool:
    """True or false."""
    if isinstance(data, bool):
        return data
    raise WrongType("true or false")


def string(data: Any) -> str:
    """A word."""
    if isinstance(data, str):
        return data
    raise WrongType("a string")


def dtype(data: Any) -> str:
    """The name of a floating-point type: `bfloat16`, `jax.numpy.bfloat16` or `<class 'jax.numpy.bfloat16'>`."""
    module, _, name = _named(data).rpartition(".")
    if module in _DTYPE_PREFIXES and name.isidentifier() and name != "None":
        return name
    raise WrongType("the name of a type such as bfloat16")


def class_path(data: Any) -> str:
    """The dotted path of a class: `a.B` or `<class 'a.B'>`."""
    name = _named(data)
    if all(part.isidentifier() for part in name.split(".")):
        return name
    raise WrongType("the dotted path of a class")


def _named(data: Any) -> str:
    """The dotted path in a text, which may be that of a class; nothing where there is no text."""
    name = data if isinstance(data, str) else ""
    return class_in(name) or name


def null(data: Any) -> None:
    """Nothing: null or 'None'."""
    if data is not None and data != "None":
        raise WrongType("null")


def anything(data: Any) -> Any:
    """Any value at all."""
    return data


def optional(kind: Kind) -> Kind:
    """Also null, which was written as 'None' for some time."""

    def read(data: Any) -> Any:
        if data is None or (isinstance(data, str) and data == "None"):
            return None
        try:
            return kind(data)
        except WrongType as wrong:
            raise WrongType(f"{wrong} or null") from None

    return read


def list_of(kind: Kind) -> Kind:
    """A list or a tuple, or its `repr`."""

    def read(data: Any) -> list[Any]:
        data = from_repr(data)
        if not isinstance(data, list | tuple):
            raise WrongType("a list")
        try:
            return [kind(item) for item in data]
        except WrongType as wrong:
            raise WrongType(f"a list, each element {wrong}") from None

    return read


def mapping(data: Any) -> dict[str, Any]:
    """An object, or the `repr` of a dict or of a dataclass."""
    data = from_repr(data)
    if isinstance(data, Instance):
        return data.fields
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):
        return data
    raise WrongType("an object")


def classes(data: Any) -> dict[str, str]:
    """Names with the dotted paths of classes."""
    return {name: class_path(item) for name, item in mapping(data).items()}


def from_repr(data: Any) -> Any:
    """What a string stands for that is the `repr` of a list, a dict or a dataclass; anything else as it is."""
    if not isinstance(data, str) or not data.rstrip().endswith((")", "]", "}")):
        return data
    try:
        return parse_repr(data)
    except ReprError as error:
        raise WrongType(f"a value that can be read ({error})") from None
