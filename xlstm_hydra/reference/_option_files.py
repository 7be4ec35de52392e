"""YAML files of options and recipes: what each one sets, and its comments. No code runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HIDDEN = "xlstm_hydra"
"""Folder in `conf/` with what the options share."""

_SCHEMA = f"/{HIDDEN}/schema/"
_HEADER = re.compile(r"#\s*(@package|yaml-language-server:)")


class Value(NamedTuple):
    """A value as it is written in a file, with the comment after it."""

    text: str
    comment: str


@dataclass
class OptionFile:
    """A file of an option."""

    group: str
    """Group with slashes, such as hydra/launcher. Empty: a primary config."""

    name: str
    file: Path
    comment: str = ""
    """The comment at the top, as one paragraph."""

    is_global: bool = False
    """True if the keys are whole: the file is a recipe."""

    values: dict[str, Value] = field(default_factory=dict)
    """Values by key: whole keys of a recipe, otherwise relative to the group."""

    bases: list[str] = field(default_factory=list)
    """Other files in its defaults list, which it extends."""

    choices: dict[str, str] = field(default_factory=dict)
    """Options of other groups in its defaults list."""

    schema: str = ""
    """Name of the schema of the option. Empty: it has none."""

    @property
    def typed(self) -> str:
        """The option as it is typed, such as parallel=fsdp."""
        return f"{self.group}={self.name}"

    def whole_values(self) -> dict[str, Value]:
        """Return the values by whole keys, such as hydra.launcher.nodes."""
        package = "" if self.is_global else f"{self.group.replace('/', '.')}."
        return {f"{package}{key}": value for key, value in self.values.items()}


def read_options(folders: Sequence[Path]) -> dict[str, dict[str, OptionFile]]:
    """Read all options in config folders, by group and name. An option in an earlier folder hides others."""
    found: dict[str, OptionFile] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            place = file.relative_to(folder).with_suffix("").as_posix()
            if place not in found:
                found[place] = read_option(file, *place.rpartition("/")[::2])
    options: dict[str, dict[str, OptionFile]] = {}
    for place in found:
        option = _extended(place, found)
        if option.group.partition("/")[0] != HIDDEN:
            options.setdefault(option.group, {})[option.name] = option
    return options


def read_option(file: Path, group: str, name: str) -> OptionFile:
    """Read one file. If it is not valid YAML, the comment says so."""
    import yaml

    option = OptionFile(group, name, file)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    option.comment, option.is_global = _header(lines)
    try:
        root = yaml.compose("\n".join(lines), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        option.comment = f"cannot be read: {' '.join(str(error).split())}"
        return option
    if isinstance(root, yaml.MappingNode):
        for key, node in root.value:
            if key.value == "defaults" and isinstance(node, yaml.SequenceNode):
                _read_defaults(option, node.value)
            else:
                option.values.update(_flat(key.value, node, lines))
    return option


def _header(lines: Iterable[str]) -> tuple[str, bool]:
    """The comment at the top, and whether it moves the file to the package `_global_`."""
    comment, is_global = [], False
    for line in lines:
        if not line.startswith("#"):
            break
        is_global |= "@package _global_" in line
        if not _HEADER.match(line):
            comment.append(line.lstrip("# "))
    return " ".join(comment), is_global


def _read_defaults(option: OptionFile, entries: Iterable[Any]) -> None:
    """Sort the entries of a defaults list into the schema, extended files, and choices."""
    for entry in entries:
        if isinstance(entry.value, str):
            path = entry.value.partition("@")[0]
            if path.startswith(_SCHEMA):
                option.schema = path.removeprefix(_SCHEMA)
            elif path != "_self_":
                option.bases.append(path.removeprefix("/") if path[0] == "/" else f"{option.group}/{path}".lstrip("/"))
            continue
        for key, value in entry.value:
            group = key.value.removeprefix("override ").partition("@")[0]
            is_whole = group.startswith("/") or not option.group
            option.choices[group.removeprefix("/") if is_whole else f"{option.group}/{group}"] = value.value


def _flat(key: str, node: Any, lines: list[str]) -> Iterator[tuple[str, Value]]:
    """Yield the values inside a node by dotted key, as they are written."""
    if node.id == "mapping" and node.value:
        for name, inner in node.value:
            yield from _flat(f"{key}.{name.value}", inner, lines)
        return
    start, end = node.start_mark, node.end_mark
    if node.id == "scalar" and node.style in ("|", ">"):
        yield key, Value("(a text)", "")
    elif start.line != end.line:
        yield key, Value(" ".join("\n".join(lines[start.line : end.line]).split())[start.column :], "")
    else:
        line = lines[start.line]
        rest = line[end.column :].strip()
        yield key, Value(line[start.column : end.column], rest.lstrip("# ") if rest[:1] == "#" else "")


def _extended(place: str, found: dict[str, OptionFile]) -> OptionFile:
    """Return an option with the values of the files that it extends."""
    option = found[place]
    bases, option.bases = option.bases, []
    for base in bases:
        if base in found:
            other = _extended(base, found)
            option.values = {**other.values, **option.values}
            option.schema = option.schema or other.schema
    return option
