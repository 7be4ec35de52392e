"""Types of values in the metadata of other programs. Each type is a function that reads a recorded value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xlstm_hydra.codec import Instance, ReprError, class_in, parse_repr

_DTYPE_PREFIXES = ("", "jax.numpy", "jnp", "numpy", "jax._src.numpy.scalar_types", "ml_dtypes")


class WrongType(Exception):  # noqa: N818 (it never leaves this package)
    """A recorded value has the wrong type. The message names the expected type."""


Kind = Callable[[Any], Any]
"""Function that reads a recorded value, or raises `WrongType`."""


def integer(data: Any) -> int:
    """Read a whole number."""
    if type(data) is int or (type(data) is float and data.is_integer() and abs(data) < 2**53):
        return int(data)
    raise WrongType("a whole number")


def number(data: Any) -> float:
    """Read a finite number."""
    if type(data) is int or (type(data) is float and math.isfinite(data)):
        return float(data)
    raise WrongType("a number")


def boolean(data: Any) -> bool:
    """Read a Boolean."""
    if isinstance(data, bool):
        return data
    raise WrongType("true or false")


def string(data: Any) -> str:
    """Read a string."""
    if isinstance(data, str):
        return data
    raise WrongType("a string")


def dtype(data: Any) -> str:
    """Read the name of a floating-point type: `bfloat16`, `jax.numpy.bfloat16` or `<class 'jax.numpy.bfloat16'>`."""
    module, _, name = _named(data).rpartition(".")
    if module in _DTYPE_PREFIXES and name.isidentifier() and name != "None":
        return name
    raise WrongType("the name of a data type such as bfloat16")


def class_path(data: Any) -> str:
    """Read the dotted path of a class: `a.B` or `<class 'a.B'>`."""
    name = _named(data)
    if all(part.isidentifier() for part in name.split(".")):
        return name
    raise WrongType("the dotted path of a class")


def _named(data: Any) -> str:
    """Return the dotted path in a string such as `a.B` or `<class 'a.B'>`. Empty if the data is not a string."""
    name = data if isinstance(data, str) else ""
    return class_in(name) or name


def null(data: Any) -> None:
    """Read null, which may be written as 'None'."""
    if data is not None and data != "None":
        raise WrongType("null")


def anything(data: Any) -> Any:
    """Read any value."""
    return data


def optional(kind: Kind) -> Kind:
    """Return a type that also allows null, which some versions wrote as 'None'."""

    def read(data: Any) -> Any:
        if data is None or (isinstance(data, str) and data == "None"):
            return None
        try:
            return kind(data)
        except WrongType as wrong:
            raise WrongType(f"{wrong} or null") from None

    return read


def list_of(kind: Kind) -> Kind:
    """Return a type that reads a list or tuple, or the `repr` of one, with elements of type `kind`."""

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
    """Read a JSON object, or the `repr` of a dict or dataclass."""
    data = from_repr(data)
    if isinstance(data, Instance):
        return data.fields
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):
        return data
    raise WrongType("an object")


def classes(data: Any) -> dict[str, str]:
    """Read a JSON object whose values are dotted paths of classes."""
    return {name: class_path(item) for name, item in mapping(data).items()}


def from_repr(data: Any) -> Any:
    """Parse a string that is the `repr` of a list, a dict or a dataclass. Return any other value unchanged."""
    if not isinstance(data, str) or not data.rstrip().endswith((")", "]", "}")):
        return data
    try:
        return parse_repr(data)
    except ReprError as error:
        raise WrongType(f"a readable value ({error})") from None
