"""Config groups, options and keys for tab completion. They are read from YAML files and config classes, without
composing a config and without importing Hydra or JAX."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from xlstm_hydra.conf_dir import conf_dir

_SCHEMA = re.compile(r"/?xlstm_hydra/schema/(\w+)@_here_")
_INTERNAL = "xlstm_hydra"
"""Group in `conf/` from which users do not select options."""


@dataclass(frozen=True)
class Leaf:
    """A key with a single value: a field of a config class, an annotated name in Hydra's source, or a key in YAML."""

    value: Any = None
    """Value in YAML. None: null, or not from YAML."""

    owner: type | None = None
    """Config class of the field. None: not a field of a config class."""

    name: str = ""
    """Name of the field in its class."""

    choices: tuple[str, ...] = ()
    """Allowed values, if known without a config class."""

    def values(self) -> tuple[str, ...]:
        """Return the allowed values, as written on the command line; empty if they cannot be listed."""
        if self.owner is None:
            return ("true", "false") if isinstance(self.value, bool) else self.choices
        from xlstm_hydra.configs import OnInvalid
        from xlstm_hydra.reference import rules_of

        kind = str(self.owner.__dataclass_fields__[self.name].type)
        if "bool" in kind:
            return ("true", "false")
        if kind == "OnInvalid":
            return tuple(OnInvalid.__members__)
        return tuple("null" if value is None else value for value in rules_of(self.owner).choices.get(self.name, ()))


Node = dict[str, Any]
"""Keys of a group, each mapped to a `Leaf` or to a nested `Node`."""


@dataclass
class KnownKeys:
    """Groups, options and keys that can be used on a command line."""

    folders: tuple[Path, ...] = ()
    """The user's config folders, which take precedence over `conf/`."""

    config_name: str = "config"
    """Name of the primary config."""

    typed: tuple[str, ...] = ()
    """Overrides that are already on the command line."""

    saved: Path | None = None
    """Run folder of the saved run in `--from` or `resume`. None: not given."""

    _read: dict[Path, Any] = field(default_factory=dict)

    def groups(self, parent: str = "") -> dict[str, bool]:
        """Return the groups directly inside a group, each mapped to True if it has options of its own."""
        found: dict[str, bool] = {}
        for folder in self._folders_of(parent):
            for item in _subfolders(folder):
                name = f"{parent}/{item.name}" if parent else item.name
                if name != _INTERNAL and (any(item.glob("*.yaml")) or any(item.glob("*/*.yaml"))):
                    found[name] = found.get(name, False) or any(item.glob("*.yaml"))
        return found

    def options(self, group: str) -> list[str]:
        """Return the options of a group."""
        found = {file.stem for folder in self._folders_of(group) for file in folder.glob("*.yaml")} if group else set()
        is_saved = self.saved is not None and group in self._default_choices
        return sorted(found | ({"ckpt"} if is_saved else set()))

    def config_names(self) -> list[str]:
        """Return the names that can be given to `--config-name`."""
        return sorted({file.stem for folder in (*self.folders, conf_dir()) for file in folder.glob("*.yaml")})

    @cached_property
    def chosen(self) -> dict[str, list[str]]:
        """Selected options by group: from the primary config's defaults list, from recipes on the command line (options
        that select options of other groups, such as `experiment`), and from the command line itself."""
        found = dict(self._default_choices)
        typed = [text.lstrip("+").partition("=") for text in self.typed if not text.startswith("~")]
        choices = {group.partition("@")[0]: value.split(",") for group, equals, value in typed if equals}
        choices = {group: values for group, values in choices.items() if self.options(group)}
        for group, values in choices.items():
            for option in values:
                found |= self._overridden(group, option)
        return found | choices

    def node(self, path: str) -> Node:
        """Return the keys of the node at a dotted path; empty if there is no such node."""
        group, *rest = path.split(".")
        node = _hydra_node() | self._hydra_engines() if group == "hydra" else self._group_node(group)
        for name in rest:
            found = node.get(name)
            node = found if isinstance(found, dict) else {}
        return node

    def leaf(self, key: str) -> Leaf | None:
        """Return the `Leaf` at a dotted path; None if the path does not exist or is a node."""
        parent, _, name = key.rpartition(".")
        found = self.node(parent).get(name) if parent else None
        return found if isinstance(found, Leaf) else None

    def with_keys(self) -> list[str]:
        """Return the groups whose options set keys under the group's name, and `hydra`. Recipes such as `experiment`
        set keys of other groups instead."""
        chosen = ((group, options) for group, options in self.chosen.items() if "/" not in group)
        found = [group for group, options in chosen if any(self._has_keys(group, option) for option in options)]
        return [*found, "hydra"]

    # ---- the files

    def _folders_of(self, group: str) -> list[Path]:
        roots = (*self.folders, conf_dir(), *_hydra_conf())
        return [folder for root in roots if (folder := root / group).is_dir()]

    def _content(self, group: str, option: str) -> tuple[dict[str, Any], str]:
        """Return the parsed content of an option's file, and its text; both are empty if the file does not exist."""
        file = next((file for at in self._folders_of(group) if (file := at / f"{option}.yaml").is_file()), None)
        if file is None:
            return {}, ""
        if file not in self._read:
            self._read[file] = _yaml(text := file.read_text(encoding="utf-8")), text
        return self._read[file]

    def _has_keys(self, group: str, option: str) -> bool:
        if option == "ckpt" and self.saved:
            return True
        return option != "null" and "@package _global_" not in self._content(group, option)[1]

    @cached_property
    def _default_choices(self) -> dict[str, list[str]]:
        return self._defaults("", self.config_name)

    def _defaults(self, group: str, name: str, depth: int = 0) -> dict[str, list[str]]:
        """Return the options selected by a primary config's defaults list and by the configs it includes."""
        found: dict[str, list[str]] = {}
        for entry in self._content(group, name)[0].get("defaults", ()):
            if isinstance(entry, str) and entry not in ("_self_", name) and depth < 5:
                found |= self._defaults("", entry.lstrip("/"), depth + 1)
            found |= _choices_in(entry)
        return found

    def _overridden(self, group: str, option: str) -> dict[str, list[str]]:
        """Return the options selected by a recipe's defaults list, such as `override /model: mlstm_v1_7b`."""
        if self._has_keys(group, option):
            return {}
        entries = self._content(group, option)[0].get("defaults", ())
        return {group: options for entry in entries for group, options in _choices_in(entry).items()}

    # ---- the keys

    def _group_node(self, group: str) -> Node:
        typed = any(text.lstrip("+").startswith((f"{group}=", f"{group}@")) for text in self.typed)
        if self.saved and not typed:
            return self._saved_node(group)
        found: Node = {}
        for option in self.chosen.get(group, ()):
            found |= self._saved_node(group) if option == "ckpt" and self.saved else self._option_node(group, option)
        return found

    def _option_node(self, group: str, option: str, depth: int = 0) -> Node:
        """Return the keys of an option: those in its schema, in the options it includes, and in its file."""
        content = dict(self._content(group, option)[0])
        found: Node = {}
        for entry in content.pop("defaults", ()):
            if not isinstance(entry, str) or entry == "_self_" or depth > 5:
                continue
            if match := _SCHEMA.fullmatch(entry):
                found |= _schema_node(match[1])
            else:
                path = entry.partition("@")[0]
                base, _, name = path.removeprefix("/").rpartition("/") if "/" in path else (group, "", path)
                found |= self._option_node(base, name, depth + 1)
        return _leaves(content) | found

    def _saved_node(self, group: str) -> Node:
        """Return the keys of a group in the saved run's config. If the config is unknown, return the keys of all
        options of the group."""
        recorded = self._record.get(group)
        if not isinstance(recorded, dict):
            return {key: leaf for name in self.options(group) for key, leaf in self._option_node(group, name).items()}
        class_name = str(recorded.get("config_class")).rpartition(".")[2]
        return _leaves(recorded) | _schema_node(str(recorded.get("name", group)), class_name)

    @cached_property
    def _record(self) -> dict[str, Any]:
        file = self.saved / "config.yaml" if self.saved else None
        return _yaml(file.read_text(encoding="utf-8")) if file and file.is_file() else {}

    def _hydra_engines(self) -> Node:
        """Return the keys of the selected sweeper and launcher."""
        default = {"launcher": ["basic"], "sweeper": ["xlstm"]}
        chosen = {name: self.chosen.get(f"hydra/{name}", options) for name, options in default.items()}
        return {
            name: {key: leaf for option in options for key, leaf in self._option_node(f"hydra/{name}", option).items()}
            for name, options in chosen.items()
        }


def _subfolders(folder: Path) -> Iterator[Path]:
    yield from (item for item in folder.iterdir() if item.name.isidentifier() and item.is_dir())


def _yaml(text: str) -> dict[str, Any]:
    try:
        content: Any = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        content = None
    return content if isinstance(content, dict) else {}


def _choices_in(entry: Any) -> dict[str, list[str]]:
    """Return the options selected by a defaults list entry. Entries with a package, such as `from@_global_`, are
    skipped."""
    if not isinstance(entry, dict):
        return {}
    named = {str(key).split()[-1].lstrip("/"): value for key, value in entry.items()}
    return {key: ["null" if value is None else str(value)] for key, value in named.items() if "@" not in key}


def _leaves(content: Mapping[Any, Any]) -> Node:
    items = ((str(key), value) for key, value in content.items())
    return {key: _leaves(value) if isinstance(value, dict) else Leaf(value) for key, value in items}


def _schema_node(name: str, class_name: str = "") -> Node:
    """Return the keys of a schema, given its name in defaults lists or the name of its config class."""
    from xlstm_hydra import configs

    engines = {name: cls for classes in configs.PLUGIN_CLASSES.values() for name, cls in classes.items()}
    found = getattr(configs, class_name, None) or configs.OPTIONS.get(name) or engines.get(name)
    return {each.name: Leaf(None, found, each.name) for each in fields(found)} if found else {}


# ---- Hydra's source, which is parsed because importing Hydra would take longer than everything else here


@cache
def _hydra_conf() -> tuple[Path, ...]:
    found = importlib.util.find_spec("hydra")
    return tuple(Path(at) / "conf" for at in (found.submodule_search_locations or ())) if found else ()


def _hydra_node() -> Node:
    """Return the keys of the `hydra` node, except those of the sweeper and the launcher, and those that only Hydra
    sets."""
    found = _annotated(_hydra_conf()[0] / "__init__.py", "HydraConf") | {"mode": Leaf(choices=("RUN", "MULTIRUN"))}
    return {key: leaf for key, leaf in found.items() if key not in ("defaults", "overrides", "runtime")}


def _annotated(file: Path, name: str) -> Node:
    """Return the fields of a dataclass in a source file, including the fields of nested dataclasses."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return _fields_in(classes, name)


def _fields_in(classes: Mapping[str, ast.ClassDef], name: str) -> Node:
    found: Node = {}
    for line in classes[name].body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kind = ast.unparse(line.annotation)
            nested = _fields_in(classes, kind) if kind in classes else {}
            found[line.target.id] = nested or Leaf(choices=("true", "false") if "bool" in kind else ())
    return found
