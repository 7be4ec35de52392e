"""All config groups with their config classes, fields and options."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from xlstm_hydra import configs
from xlstm_hydra.conf_dir import conf_dir
from xlstm_hydra.configs import KINDS, PLUGIN_CLASSES, effect_of
from xlstm_hydra.problems import either, show

from ._option_files import OptionFile, Value, read_options
from ._read_rules import Rules, rules_of
from ._sources import meaning_of, paragraph_of

_SUMMARIES = {
    "experiment": "Recipes that set several groups at once.",
    "debug": "Small changes for debugging.",
    "model": "The model and its sizes.",
    "hydra/help": "The text of `--help`.",
    "hydra/launcher": "The jobs of a sweep: processes here, or jobs of a cluster.",
    "hydra/sweeper": "The points of a sweep.",
}
_PLAIN = re.compile(r"[\w./:-]+")
_WORDS = {int: "integer", float: "number", bool: "true or false", str: "string", Any: "any value", type(None): "null"}
_PLURALS = {int: "integers", float: "numbers", str: "strings"}


@dataclass(frozen=True)
class FieldEntry:
    """A field of one config class."""

    key: str
    """Key as typed on the command line, such as parallel.fsdp_axis_size."""

    owner: str
    """Name of the schema that has the field, such as mlstm_v1. Empty: all options of the group have the field."""

    hint: Any
    default: Any
    """Default value. MISSING: the field is required."""

    meaning: str
    allowed: tuple[Any, ...]
    """All allowed values. Empty: the allowed values are not listed."""

    bounds: dict[str, float]
    rules: tuple[str, ...]
    effect: str

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def type_text(self) -> str:
        """Type in plain words."""
        return type_words(self.hint)

    @property
    def default_text(self) -> str:
        """Default value as written on the command line, or `required`."""
        if isinstance(self.default, str) and _PLAIN.fullmatch(self.default):
            return self.default
        return "required" if self.default is MISSING else show(self.default)

    @property
    def owner_text(self) -> str:
        """Text that names the options to which this entry applies."""
        return "other options" if self.owner == self.key.partition(".")[0] else self.owner or "all options"

    @property
    def allowed_text(self) -> str:
        """Allowed values as written on the command line."""
        return either(show(value).strip("'") for value in self.allowed)


def type_words(hint: Any) -> str:
    """Return a type in plain words, such as `list of integers or null`."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_words, arguments))
    if origin is list:
        return f"list of {_PLURALS.get(arguments[0], 'values')}"
    if origin is dict or hint is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "string"
    return "group" if isinstance(hint, type) and issubclass(hint, configs.ConfigDict) else "any value"


class Catalog:
    """All config groups, with the options in `conf/` and in the given config folders."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.options: dict[str, dict[str, OptionFile]] = read_options([*folders, conf_dir()])
        """Options by group and name. The primary configs are stored under the group name `""`."""

    @cached_property
    def groups(self) -> list[str]:
        """Names of all groups: first those in the primary config, in its order, then all others."""
        first = [name for name in self.options[""]["config"].choices if name in self.options]
        return list(dict.fromkeys([*first, *(name for name in self.options if name)]))

    def classes(self, group: str) -> dict[str, type]:
        """Return the config classes of a group by schema name."""
        if group in PLUGIN_CLASSES:
            return PLUGIN_CLASSES[group]
        own = configs.options_of(group)
        return {name: cls for name, cls in configs.OPTIONS.items() if cls in own}

    def default_of(self, group: str) -> str:
        """Return the default option of a group."""
        return self.options[""]["config"].choices.get(group, "null")

    def summary(self, group: str) -> str:
        """Return a paragraph that describes a group."""
        if group in _SUMMARIES:
            return _SUMMARIES[group]
        comments = [option.comment for option in self.options[group].values() if option.comment]
        paragraphs = [meaning_of(configs.RunConfig, group), *map(paragraph_of, self.classes(group).values()), *comments]
        return next(filter(None, paragraphs), "")

    def fields(self, group: str) -> dict[str, list[FieldEntry]]:
        """Return the fields of all classes of a group, by key."""
        found: dict[str, list[FieldEntry]] = {}
        for owner, cls in self.classes(group).items():
            for entry in self._fields_of(group, owner, cls):
                found.setdefault(entry.key, []).append(entry)
        if group == "model":
            for entry in self._fields_of(group, "", configs.ModelNode):
                found[entry.key] = [entry]
        return found

    def _fields_of(self, group: str, owner: str, cls: type) -> Iterable[FieldEntry]:
        rules, hints = rules_of(cls), typing.get_type_hints(cls)
        for each in fields(cls):
            if not each.name.startswith("_"):
                yield self._field(group, owner, cls, each, hints[each.name], rules)

    def _field(self, group: str, owner: str, cls: type, each: Field[Any], hint: Any, rules: Rules) -> FieldEntry:
        key = f"{group.replace('/', '.')}.{each.name}"
        default = each.default if each.default_factory is MISSING else each.default_factory()
        allowed = rules.choices.get(each.name, ())
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            allowed, default = tuple(member.name for member in hint), getattr(default, "name", default)
        bounds = rules.bounds.get(each.name, {})
        sentences = [_with_others(key, *found) for found in self._sentences(group, cls) if key in found[0]]
        return FieldEntry(
            key=key,
            owner=owner,
            hint=hint,
            default=default,
            meaning=meaning_of(cls, each.name),
            allowed=allowed,
            bounds=bounds,
            rules=tuple(dict.fromkeys([*_bound_texts(bounds), *sentences])),
            effect="" if group in PLUGIN_CLASSES else effect_text(cls, each.name),
        )

    def _sentences(self, group: str, cls: type) -> list[tuple[tuple[str, ...], str]]:
        """Return the rules of a class and the rules of all other groups, with absolute keys."""
        own = rules_of(cls).whole(group.replace("/", "."))
        others = () if group in PLUGIN_CLASSES else self._shared_sentences
        return [*own, *((keys, text) for other, keys, text in others if other != group)]

    @cached_property
    def _shared_sentences(self) -> list[tuple[str, tuple[str, ...], str]]:
        """Group, keys and text of every rule of all classes of a run."""
        classes = [
            (group, cls) for group in self.groups if group not in PLUGIN_CLASSES for cls in self.classes(group).values()
        ]
        everything = [*classes, ("", configs.RunConfig)]
        return [(group, *found) for group, cls in everything for found in rules_of(cls).whole(group)]

    def set_by(self, key: str) -> dict[Value, list[OptionFile]]:
        """Return every value to which an option sets a key, with the options that set this value."""
        found: dict[Value, list[OptionFile]] = {}
        for options in self.options.values():
            for option in options.values():
                if (value := option.whole_values().get(key)) is not None:
                    found.setdefault(value, []).append(option)
        return found


def _bound_texts(bounds: dict[str, float]) -> list[str]:
    words = {
        "minimum": "{} or more",
        "exclusiveMinimum": "greater than {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "less than {}",
    }
    texts = [text.format(f"{bounds[word]:,}") for word, text in words.items() if word in bounds]
    return [f"must be {' and '.join(texts)}"] if texts else []


def _with_others(key: str, keys: Iterable[str], text: str) -> str:
    others = [other for other in keys if other != key and other not in text]
    return f"{text} (depends on {', '.join(others)})" if others else text


def effect_text(cls: type, name: str) -> str:
    """Return a description of what changes with the value of a field."""
    effect = effect_of(cls, name)
    if effect.traced:
        return f"{KINDS[effect.kind]}; an argument of the compiled step, so a new value does not cause recompilation"
    if effect.compiled:
        return f"{KINDS[effect.kind]}; part of the compiled step"
    return f"{KINDS[effect.kind]}; not part of the compiled step"
