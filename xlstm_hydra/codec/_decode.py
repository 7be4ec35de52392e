"""Convert plain JSON values to typed values according to annotations, without importing any module.

Every reader returns the value (or `MISSING`) and the problems found. The keys of the problems are relative to the
value.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, UnknownField, Unread, either, nearest, placed, show

from ._hints import (
    CLASSES,
    MAPPINGS,
    PAIRS,
    SEQUENCES,
    TAG,
    dotted,
    find_class,
    fixed_length,
    flatten,
    hints,
    is_config,
    is_loose,
    item_hint,
    kind,
    mapping_hints,
    members,
    registered,
    required,
    strip,
    subclasses,
    type_name,
    variant,
)
from ._partial import keys_of, other_problems, partial
from ._reprs import Instance, ReprError, parse_repr
from ._scalars import MISSING, Flags, read_class, read_scalar, unwrap

PATHS = {cls.__name__: cls for cls in (pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath)}
_TAGGED = {"float": float, "tuple": tuple, "set": set, "frozenset": frozenset, PAIRS: dict, **PATHS}

Result = tuple[Any, list[Problem]]


def decode(hint: Any, data: Any, flags: Flags = Flags()) -> Any:
    """Read plain data as a value of the annotated type.

    Raises:
        ConfigError: with a problem for every wrong value, missing field and (unless ignored) unknown field.
    """
    value, problems = collect(hint, data, flags)
    if problems:
        raise ConfigError(placed(problems, keys_of(value)))
    return value


def collect(hint: Any, data: Any, flags: Flags = Flags()) -> Result:
    """Like `decode`, but return the readable part (a dataclass as a `partial` instance) and all problems."""
    try:
        value, problems = read(hint, data, dataclasses.replace(flags, attempts={}))
    except RecursionError:
        value, problems = MISSING, [Unread.about("", "nested too deeply to be a config")]
    if value is MISSING:
        value = partial(hint, {}) if dataclasses.is_dataclass(hint) else None
    return value, problems


def read(hint: Any, data: Any, flags: Flags) -> Result:
    """Read plain data as a value of the annotated type."""
    hint = hint if type(hint) is type else strip(hint)
    if flags.lossless and (is_loose(hint) or _is_own(hint, data)):
        return data, []
    data = unwrap(data)
    if is_loose(hint):
        return _read_any(data, flags)
    outer = hint if type(hint) is type else kind(hint)
    if reader := _READERS.get(outer):
        return reader(hint, data, flags)
    if dataclasses.is_dataclass(outer):
        return _read_dataclass(outer, data, flags)
    value = read_scalar(hint, data, flags)
    return (value, []) if value is not MISSING else _mismatch(hint, data)


def _is_own(hint: Any, data: Any) -> bool:
    """True if a value is an instance of the annotated class. False for numbers and strings, which have their own
    readers."""
    try:
        if not isinstance(hint, type):
            return kind(hint) is typing.Union and type(data) in members(hint)
        return hint not in (int, float, str) and isinstance(data, hint)
    except TypeError:  # a protocol
        return False


def _mismatch(hint: Any, data: Any) -> Result:
    return MISSING, [Unread.about("", f"expected {type_name(hint)}, got {show(data)}")]


def _read_any(data: Any, flags: Flags) -> Result:
    if isinstance(data, Mapping) and TAG in data:
        return _read_tagged(data, dataclasses.replace(flags, exact=False))
    if type(data) in (list, dict):
        return read(type(data), data, flags)
    if isinstance(data, Instance):
        return MISSING, [Unread.about("", f"expected a number, string, list or dict, got a {data.name} object")]
    return data, []


def _read_tagged(data: Mapping[str, Any], flags: Flags) -> Result:
    tag = str(data[TAG])
    if tag in _TAGGED:
        return read(_TAGGED[tag], data if tag == PAIRS else data.get("value"), flags)
    if tag == "dtype" and "numpy" in sys.modules:
        return read(sys.modules["numpy"].dtype, data.get("value"), flags)
    found = find_class(tag)
    if dataclasses.is_dataclass(found):
        return _read_dataclass(found, data, flags)
    if isinstance(found, type) and issubclass(found, enum.Enum):
        return read(found, data.get("value"), flags)
    text = f"{TAG} {show(data[TAG])} is not a config class that this program has loaded"
    return MISSING, [Unread.about("", text, "Import its module, or pass the class to register_class.")]


def _read_dataclass(declared: Any, data: Any, flags: Flags) -> Result:
    if isinstance(data, declared):
        return data, []
    if flags.lossless:
        return _mismatch(declared, data)
    given, (data, problems) = data, _written(declared, data, flags)
    if isinstance(data, Instance):
        cls, data = _named(declared, data), data.fields
    elif isinstance(data, Mapping):
        cls, problems = variant(declared, data)
    else:
        cls = None
    if cls is None:
        return (MISSING, problems) if problems else _mismatch(declared, given)
    fields = hints(cls)
    found = {name: read(hint, data[name], flags) for name, hint in fields.items() if name in data}
    problems = flatten((name, own) for name, (_, own) in found.items())
    for name in fields if flags.as_written else required(cls):
        if name not in data:
            problems.append(Unread.about("", f"missing, expected {type_name(fields[name])}").at(name))
    if not flags.ignore_unknown:
        strangers = [name for name in data if name not in fields and name != TAG]
        # Many unknown names indicate another format, for which suggestions are useless and slow.
        problems += [_unknown(declared, cls, name, data[name], index < 20) for index, name in enumerate(strangers)]
    values = {name: value for name, (value, _) in found.items() if value is not MISSING}
    if not problems:
        return _construct(cls, values)
    config = partial(cls, values)
    # Rules between nested configs can be checked only if all of them are valid.
    return config, problems if _has_nested_problems(found) else problems + other_problems(config, problems)


def _has_nested_problems(found: Mapping[str, Result]) -> bool:
    return any(problems and is_config(value) for value, problems in found.values())


def _written(hint: Any, data: Any, flags: Flags) -> Result:
    """Parse a string that is the `repr` of a list, a dict or a dataclass. Return any other value unchanged."""
    if not isinstance(data, str) or not flags.converts or not _is_repr(data):
        return data, []
    try:
        return parse_repr(data), []
    except ReprError as error:
        return MISSING, [Unread.about("", f"expected {type_name(hint)}, got {show(data)}: {error}")]


def _is_repr(text: str) -> bool:
    return text.rstrip().endswith((")", "]", "}"))


def _named(declared: Any, data: Instance) -> Any:
    """Return the declared class or its subclass with the name in a `repr`, or None."""
    found = (cls for cls in (declared, *subclasses(declared)) if cls.__name__ == data.last_name)
    return next(found, None)


def _unknown(declared: Any, cls: Any, name: Any, value: Any, guess: bool) -> Problem:
    """Return the problem for an unknown field, with a suggestion: a similar field, or the classes that have this
    field."""
    family = [sub.__dict__.get("name") for sub in subclasses(declared) if guess and name in hints(sub)]
    named = [f"name={other}" for other in family if isinstance(other, str)]
    fix = f"{either(named)} has this field." if named else nearest(str(name), hints(cls)) if guess else ""
    return UnknownField.of("", value, f"no such field in {cls.__name__}", fix).at(str(name))


def _construct(cls: Any, values: dict[str, Any]) -> Result:
    try:
        return cls(**values), []
    except ConfigError as error:
        problems = error.problems
    except (ValueError, TypeError, ArithmeticError) as error:
        problems = [Problem.about("", str(error))]
    return partial(cls, values), problems


def _read_union(hint: Any, data: Any, flags: Flags) -> Result:
    options = members(hint)
    says_none = isinstance(data, str) and data == "None" and not (flags.as_written or flags.lossless)
    says_none = says_none and not any(o is str or is_loose(o) for o in options)
    if type(None) in typing.get_args(hint) and (data is None or says_none):
        return None, []
    if isinstance(data, Mapping) and TAG in data and not flags.lossless:
        for member in options:
            cls = kind(member)
            if dataclasses.is_dataclass(cls) and data[TAG] in _names(cls):
                return read(member, data, flags)
            if data[TAG] == type_name(member) and "value" in data:
                return read(member, data["value"], flags)
    exact = dataclasses.replace(flags, exact=True, ignore_unknown=False)
    by_unknown = sorted(options, key=lambda member: _num_unknown(member, data))
    for choice, order in {exact: options, flags: by_unknown}.items():
        for member in order:
            value, problems = _attempt(member, data, choice)
            if not problems:
                return value, []
    alike = [member for member in by_unknown if _is_alike(member, data)]
    return _attempt(alike[0], data, flags) if alike else _mismatch(hint, data)


def _attempt(member: Any, data: Any, flags: Flags) -> Result:
    """Call `read`, but only once for equal arguments. Without this cache, nested unions would take exponential time."""
    key = (member, id(data), flags)
    if key not in flags.attempts:
        flags.attempts[key] = (data, read(member, data, flags))  # stores the data too, so that its id is not reused
    return flags.attempts[key][1]


def _names(cls: Any) -> list[str]:
    return [dotted(member) for member in (cls, *subclasses(cls))]


def _num_unknown(member: Any, data: Any) -> int:
    is_object = dataclasses.is_dataclass(kind(member)) and isinstance(data, Mapping)
    return len(data.keys() - hints(kind(member)).keys()) if is_object else 0


def _is_alike(member: Any, data: Any) -> bool:
    """True if the data has the outer structure of a union member, so that only the contents can be wrong."""
    if isinstance(data, str):
        nests = dataclasses.is_dataclass(kind(member)) or kind(member) in (*SEQUENCES, *MAPPINGS)
        return kind(member) in CLASSES or (nests and _is_repr(data))
    if isinstance(data, Mapping):
        return dataclasses.is_dataclass(kind(member)) or kind(member) in MAPPINGS
    return isinstance(data, list | tuple | set | frozenset) and kind(member) in SEQUENCES


def _read_literal(hint: Any, data: Any, flags: Flags) -> Result:
    for option in typing.get_args(hint):
        if (type(option) is type(data) and option == data) or (isinstance(option, enum.Enum) and option.name == data):
            return option, []
    for option in typing.get_args(hint):
        if isinstance(option, int) and isinstance(data, str) and flags.converts and str(option) == data:
            return option, []
    return _mismatch(hint, data)


def _read_sequence(hint: Any, data: Any, flags: Flags) -> Result:
    origin, given, (data, problems) = kind(hint), data, _written(hint, data, flags)
    if problems:
        return MISSING, problems
    is_collection = isinstance(data, abc.Collection) and not isinstance(data, str | bytes | Mapping | type)
    if not is_collection or _is_other(origin, data, flags):
        return _mismatch(hint, given)
    length = fixed_length(hint)
    if length is not None and len(data) != length:
        text = f"expected {type_name(hint)} with {length} elements, got {show(data)}"
        return MISSING, [Unread.about("", text)]
    found = [read(item_hint(hint, index), item, flags) for index, item in enumerate(data)]
    if problems := flatten((f"[{index}]", own) for index, (_, own) in enumerate(found)):
        return MISSING, problems
    if flags.lossless and isinstance(data, origin) and all(map(_is_same, found, data)):
        return data, []
    try:
        return SEQUENCES[origin](value for value, _ in found), []
    except TypeError:  # an unhashable element of a set
        return _mismatch(hint, data)


def _is_other(origin: Any, data: Any, flags: Flags) -> bool:
    """True if a collection must not be converted to the type `origin`. For example, a set has no order, so it is not
    converted to a list."""
    if isinstance(data, origin):
        return False
    if flags.lossless:
        return flags.exact or isinstance(data, abc.Set) != issubclass(origin, abc.Set)
    return flags.exact and isinstance(data, tuple | set | frozenset)


def _read_mapping(hint: Any, data: Any, flags: Flags) -> Result:
    given, (data, problems) = data, _written(hint, data, flags)
    if problems:
        return MISSING, problems
    if not isinstance(data, Mapping):
        return _mismatch(hint, given)
    pairs = data.get("value") if data.get(TAG) == PAIRS and not flags.lossless else [*data.items()]
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return _mismatch(hint, data)
    key_hint, value_hint = mapping_hints(hint)
    # JSON keys are strings, so keys are always converted.
    lenient = dataclasses.replace(flags, exact=False, as_written=False)
    steps = [key if isinstance(key, str) else show(key) for key, _ in pairs]
    keys = [read(key_hint, key, lenient) for key, _ in pairs]
    values = [read(value_hint, value, flags) for _, value in pairs]
    if problems := flatten((step, k[1] + v[1]) for step, k, v in zip(steps, keys, values, strict=True)):
        return MISSING, problems
    if flags.lossless and all(map(_is_same, [*keys, *values], [*data.keys(), *data.values()])):
        return data, []
    try:
        return {key: value for (key, _), (value, _) in zip(keys, values, strict=True)}, []
    except TypeError:  # an unhashable key
        return _mismatch(hint, data)


def _is_same(result: Result, data: Any) -> bool:
    return result[0] is data


def _read_class(hint: Any, data: Any, flags: Flags) -> Result:
    value = read_class(hint, data, flags)
    if value is not MISSING:
        return value, []
    text = f"expected a registered {type_name(hint)}, got {show(data)}"
    return MISSING, [Unread.about("", text, f"{nearest(str(data), registered())} Register others with register_class.")]


_READERS = {
    typing.Union: _read_union,
    typing.Literal: _read_literal,
    **dict.fromkeys(SEQUENCES, _read_sequence),
    **dict.fromkeys(MAPPINGS, _read_mapping),
    **dict.fromkeys(CLASSES, _read_class),
}
