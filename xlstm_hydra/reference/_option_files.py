"""Read the YAML files of options and recipes, with the values that they set and their comments. No code is run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HIDDEN = "xlstm_hydra"
"""Name of the folder in `conf/` with files that are shared by several options."""

_SCHEMA = f"/{HIDDEN}/schema/"
_HEADER = re.compile(r"#\s*(@package|yaml-language-server:)")


class Value(NamedTuple):
    """A value as written in a file, and the comment that follows it."""

    text: str
    comment: str


@dataclass
class OptionFile:
    """The file of an option."""

    group: str
    """Name of the group with slashes, such as hydra/launcher. Empty: the file is a primary config."""

    name: str
    file: Path
    comment: str = ""
    """Comment at the top of the file, as one paragraph."""

    is_global: bool = False
    """True if the file is a recipe, with absolute keys."""

    values: dict[str, Value] = field(default_factory=dict)
    """Values by key. Keys are absolute in a recipe, and relative to the config group in any other file."""

    bases: list[str] = field(default_factory=list)
    """Files in the defaults list that this file extends."""

    choices: dict[str, str] = field(default_factory=dict)
    """Options in the defaults list, by group."""

    schema: str = ""
    """Name of the schema of the option. Empty: the option has no schema."""

    @property
    def typed(self) -> str:
        """Option as typed on the command line, such as parallel=fsdp."""
        return f"{self.group}={self.name}"

    def whole_values(self) -> dict[str, Value]:
        """Return the values by absolute key, such as hydra.launcher.nodes."""
        package = "" if self.is_global else f"{self.group.replace('/', '.')}."
        return {f"{package}{key}": value for key, value in self.values.items()}


def read_options(folders: Sequence[Path]) -> dict[str, dict[str, OptionFile]]:
    """Return all options in some config folders, by group and name. An option hides options with the same name in later
    folders."""
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
    """Read one file. If the file is not valid YAML, the error replaces its comment."""
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
    """Return the comment at the top of a file, and True if it moves the file to the package `_global_`."""
    comment, is_global = [], False
    for line in lines:
        if not line.startswith("#"):
            break
        is_global |= "@package _global_" in line
        if not _HEADER.match(line):
            comment.append(line.lstrip("# "))
    return " ".join(comment), is_global


def _read_defaults(option: OptionFile, entries: Iterable[Any]) -> None:
    """Set the schema, the extended files and the choices of an option from the entries of its defaults list."""
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
    """Yield the dotted key and the value, as written, of every value inside a YAML node."""
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
    """Add the values and the schema of the files that an option extends to the option, and return it."""
    option = found[place]
    bases, option.bases = option.bases, []
    for base in bases:
        if base in found:
            other = _extended(base, found)
            option.values = {**other.values, **option.values}
            option.schema = option.schema or other.schema
    return option
