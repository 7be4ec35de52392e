"""Plain JSON values <-> typed values, led by the type annotations of dataclasses.

`encode` writes, `decode` reads. A value whose annotation does not tell its type (a union, `Any`, a subclass of the
declared class) is written with a `_type_` tag, and only then: `encode` asks `decode` whether it would give the value back.
Reading never imports anything.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import functools
import math
import pathlib
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._problems import ConfigError, Problem, nearest, show

TAG = "_type_"
_MISSING = object()
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SEQUENCES = {list: list, set: set, frozenset: frozenset, abc.Sequence: list, abc.Iterable: list, abc.Set: set}
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_CLASSES: dict[str, type] = {}


def register_class(cls: type, *names: str) -> type:
    """Allow configs to name `cls` where a field holds a class. Nothing that is not registered is ever looked up."""
    for name in (dotted(cls), *names):
        _CLASSES[name] = cls
    return cls


def dotted(cls: Any) -> str:
    """`module.QualifiedName` of a class or function."""
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of the fields that `cls(...)` accepts."""
    resolved = typing.get_type_hints(cls)
    return {field.name: resolved[field.name] for field in dataclasses.fields(cls) if field.init}


# ---- writing


def encode_fields(config: Any) -> dict[str, Any]:
    """A dataclass as a dict of plain JSON values."""
    fields = hints(type(config))
    return {name: _at(f".{name}", encode, getattr(config, name), hint) for name, hint in fields.items()}


def encode(value: Any, hint: Any = Any) -> Any:
    """One value as plain JSON, so that `decode(hint, encode(value, hint))` gives it back.

    Raises:
        TypeError: the value has no plain form (a function, an array, bytes).
    """
    plain = _plain(value, _strip(hint))
    if _needs_no_tag(value, plain, _strip(hint)):
        return plain
    if dataclasses.is_dataclass(value):
        return {TAG: dotted(type(value)), **plain}
    return {TAG: type(value).__name__, "value": plain}


def _plain(value: Any, hint: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, enum.Flag) else value.name
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode_fields(value)
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, Mapping):
        _, key_hint, item_hint = _mapping_hints(hint)
        return {
            _key(key, key_hint): _at(f".{key}", encode, item, item_hint)  #
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [
            _at(f"[{index}]", encode, item, _item_hint(hint, index))  #
            for index, item in enumerate(items)
        ]
    if (name := _dtype_name(value)) is not None:
        return name
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item(), hint)
    if isinstance(value, type):
        return dotted(value)
    if isinstance(value, int | str | float):  # a subclass such as a NewType's or a user's
        return _plain(next(base(value) for base in (int, str, float) if isinstance(value, base)), hint)
    raise TypeError(f"a {type(value).__name__} has no plain JSON form: {show(value)}")


def _key(key: Any, hint: Any) -> str:
    plain = encode(key, hint)
    return plain if isinstance(plain, str) else str(plain)


def _needs_no_tag(value: Any, plain: Any, hint: Any) -> bool:
    if isinstance(hint, type) and type(value) is hint and not dataclasses.is_dataclass(hint):
        return True  # the common case, without reading it back
    try:
        return same(decode(hint, plain), value)
    except ConfigError:
        return dataclasses.is_dataclass(hint) and type(value) is hint  # broken rules are no reason for a tag


def _at(step: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except TypeError as error:
        path, _, text = str(error).rpartition(": a ") if str(error).startswith((".", "[")) else ("", "", str(error)[2:])
        raise TypeError(f"{step}{path}: a {text}") from None


def same(left: Any, right: Any) -> bool:
    """Equality of type and value, where NaN equals NaN and a class equals its dotted path."""
    if isinstance(left, type) != isinstance(right, type):
        left, right = (dotted(side) if isinstance(side, type) else side for side in (left, right))
    if isinstance(left, float) and isinstance(right, float) and left != left and right != right:
        return type(left) is type(right)
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if dataclasses.is_dataclass(left) and not isinstance(left, type):
        names = [field.name for field in dataclasses.fields(left) if field.compare]
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    return bool(left == right)


# ---- reading


@dataclass(frozen=True)
class Flags:
    """What `ConfigDict.from_dict` was asked to tolerate, at every level."""

    strict_classnames: bool = False
    ignore_unknown: bool = True
    none_to_zero: bool = False
    exact: bool = False
    """Refuse conversions such as `"5"` to 5; used to choose between the members of a union."""


def decode(hint: Any, data: Any, flags: Flags = Flags()) -> Any:
    """Read plain data as a value of the annotated type.

    Raises:
        ConfigError: with one problem for every wrong value, missing field and (unless ignored) unknown field.
    """
    value, problems = collect(hint, data, flags)
    if problems:
        raise ConfigError(problems)
    return value


def collect(hint: Any, data: Any, flags: Flags = Flags()) -> tuple[Any, list[Problem]]:
    """Like `decode`, but returns what could be read together with all problems."""
    problems: list[Problem] = []
    try:
        value = _read(_strip(hint), data, "", flags, problems)
    except RecursionError:
        value, problems = _MISSING, [Problem.about("", "nested too deeply to be a config")]
    return (None if value is _MISSING else value), problems


def _read(hint: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    """The value, or `_MISSING` after noting why not."""
    hint = _strip(hint)
    origin = typing.get_origin(hint) or hint
    if hint is Any or isinstance(hint, typing.TypeVar) or hint is object:
        return _read_any(data, path, flags, problems)
    if origin is typing.Union or origin is types.UnionType:
        return _read_union(hint, data, path, flags, problems)
    if origin is typing.Literal:
        return _read_literal(hint, data, path, flags, problems)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, data, path, flags, problems)
    if origin in _SEQUENCES or origin is tuple:
        return _read_sequence(hint, origin, data, path, flags, problems)
    if origin in _MAPPINGS:
        return _read_mapping(hint, data, path, flags, problems)
    if origin is type or origin is abc.Callable:
        return _read_class(data, path, flags, problems)
    value = _read_scalar(hint, origin, data, flags)
    if value is _MISSING:
        problems.append(_mismatch(path, hint, data))
    return value


def _mismatch(path: str, hint: Any, data: Any) -> Problem:
    return Problem.about(path, f"expected {type_name(hint)}, got {show(data)}")


def _read_any(data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    if not (isinstance(data, Mapping) and TAG in data):
        if isinstance(data, list):
            return [_read_any(item, f"{path}[{i}]", flags, problems) for i, item in enumerate(data)]
        if isinstance(data, dict):
            return {key: _read_any(item, _dot(path, key), flags, problems) for key, item in data.items()}
        return data
    known = {"float": float, "tuple": tuple, "dict": dict, "Path": pathlib.Path, "PosixPath": pathlib.Path}
    known |= {"set": set, "frozenset": frozenset}
    if data[TAG] in known:
        return _read(known[data[TAG]], data.get("value"), path, flags, problems)
    for config_class in _subclasses(_config_root()):
        if dotted(config_class) == data[TAG]:
            return _read_dataclass(config_class, data, path, flags, problems)
    problems.append(Problem.about(path, f"{TAG} {show(data[TAG])} is no class that this program has loaded"))
    return _MISSING


def _read_union(hint: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    members = [_strip(member) for member in typing.get_args(hint)]
    if data is None and type(None) in members:
        return None
    members = [member for member in members if member is not type(None)]
    if isinstance(data, Mapping) and TAG in data:
        tagged = [member for member in members if data[TAG] in _tags(member)]
        if tagged:
            inner = data if dataclasses.is_dataclass(tagged[0]) else data.get("value")
            return _read(tagged[0], inner, path, flags, problems)
    exact = dataclasses.replace(flags, exact=True, ignore_unknown=False)
    attempts: list[list[Problem]] = []
    for member, choice in [(m, exact) for m in members] + [(m, flags) for m in members]:
        attempt: list[Problem] = []
        value = _read(member, data, path, choice, attempt)
        if not attempt:
            return value
        attempts.append(attempt)
    containers = [
        member for member in members if dataclasses.is_dataclass(member) or typing.get_origin(member) is not None
    ]
    if len(members) == 1 or (len(containers) == 1 and isinstance(data, list | tuple | Mapping)):
        index = members.index((containers or members)[0])
        problems.extend(attempts[len(members) + index])
    else:
        problems.append(_mismatch(path, hint, data))
    return _MISSING


def _tags(member: Any) -> set[str]:
    if dataclasses.is_dataclass(member):
        return {dotted(cls) for cls in (member, *_subclasses(member))}
    name = getattr(typing.get_origin(member) or member, "__name__", str(member))
    return {name, "PosixPath", "WindowsPath"} if name == "Path" else {name}


def _read_literal(hint: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    options = typing.get_args(hint)
    for option in options:
        if type(option) is type(data) and option == data:
            return option
        if isinstance(option, enum.Enum) and data == option.name:
            return option
    if isinstance(data, str) and not flags.exact:
        for option in options:
            if not isinstance(option, str) and str(option) == data:
                return option
    problems.append(_mismatch(path, hint, data))
    return _MISSING


def _read_dataclass(cls: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        problems.append(_mismatch(path, cls, data))
        return _MISSING
    cls = variant(cls, data, path, problems)
    if cls is None:
        return _MISSING
    start = len(problems)
    annotations = hints(cls)
    values = {
        name: _read(hint, data[name], _dot(path, name), flags, problems)
        for name, hint in annotations.items()
        if name in data
    }
    for name in data:
        if name not in annotations and name != TAG and not flags.ignore_unknown:
            fix = nearest(str(name), annotations)
            problems.append(Problem.about(_dot(path, str(name)), f"no such field in {cls.__name__}", fix))
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in data:
            expected = type_name(annotations[field.name])
            problems.append(Problem.about(_dot(path, field.name), f"missing, expected {expected}"))
    readable = {name: value for name, value in values.items() if value is not _MISSING}
    if len(problems) > start:
        return unchecked(cls, readable)
    return _construct(cls, readable, path, problems)


def _construct(cls: Any, values: dict[str, Any], path: str, problems: list[Problem]) -> Any:
    try:
        return cls(**values)
    except ConfigError as error:
        problems.extend(problem.at(path) for problem in error.problems)
    except (ValueError, TypeError) as error:
        problems.append(Problem.about(path, str(error)))
    return unchecked(cls, values)


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


def variant(cls: Any, data: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    """The subclass of `cls` that `data` is for: by its tag, or by a `name` that is a subclass's default."""
    family = [cls, *_subclasses(cls)]
    if TAG in data:
        for member in family:
            if data[TAG] == dotted(member):
                return member
        text = f"{TAG} {show(data[TAG])} is no loaded subclass of {cls.__name__}"
        problems.append(Problem.about(path, text, "Import the module that defines it first."))
        return None
    named = {member.name: member for member in family if isinstance(getattr(member, "name", None), str)}
    if not named or "name" not in data or len(family) == 1:
        return cls
    if data["name"] in named:
        return named[data["name"]]
    problems.append(Problem({_dot(path, "name"): data["name"]}, "not a known value", nearest(data["name"], named)))
    return None


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _config_root() -> type:
    from ._base import ConfigDict

    return ConfigDict


def _read_sequence(hint: Any, origin: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        problems.append(_mismatch(path, hint, data))
        return _MISSING
    if flags.exact and isinstance(data, tuple | set | frozenset) and not isinstance(data, origin):
        problems.append(_mismatch(path, hint, data))
        return _MISSING
    data = list(data)
    expected = _fixed_length(hint)
    if expected is not None and len(data) != expected:
        text = f"expected {type_name(hint)} with {expected} elements, got {show(data)}"
        problems.append(Problem.about(path, text))
        return _MISSING
    start = len(problems)
    items = [
        _read(_item_hint(hint, index), item, f"{path}[{index}]", flags, problems) for index, item in enumerate(data)
    ]
    if len(problems) > start:
        return _MISSING
    return tuple(items) if origin is tuple else _SEQUENCES[origin](items)


def _read_mapping(hint: Any, data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(_mismatch(path, hint, data))
        return _MISSING
    _, key_hint, item_hint = _mapping_hints(hint)
    start = len(problems)
    # JSON keys are strings, so a key is converted even where values must match exactly.
    lenient = dataclasses.replace(flags, exact=False)
    items = {}
    for key, item in data.items():
        here = _dot(path, str(key))
        read_key = key if isinstance(key_hint, type) and type(key) is key_hint else _read(key_hint, key, here, lenient, problems)
        value = _read(item_hint, item, here, flags, problems)
        if read_key is not _MISSING:
            items[read_key] = value
    return items if len(problems) == start else _MISSING


def _read_class(data: Any, path: str, flags: Flags, problems: list[Problem]) -> Any:
    if isinstance(data, type):
        return data
    name = _class_name(data, flags)
    if name in _CLASSES:
        return _CLASSES[name]
    fix = nearest(str(data), _CLASSES) if _CLASSES else ""
    problems.append(Problem.about(path, f"expected a registered class, got {show(data)}", fix))
    return _MISSING


def _class_name(data: Any, flags: Flags) -> str | None:
    """`a.B` from `<class 'a.B'>`, or from `a.B` itself unless the strict form is asked for."""
    if not isinstance(data, str):
        return None
    if data.startswith("<class '") and data.endswith("'>"):
        return data[len("<class '") : -len("'>")]
    return None if flags.strict_classnames else data


def _read_scalar(hint: Any, origin: Any, data: Any, flags: Flags) -> Any:
    if _is_numpy(hint) and origin.__name__ == "dtype":
        return _read_dtype(data, flags)
    if type(data).__module__ == "numpy" and hasattr(data, "item") and hint in (int, float, bool, str):
        data = data.item()
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _read_enum(hint, data)
    if hint is bool:
        return _read_bool(data, flags)
    if hint is int:
        return _read_int(data, flags)
    if hint is float:
        return _read_float(data, flags)
    if hint is type(None):
        return None if data is None else _MISSING
    if isinstance(hint, type) and issubclass(hint, pathlib.PurePath):
        exact = isinstance(data, hint) or (isinstance(data, str) and not flags.exact)
        return hint(data) if exact else _MISSING
    if _is_numpy(hint) and isinstance(data, int | float | str):
        return _read_numpy_scalar(hint, data)
    return data if isinstance(hint, type) and isinstance(data, hint) else _MISSING


def _read_enum(hint: type[enum.Enum], data: Any) -> Any:
    if isinstance(data, hint):
        return data
    if isinstance(data, str) and data in hint.__members__:
        return hint[data]
    return next((m for m in hint if type(m.value) is type(data) and m.value == data), _flag(hint, data))


def _flag(hint: type[enum.Enum], data: Any) -> Any:
    if issubclass(hint, enum.Flag) and type(data) is int:
        try:
            return hint(data)
        except ValueError:
            return _MISSING
    return _MISSING


def _read_bool(data: Any, flags: Flags) -> Any:
    if isinstance(data, bool):
        return data
    words = {"true": True, "false": False}
    return words.get(data.lower(), _MISSING) if isinstance(data, str) and not flags.exact else _MISSING


def _read_int(data: Any, flags: Flags) -> Any:
    if type(data) is int:
        return data
    if data is None and flags.none_to_zero:
        return 0
    if flags.exact or isinstance(data, bool):
        return _MISSING
    if isinstance(data, float) and data.is_integer():
        return int(data)
    if isinstance(data, str):
        try:
            return int(data)
        except ValueError:
            return _MISSING
    return _MISSING


def _read_float(data: Any, flags: Flags) -> Any:
    if type(data) is float:
        return data
    if flags.exact or isinstance(data, bool):
        return _MISSING
    if isinstance(data, int | float | str):
        try:
            return float(data)
        except (ValueError, OverflowError):
            return _MISSING
    return _MISSING


def _read_numpy_scalar(hint: Any, data: Any) -> Any:
    try:
        return hint(data)
    except (ValueError, TypeError, OverflowError):
        return _MISSING


def _read_dtype(data: Any, flags: Flags) -> Any:
    numpy = sys.modules["numpy"]  # the annotation itself comes from there
    if not isinstance(data, str):
        name = _dtype_name(data)
        return _MISSING if name is None else numpy.dtype(data)
    name = _class_name(data, flags)
    try:
        return _MISSING if name is None else numpy.dtype(name.rpartition(".")[2])
    except TypeError:
        return _MISSING


# ---- annotations


def _strip(hint: Any) -> Any:
    """Without `Annotated`, `NewType` and type aliases."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def _fixed_length(hint: Any) -> int | None:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or Ellipsis in args:
        return None
    return 0 if args == ((),) else len(args)


def _item_hint(hint: Any, index: int) -> Any:
    args = typing.get_args(hint)
    if not args or args == ((),) or typing.get_origin(hint) in (typing.Union, types.UnionType):
        return Any
    if typing.get_origin(hint) is tuple and Ellipsis not in args:
        return args[index] if index < len(args) else Any
    return args[0]


def _mapping_hints(hint: Any) -> tuple[Any, Any, Any]:
    args = typing.get_args(hint)
    return (hint, *args) if len(args) == 2 and typing.get_origin(hint) in _MAPPINGS else (hint, Any, Any)


def _is_numpy(hint: Any) -> bool:
    return getattr(typing.get_origin(hint) or hint, "__module__", "").partition(".")[0] == "numpy"


def _dtype_name(value: Any) -> str | None:
    """`bfloat16` for a NumPy dtype, a NumPy scalar type or a `jax.numpy` scalar type; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.dtype):
        return value.name
    if isinstance(value, type) and issubclass(value, numpy.generic):
        return numpy.dtype(value).name
    inner = getattr(value, "dtype", None)
    is_jax_scalar_type = type(value).__name__ == "_ScalarMeta"
    return inner.name if is_jax_scalar_type and isinstance(inner, numpy.dtype) else None


def type_name(hint: Any) -> str:
    """An annotation as a user reads it: `int`, `list[str]`, `float or null`, `'a' or 'b'`."""
    hint = _strip(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Union or origin is types.UnionType:
        return " or ".join(type_name(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(show(arg) for arg in args)
    name = getattr(origin or hint, "__name__", str(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"{name} ({', '.join(hint.__members__)})"
    inner = ", ".join("..." if arg is Ellipsis else type_name(arg) for arg in args if arg != ())
    return f"{name}[{inner}]" if inner else name


def _dot(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
