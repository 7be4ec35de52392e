"""Reader for the metadata formats of other programs, driven by tables that give the meaning of every recorded field."""

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
"""Marker for a setting without a value. As the default of a field: the field was always recorded, so it must not be
missing."""

Derive = Callable[[Mapping[str, Any]], Any]
"""Function that computes the value of a field from the values of all fields by path."""


@dataclass(kw_only=True)
class PlainGroup:
    """The values of one of our configs as recorded by another program."""

    class_name: str = ""
    """Name of the config class in `xlstm_hydra.configs`. Empty: no config class can represent the recorded values."""

    path: str
    """Path at which the group was recorded."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Values by our field names. Fields that were not recorded are omitted."""

    paths: Mapping[str, str] = field(default_factory=dict)
    """Recorded paths by our field names, for fields whose recorded path is not `path` followed by our field name."""

    not_recorded: Mapping[str, str] = field(default_factory=dict)
    """Notes about fields that were not recorded, by our field names. `{}` is replaced by the value that is used
    instead."""

    notes: list[str] = field(default_factory=list)
    """Other notes about the group."""

    is_optional: bool = False
    """True if the group is omitted with a note when our config cannot represent the recorded values. False: the
    metadata is rejected."""

    unsupported: str = ""
    """Reason why no config class can represent the recorded values. Empty: a config class can."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Meaning of a recorded field. The field corresponds to one of our fields, is a copy of another recorded field, is
    derived from other recorded fields, or has no counterpart."""

    kind: Kind
    target: str = ""
    """Name of our field with the same meaning."""

    copy_of: str = ""
    """For a copied field: path of the original."""

    derive: Derive | None = None
    """For a derived field: function that computes the expected value."""

    initial: Derive = lambda _: ()
    """For a copied or derived field: function that returns the values, other than null, that the field may have before
    xlstm-jax sets it. Such a value was recorded if xlstm-jax set the field only in another object, as for the
    feed-forward layers of blocks that are not scanned."""

    usual: Any = REQUIRED
    """For a field without counterpart: the value that needs no note. Any other value adds a note."""

    supported: Any = REQUIRED
    """For a field without counterpart: the only supported value, which matches our behavior. Any other value is an
    error."""

    why: str = ""
    """For a field without counterpart: the explanation in the note or error message."""

    default: Any = REQUIRED
    """Value to use if the field was not recorded. It matches the behavior before the field was introduced."""


Table = Mapping[str, Field]
"""The fields of one section by name."""


@dataclass
class Reading:
    """The values read so far, with problems and notes."""

    lenient: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    """Values by path. Fields that were not recorded have their default values."""

    fields: dict[str, Field] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unset: list[str] = field(default_factory=list)
    """Paths of unknown fields with the value null. `unknown` contains the paths of the other ignored fields."""

    notes: list[str] = field(default_factory=list)

    def part(self) -> Reading:
        """Return a reading for another part of the same text, with separate values but shared problems and notes."""
        shared = {"problems": self.problems, "unknown": self.unknown, "unset": self.unset, "notes": self.notes}
        return Reading(self.lenient, **shared)

    def section(self, path: str, data: Any, table: Table, sections: tuple[str, ...] = ()) -> dict[str, Any]:
        """Read every field of a section and return the data of the section. `sections` are nested sections, which are
        read separately."""
        try:
            data = mapping(data)
        except WrongType as wrong:
            self.problem(path, f"expected {wrong}, got {show(data)}")
            return {}
        for name, value in data.items():
            if name in table:
                self.value(join(path, name), value, table[name])
            elif name not in sections:
                # Many unknown names indicate another format, for which suggestions are useless and slow.
                guess = nearest(name, [*table, *sections]) if len(self.problems) < 20 else ""
                self.unknown_field(join(path, path_part(name)), guess, is_null=value in (None, "None"))
        for name, entry in table.items():
            if name not in data:
                self.missing(join(path, name), entry)
        return data

    def value(self, path: str, value: Any, entry: Field) -> None:
        """Read the value of one field."""
        try:
            self.values[path] = entry.kind(value)
            self.fields[path] = entry
        except WrongType as wrong:
            self.problem(path, f"expected {wrong}, got {show(value)}")

    def missing(self, path: str, entry: Field) -> None:
        """Set a field that was not recorded to its default."""
        if entry.default is REQUIRED:
            self.problem(path, "missing")
            return
        self.values[path] = entry.default
        if entry.target or entry.supported is not REQUIRED:
            self.fields[path] = entry

    def unknown_field(self, path: str, fix: str, *, is_null: bool) -> None:
        """Record an unknown field. A null value is never a problem: a later version added the field, and did not use
        it."""
        if is_null or self.lenient:
            (self.unset if is_null else self.unknown).append(path)
        else:
            self.problems.append(UnknownField.of(path, ..., "no such field", fix))

    def problem(self, path: str, what: str, fix: str = "") -> None:
        """Record a problem with the field at `path`."""
        self.problems.append(Problem.about(path, what, fix))

    def check(self) -> None:
        """Check copied and derived fields, and add notes about fields without counterpart."""
        for path, entry in self.fields.items():
            value = self.values[path]
            if value is not None and value not in (self._computed(entry.initial) or ()):
                self._check_copy(path, entry.copy_of)
                self._check_derived(path, entry.derive)
            if entry.usual is not REQUIRED and value != entry.usual:
                self.notes.append(f"{path}={show(value)}: {entry.why}")
            if entry.supported is not REQUIRED and value != entry.supported:
                text = f"not supported: expected {show(entry.supported)}, got {show(value)}"
                self.problem(path, text, entry.why)

    def _computed(self, compute: Derive) -> Any:
        """Compute a value from the other values. Return None if one of these is missing or wrong."""
        try:
            return compute(self.values)
        except (KeyError, ArithmeticError, TypeError, ValueError):
            return None

    def _check_copy(self, path: str, other: str) -> None:
        if other in self.values and self.values[path] != self.values[other]:
            given = {path: self.values[path], other: self.values[other]}
            self.problems.append(Problem(given, "must be equal: xlstm-hydra has a single field for both"))

    def _check_derived(self, path: str, derive: Derive | None) -> None:
        expected = None if derive is None else self._computed(derive)
        if derive is not None and expected is not None and self.values[path] != expected:
            used = _Used(self.values)
            derive(used)
            sources = ", ".join(f"{name}={show(self.values[name])}" for name in used.names)
            text = f"expected {show(expected)} from {sources}, got {show(self.values[path])}"
            self.problems.append(Problem.about(path, text))

    def flat(self) -> dict[str, Any]:
        """Return the values of all fields that correspond to one of our fields, by our field names."""
        return {entry.target: self.values[path] for path, entry in self.fields.items() if entry.target}

    def paths(self) -> dict[str, str]:
        """Return the recorded paths of all fields that correspond to one of our fields, by our field names."""
        return {entry.target: path for path, entry in self.fields.items() if entry.target}


class _Used(dict[str, Any]):
    """A dict that records which keys are accessed."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.names[name] = None
        return super().__getitem__(name)


def join(path: str, name: str) -> str:
    """Return the path of a field in a section."""
    return f"{path}.{name}" if path else name


def maps_to(name: str, kind: Kind, default: Any = REQUIRED) -> Field:
    """Return an entry for a field that corresponds to our field `name`."""
    return Field(kind=kind, target=name, default=default)


def copy_of(path: str, kind: Kind, default: Any = REQUIRED, *initial: Any) -> Field:
    """Return an entry for a copy of the field at `path`. `initial` are the values, besides null, that the copy may have
    if it was never set."""
    return Field(kind=kind, copy_of=path, default=default, initial=lambda _: initial)


def derived(derive: Derive, kind: Kind, initial: Derive = lambda _: ()) -> Field:
    """Return an entry for a field derived from others. `initial` returns the values, besides null, that the field may
    have if it was never set."""
    return Field(kind=optional(kind), derive=derive, initial=initial)


def supported_only(kind: Kind, value: Any, why: str, default: Any = REQUIRED) -> Field:
    """Return an entry for a field without counterpart for which only one value is supported."""
    return Field(kind=kind, supported=value, why=why, default=default)


def no_counterpart(kind: Kind, usual: Any, why: str, default: Any = REQUIRED) -> Field:
    """Return an entry for a field without counterpart, which adds a note unless the field has its usual value."""
    return Field(kind=kind, usual=usual, why=why, default=default)


def unset_note(path: str) -> str:
    """Return the note about an unknown field that is null."""
    return f"{path}=null: unknown field; null has no effect"


def log_ignored(path: str, unset: Iterable[str], unknown: Sequence[str]) -> None:
    """Log the unknown fields that were ignored in metadata, once per file.

    Args:
        path: the path of the metadata file, for messages.
        unset: paths of unknown fields that are null.
        unknown: paths of unknown fields that lenient reading ignored.
    """
    for name in unset:
        _log_once(f"{path}: {unset_note(name)}")
    if unknown:
        _log_once(f"{path}: ignored unknown fields: {', '.join(unknown)}")


@functools.cache
def _log_once(text: str) -> None:
    log.warning("%s", printable(text))
