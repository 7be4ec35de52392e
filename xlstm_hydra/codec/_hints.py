"""Analysis of type annotations: their parts, their names in messages, and the classes that they allow."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from xlstm_hydra.problems import Missing, Problem, Unread, either, nearest, show

T = TypeVar("T")

TAG = "_type_"
"""Key of the tag with the type of a value. The tag is written only if the annotation does not determine the type."""

PAIRS = "items"
"""Tag of a mapping that is written as a list of pairs, because the keys of the mapping cannot be restored from
strings."""

SEQUENCES = {list: list, tuple: tuple, set: set, frozenset: frozenset}
SEQUENCES |= {abc.Sequence: list, abc.MutableSequence: list, abc.Iterable: list, abc.Collection: list, abc.Set: set}
MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
CLASSES = (type, abc.Callable)

_registered: dict[str, Any] = {}


def register_class(cls: T, *names: str) -> T:
    """Allow configs to refer to a class or function by its dotted path and by `names`. Classes that are not registered
    are never imported."""
    for name in (dotted(cls), *names):
        _registered[name] = cls
    return cls


def registered() -> Mapping[str, Any]:
    """Return every registered class and function, by the names that configs may use."""
    return _registered


def find_class(name: str) -> Any:
    """Return the registered class, or the subclass of a registered dataclass, with this dotted path, or None."""
    if name in _registered:
        return _registered[name]
    parents = [cls for cls in _registered.values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)]
    return next((sub for parent in parents for sub in subclasses(parent) if dotted(sub) == name), None)


def dotted(cls: Any) -> str:
    """Return `module.QualifiedName` of a class or function."""
    parts = cls.__module__.split(".")
    # Our classes have the paths that users import, so that metadata stays valid if a class moves between our modules.
    module = ".".join(parts[:2]) if parts[0] == __name__.partition(".")[0] else cls.__module__
    return f"{module}.{cls.__qualname__}"


def subclasses(cls: type) -> list[type]:
    """Return all direct and indirect subclasses. If two subclasses have the same name, the later definition comes
    first."""
    direct = [sub for sub in reversed(type.__subclasses__(cls)) if sub is not cls]
    return list(dict.fromkeys([*direct, *(below for sub in direct for below in subclasses(sub))]))


def hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of the fields that `cls(...)` accepts. A default of None allows None.

    An annotation that cannot be evaluated, because it is meant only for type checkers, is replaced by `Any`.
    """
    try:
        return _evaluated(cls)
    except (NameError, AttributeError, TypeError):  # not cached: the name may be defined later
        annotations = {name: _evaluated_alone(cls, name) for name in cls.__dataclass_fields__}
        return _initialized(cls, annotations)


@functools.cache
def _evaluated(cls: type) -> dict[str, Any]:
    return _initialized(cls, typing.get_type_hints(cls))


def _initialized(cls: Any, annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        field.name: typing.Optional[annotations[field.name]] if field.default is None else annotations[field.name]  # noqa: UP045
        for field in dataclasses.fields(cls)
        if field.init
    }


def _evaluated_alone(cls: Any, name: str) -> Any:
    owner = next((base for base in cls.__mro__ if name in vars(base).get("__annotations__", ())), cls)
    annotation = cls.__dataclass_fields__[name].type
    alone = type(cls.__name__, (), {"__annotations__": {name: annotation}, "__module__": owner.__module__})
    try:
        return typing.get_type_hints(alone)[name]
    except (NameError, AttributeError, TypeError):
        return Any


def required(cls: Any) -> Iterator[str]:
    """Yield the names of the required fields of `cls(...)`."""
    for field in dataclasses.fields(cls):
        if field.init and field.default is field.default_factory is dataclasses.MISSING:
            yield field.name


def variant(declared: Any, data: Mapping[Any, Any]) -> tuple[Any, list[Problem]]:
    """Return the class to read `data` as, which is the declared class or one of its subclasses, and the problems found.

    If the data has a tag, the tag determines the class. Otherwise, if `name` is a required field of the declared class,
    the subclass with this `name` is chosen.
    """
    family = subclasses(declared)
    if TAG in data:
        found = next((cls for cls in (declared, *family) if dotted(cls) == data[TAG]), None)
        text = f"{TAG} {show(data[TAG])} is not a loaded subclass of {declared.__name__}"
        fix = "Import the module that defines the class first."
        return found, [] if found else [Unread.about("", text, fix)]
    names = {cls.__dict__["name"]: cls for cls in reversed(family) if isinstance(cls.__dict__.get("name"), str)}
    if names and "name" in required(declared):
        name = data.get("name")
        if isinstance(name, str) and name in names:
            return names[name], []
        if "name" in data:
            return None, [Unread({"name": name}, "not a known value", nearest(str(name), names), whole=True)]
        return None, [replace(Missing.about("name", "missing", f"Known: {', '.join(names)}."), whole=True)]
    if data and family and not hints(declared):
        text = f"ambiguous: could be {either(cls.__name__ for cls in family)}"
        return None, [Unread.about("", text, f"Add {TAG} with the dotted path of its class.")]
    return declared, []


def strip(hint: Any) -> Any:
    """Return an annotation without `Annotated`, `Final`, `NewType` and type aliases."""
    while True:
        if typing.get_origin(hint) in (typing.Annotated, typing.Final):
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def kind(hint: Any) -> Any:
    """Return the outer type: `list` for `list[int]`, and `Union` for both spellings of a union."""
    origin = typing.get_origin(hint) or hint
    return typing.Union if origin is types.UnionType else origin


def is_loose(hint: Any) -> bool:
    """True if an annotation allows any value."""
    return hint is Any or hint is object or isinstance(hint, typing.TypeVar)


def is_config(value: Any) -> bool:
    """True if a value is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def members(union: Any) -> list[Any]:
    """Return the members of a union without None."""
    return [strip(member) for member in typing.get_args(union) if member is not type(None)]


def fixed_length(hint: Any) -> int | None:
    """Return the length required by a tuple annotation such as `tuple[int, str]`, or None for any other annotation."""
    args = typing.get_args(hint)
    return None if typing.get_origin(hint) is not tuple or Ellipsis in args else len(args)


def item_hint(hint: Any, index: int) -> Any:
    """Return the annotation of an element of a sequence."""
    args = typing.get_args(hint)
    if kind(hint) not in SEQUENCES or not args:
        return Any
    return args[0] if fixed_length(hint) is None else args[min(index, len(args) - 1)]


def mapping_hints(hint: Any) -> tuple[Any, Any]:
    """Return the annotations of the keys and values of a mapping."""
    args = typing.get_args(hint)
    return (args[0], args[1]) if kind(hint) in MAPPINGS and args else (Any, Any)


def type_name(hint: Any) -> str:
    """Return the name of an annotation for messages: `int`, `list[str]`, `float or null`, `'a' or 'b'`."""
    hint = strip(hint)
    args = typing.get_args(hint)
    if hint is type(None):
        return "null"
    if kind(hint) is typing.Union:
        return " or ".join(map(type_name, args))
    if kind(hint) is typing.Literal:
        return " or ".join(map(show, args))
    name = getattr(kind(hint), "__name__", str(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"{name} ({', '.join(hint.__members__)})"
    return f"{name}[{', '.join(map(_arg_name, args))}]" if args else name


def _arg_name(arg: Any) -> str:
    if isinstance(arg, list):  # the parameters of a Callable
        return f"[{', '.join(map(_arg_name, arg))}]"
    return "..." if arg is Ellipsis else type_name(arg)


def flatten(problems: Iterable[tuple[str, list[Problem]]]) -> list[Problem]:
    """Return the problems of all parts of a value, with the name or index of the part in front of their keys."""
    return [problem.at(step) for step, found in problems for problem in found]
