"""How a table says what each field of a foreign format is, the reader that such a table drives, and what it gives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable
from xlstm_hydra.problems import Problem, UnknownField, nearest, show

from ._json_text import path_part
from ._value_types import Kind, WrongType, mapping, optional

REQUIRED: Any = object()
"""Default of a field that was recorded at all times, so that it may not be missing."""

Derive = Callable[[Mapping[str, Any]], Any]
"""The value of a field, from those of all others by path."""


@dataclass(kw_only=True)
class PlainGroup:
    """The fields of one config of ours, by our names, as another program recorded them."""

    class_name: str = ""
    """Name of the config class in `xlstm_hydra.configs`. Empty: there is none for what was recorded."""

    path: str
    """Where it was recorded."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the names of our fields. One that was not recorded is left out."""

    paths: Mapping[str, str] = field(default_factory=dict)
    """Where a field of ours was recorded, if not below `path` by the same name."""

    not_recorded: Mapping[str, str] = field(default_factory=dict)
    """Notes about fields that were not recorded, with {} for the value that they have here."""

    notes: list[str] = field(default_factory=list)
    """Other notes about this group."""

    is_optional: bool = False
    """True if the group is left out, with a note, where our config cannot express what was recorded."""

    unsupported: str = ""
    """Why no config of ours can express what was recorded."""


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


def unset_note(path: str) -> str:
    """The note about an unknown field that is null."""
    return f"{path}=null: this version does not know the field, and null has no effect"


def log_ignored(path: str, unset: Iterable[str], unknown: Sequence[str]) -> None:
    """Log the unknown fields of a record that are ignored, once for each record.

    Args:
        path: of the record, for messages.
        unset: paths of those that are null.
        unknown: paths of those that a lenient reading let pass.
    """
    for name in unset:
        _log_once(f"{path}: {unset_note(name)}")
    if unknown:
        _log_once(f"{path}: ignored unknown fields: {', '.join(unknown)}")


@functools.cache
def _log_once(text: str) -> None:
    log.warning("%s", printable(text))
