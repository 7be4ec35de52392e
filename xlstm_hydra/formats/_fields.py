"""How a table says what each field of a foreign format is, and the reader that such a table drives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xlstm_hydra.codec import Instance, ReprError, class_in, parse_repr
from xlstm_hydra.problems import Problem, UnknownField, nearest, show

from ._json_text import path_part

REQUIRED: Any = object()
"""Default of a field that was recorded at all times, so that it may not be missing."""

_DTYPE_PREFIXES = ("", "jax.numpy", "jnp", "numpy", "jax._src.numpy.scalar_types", "ml_dtypes")


class WrongType(Exception):  # noqa: N818 (it never leaves this package)
    """A value of another type than the field's, with what was expected."""


Kind = Callable[[Any], Any]
"""Reads a recorded value as what it stands for, or raises `WrongType`."""

Derive = Callable[[Mapping[str, Any]], Any]
"""The value of a field, from those of all others by path."""


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


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a recorded field is: one field of ours, a copy of another, derived from others, or without counterpart."""

    kind: Kind
    target: str = ""
    """Name of the field of ours that it is."""

    copy_of: str = ""
    """Path of the field that it copies."""

    derive: Derive | None = None
    """Its value, from all others by path."""

    initial: Derive = lambda _: ()
    """Of a copied or derived field: the values that it may have before that, from all others by path, beside null.
    xlstm-jax records one of them where it copies or derives in another object only, such as the feed-forward layers of
    blocks that are not scanned."""

    usual: Any = REQUIRED
    """Without counterpart: the value that needs no note."""

    supported: Any = REQUIRED
    """Without counterpart: the only supported value, which means what is done here; any other is refused."""

    why: str = ""
    """Without counterpart: the reason."""

    default: Any = REQUIRED
    """Value where it was not recorded: what was done before there was such a field."""


Table = Mapping[str, Field]
"""The fields of one section by name."""


@dataclass
class Reading:
    """What has been read so far, and what was met on the way."""

    lenient: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    """By path. A field that was not recorded has its value of the time before."""

    fields: dict[str, Field] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unset: list[str] = field(default_factory=list)
    """Paths of fields that nobody knows and that are null."""

    notes: list[str] = field(default_factory=list)

    def part(self) -> Reading:
        """A reading of another part of the same text, with values of its own."""
        shared = {"problems": self.problems, "unknown": self.unknown, "unset": self.unset, "notes": self.notes}
        return Reading(self.lenient, **shared)

    def section(self, path: str, data: Any, table: Table, sections: tuple[str, ...] = ()) -> dict[str, Any]:
        """Read every field of a section; returns its data. `sections` are those inside it, read by others."""
        try:
            data = mapping(data)
        except WrongType as wrong:
            self.problem(path, f"expected {wrong}, got {show(data)}")
            return {}
        for name, value in data.items():
            if name in table:
                self.value(join(path, name), value, table[name])
            elif name not in sections:
                # Many unknown names are another format, where guessing what was meant only takes long.
                guess = nearest(name, [*table, *sections]) if len(self.problems) < 20 else ""
                self.unknown_field(join(path, path_part(name)), guess, is_null=value in (None, "None"))
        for name, entry in table.items():
            if name not in data:
                self.missing(join(path, name), entry)
        return data

    def value(self, path: str, value: Any, entry: Field) -> None:
        """Read one field."""
        try:
            self.values[path] = entry.kind(value)
            self.fields[path] = entry
        except WrongType as wrong:
            self.problem(path, f"expected {wrong}, got {show(value)}")

    def missing(self, path: str, entry: Field) -> None:
        """Give a field that was not recorded its value of the time before."""
        if entry.default is REQUIRED:
            self.problem(path, "missing")
            return
        self.values[path] = entry.default
        if entry.target or entry.supported is not REQUIRED:
            self.fields[path] = entry

    def unknown_field(self, path: str, fix: str, *, is_null: bool) -> None:
        """Record a field that nobody knows. One that is null has no effect: it is of a later version, and not used."""
        if is_null or self.lenient:
            (self.unset if is_null else self.unknown).append(path)
        else:
            self.problems.append(UnknownField.of(path, ..., "no such field", fix))

    def problem(self, path: str, what: str, fix: str = "") -> None:
        """Record something that is wrong."""
        self.problems.append(Problem.about(path, what, fix))

    def check(self) -> None:
        """Compare what copies others or follows from them, and note what has no counterpart."""
        for path, entry in self.fields.items():
            value = self.values[path]
            if value is not None and value not in (self._computed(entry.initial) or ()):
                self._check_copy(path, entry.copy_of)
                self._check_derived(path, entry.derive)
            if entry.usual is not REQUIRED and value != entry.usual:
                self.notes.append(f"{path}={show(value)}: {entry.why}")
            if entry.supported is not REQUIRED and value != entry.supported:
                text = f"cannot be said here: expected {show(entry.supported)}, got {show(value)}"
                self.problem(path, text, entry.why)

    def _computed(self, compute: Derive) -> Any:
        """A value from the others; None if these are wrong themselves."""
        try:
            return compute(self.values)
        except (KeyError, ArithmeticError, TypeError, ValueError):
            return None

    def _check_copy(self, path: str, other: str) -> None:
        if other in self.values and self.values[path] != self.values[other]:
            given = {path: self.values[path], other: self.values[other]}
            self.problems.append(Problem(given, "differ, and one field here cannot say both"))

    def _check_derived(self, path: str, derive: Derive | None) -> None:
        expected = None if derive is None else self._computed(derive)
        if derive is not None and expected is not None and self.values[path] != expected:
            used = _Used(self.values)
            derive(used)
            sources = ", ".join(f"{name}={show(self.values[name])}" for name in used.names)
            text = f"is {show(self.values[path])}, but {show(expected)} follows from {sources}"
            self.problems.append(Problem.about(path, text))

    def flat(self) -> dict[str, Any]:
        """The values by our names."""
        return {entry.target: self.values[path] for path, entry in self.fields.items() if entry.target}

    def paths(self) -> dict[str, str]:
        """Our names, and where each was recorded."""
        return {entry.target: path for path, entry in self.fields.items() if entry.target}


class _Used(dict[str, Any]):
    """Values that remember which of them were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.names[name] = None
        return super().__getitem__(name)


def join(path: str, name: str) -> str:
    """A field's path from that of its section."""
    return f"{path}.{name}" if path else name


def maps_to(name: str, kind: Kind, default: Any = REQUIRED) -> Field:
    """A field that is the one of ours with this name."""
    return Field(kind=kind, target=name, default=default)


def copy_of(path: str, kind: Kind, default: Any = REQUIRED, *initial: Any) -> Field:
    """A copy of the field at this path, with the values that it may have before it is copied."""
    return Field(kind=kind, copy_of=path, default=default, initial=lambda _: initial)


def derived(derive: Derive, kind: Kind, initial: Derive = lambda _: ()) -> Field:
    """A field that follows from others, with the values beside null that it may have before it is derived."""
    return Field(kind=optional(kind), derive=derive, initial=initial)


def supported_only(kind: Kind, value: Any, why: str, default: Any = REQUIRED) -> Field:
    """A field without counterpart, of which only one value is supported."""
    return Field(kind=kind, supported=value, why=why, default=default)


def no_counterpart(kind: Kind, usual: Any, why: str, default: Any = REQUIRED) -> Field:
    """A field without counterpart, which is noted unless it has its usual value."""
    return Field(kind=kind, usual=usual, why=why, default=default)
