"""Convert plain JSON values to scalars: numbers, strings, paths, enums, dtypes, classes. Every reader returns `MISSING`
if the value cannot be converted."""

from __future__ import annotations

import enum
import inspect
import math
import sys
import typing
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ._hints import kind, registered
from ._reprs import class_in

_DTYPE_MODULES = ("", "numpy", "np", "jax.numpy", "jnp", "ml_dtypes", "jax._src.numpy.scalar_types")

_EXACT = 2**53
"""Above this limit, not every integer can be represented exactly as a float."""

_PLAIN = {type(None), bool, int, float, str, list, dict, tuple}

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
"""Marker returned instead of a value if none could be read."""


@dataclass(frozen=True)
class Flags:
    """Options of `ConfigDict.from_dict`, applied at every level."""

    strict_classnames: bool = False
    """Accept classes and dtypes only in the form `<class 'a.B'>`."""

    ignore_unknown: bool = True
    """Ignore fields that a class does not have."""

    none_to_zero: bool = False
    """Read None as 0 where an int is expected."""

    exact: bool = False
    """Allow no conversions (such as `"5"` to 5). Used to choose between the members of a union."""

    as_written: bool = False
    """Accept only the output of `ConfigDict.to_dict`: all fields, and no conversions except those of JSON itself."""

    lossless: bool = False
    """Allow only conversions without loss of information (3 to 3.0, 3.0 to 3, a tuple to a list), and none from
    strings. Used when a config is constructed in Python."""

    attempts: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Cache of the results of reading union members. Without it, nested unions would take exponential time."""

    @property
    def converts(self) -> bool:
        """True if `"5"` may be converted to 5, and a `repr` to its value."""
        return not (self.exact or self.as_written or self.lossless)


def unwrap(value: Any) -> Any:
    """Convert a NumPy or JAX scalar to a Python number. Return any other value unchanged."""
    if type(value) in _PLAIN or getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    inner = value.item()
    return float(inner) if type(inner) is type(value) else inner  # np.longdouble has no Python counterpart


def read_scalar(hint: Any, data: Any, flags: Flags) -> Any:
    """Read a scalar of the annotated type."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind(hint) is numpy.dtype:
        return read_dtype(data, flags)
    if (scalar_type := numpy_type(hint)) is not None:
        return _read_numpy_scalar(scalar_type, data, flags)
    if hint in _READERS:
        return _READERS[hint](data, flags)
    if not isinstance(hint, type):
        return _read_unknown(hint, data) if flags.lossless else MISSING
    if issubclass(hint, enum.Enum):
        return _read_enum(hint, data)
    if issubclass(hint, PurePath):
        fits = isinstance(data, PurePath) or (isinstance(data, str) and not flags.exact)
        return hint(data) if fits else MISSING
    try:
        return data if isinstance(data, hint) else MISSING
    except TypeError:  # a protocol or a TypedDict
        return data if flags.lossless else MISSING


def _read_unknown(hint: Any, data: Any) -> Any:
    """Accept a value whose annotation has no plain form, such as `numpy.typing.NDArray`, unless the outer type is
    wrong."""
    origin = kind(hint)
    return MISSING if isinstance(origin, type) and not isinstance(data, origin) else data


def _read_bool(data: Any, flags: Flags) -> Any:
    if isinstance(data, bool):
        return data
    words = {"true": True, "false": False}
    return words.get(data.lower(), MISSING) if isinstance(data, str) and flags.converts else MISSING


def _read_int(data: Any, flags: Flags) -> Any:
    if type(data) is int:
        return data
    if flags.none_to_zero and (data is None or (isinstance(data, str) and data == "None")):
        return 0
    if flags.exact or flags.as_written or isinstance(data, bool):
        return MISSING
    if isinstance(data, str) and flags.converts:
        whole = _convert(int, data)
        data = _convert(float, data) if whole is MISSING else whole
    is_integral = isinstance(data, int) or (isinstance(data, float) and data.is_integer() and abs(data) < _EXACT)
    return int(data) if is_integral else MISSING


def _read_float(data: Any, flags: Flags) -> Any:
    if type(data) is float:
        return data
    if flags.exact or isinstance(data, bool):
        return MISSING
    if isinstance(data, str) and (flags.lossless or (flags.as_written and data not in ("nan", "inf", "-inf"))):
        return MISSING
    number = _convert(float, data) if isinstance(data, int | float | str) else MISSING
    is_rounded = flags.lossless and isinstance(data, int) and number != data
    return MISSING if is_rounded else number


def _read_str(data: Any, flags: Flags) -> Any:
    del flags
    return data if isinstance(data, str) else MISSING


def _read_none(data: Any, flags: Flags) -> Any:
    del flags
    return None if data is None else MISSING


_READERS = {bool: _read_bool, int: _read_int, float: _read_float, str: _read_str, type(None): _read_none}


def _convert(to: Any, data: Any) -> Any:
    try:
        return to(data)
    except (ValueError, TypeError, OverflowError):
        return MISSING


def _read_enum(hint: type[enum.Enum], data: Any) -> Any:
    if isinstance(data, hint):
        return data
    if isinstance(data, str) and data in hint.__members__:
        return hint[data]
    same_value = (member for member in hint if type(member.value) is type(data) and member.value == data)
    composite = _convert(hint, data) if issubclass(hint, enum.Flag) and type(data) is int else MISSING
    return next(same_value, composite)


def read_class(hint: Any, data: Any, flags: Flags) -> Any:
    """Return a class or function that is given as an object or by a registered name."""
    name = _class_name(data, flags) or ""
    value = data if callable(data) else registered().get(name) or _scalar_type(name)
    bounds = typing.get_args(hint) if kind(hint) is type else ()
    bound = bounds[0] if bounds and isinstance(bounds[0], type) else object
    fits = inspect.isclass(value) and issubclass(value, bound) if kind(hint) is type else callable(value)
    return value if fits else MISSING


def _scalar_type(name: str) -> Any:
    """Return the NumPy or JAX scalar type at a dotted path such as `jax.numpy.int16`, if the library is loaded."""
    module, _, name = name.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in _DTYPE_MODULES and module in sys.modules else None
    return MISSING if numpy_type(found) is None else found


def _class_name(data: Any, flags: Flags) -> str | None:
    """Return `a.B` for `<class 'a.B'>`. Return any other text unchanged, or None if `strict_classnames` is set."""
    if not isinstance(data, str):
        return None
    name = class_in(data)
    return data if name is None and not flags.strict_classnames else name


def read_dtype(data: Any, flags: Flags) -> Any:
    """Return a NumPy dtype from its name, from `<class 'jax.numpy.bfloat16'>`, or from an object with a dtype."""
    numpy = sys.modules.get("numpy")
    name = _class_name(data, flags) if isinstance(data, str) else dtype_name(data)
    if numpy is None or name is None:
        return MISSING
    module, _, name = name.rpartition(".")
    if module not in _DTYPE_MODULES:
        return MISSING
    try:
        return numpy.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return MISSING


def plain_dtypes(config: Any) -> None:
    """Shorten the dtype names in all fields whose name ends in `dtype`: `jax.numpy.bfloat16` and
    `<class 'jax.numpy.bfloat16'>` become `bfloat16`, and 'None' becomes None. Invalid names are kept; the rules of the
    config report them."""
    for key, value in [*vars(config).items()]:
        if key.endswith("dtype") and isinstance(value, str):
            module, _, name = (_class_name(value, Flags()) or "").rpartition(".")
            plain = name if module in _DTYPE_MODULES else value
            setattr(config, key, None if plain == "None" else plain)


def dtype_name(value: Any) -> str | None:
    """Return the name, such as `bfloat16`, of a dtype, NumPy scalar type or `jax.numpy` scalar type; otherwise None."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, type) and numpy_type(value) is not None:
        value = numpy.dtype(numpy_type(value))
    if not isinstance(value, numpy.dtype):
        return None
    return next((name for name in (value.name, value.str) if _convert(numpy.dtype, name) == value), None)


def numpy_type(hint: Any) -> Any:
    """Return the NumPy scalar type of `np.float32` or `jnp.float32`, or None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(hint, type):
        return None
    if issubclass(hint, numpy.generic):
        return hint
    dtype = getattr(hint, "dtype", None) if type(hint).__name__ == "_ScalarMeta" else None
    return getattr(dtype, "type", None)


def _read_numpy_scalar(scalar_type: Any, data: Any, flags: Flags) -> Any:
    numpy = sys.modules["numpy"]
    bases = {numpy.bool_: bool, numpy.integer: int, numpy.str_: str}
    base = next((base for parent, base in bases.items() if issubclass(scalar_type, parent)), float)
    value = _READERS[base](data, flags)
    if value is MISSING:
        return MISSING
    with numpy.errstate(over="ignore"):
        read = _convert(scalar_type, value)
    overflowed = base is float and math.isfinite(value) and read is not MISSING and not numpy.isfinite(read)
    return MISSING if overflowed else read
