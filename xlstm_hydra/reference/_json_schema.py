"""JSON Schemas (draft 2020-12) for the files in `conf/` and for a user's own config files. Editors use them for
completion and validation."""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING
from functools import cache
from pathlib import Path
from typing import Any

from xlstm_hydra.conf_dir import conf_dir

from ._catalog import Catalog, FieldEntry
from ._option_files import HIDDEN

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECIPES = ("config", "experiment", "debug")
"""Names of the schemas of files that contain absolute keys."""

_INTERPOLATION = {"type": "string", "pattern": r"\$\{.*\}|^\?\?\?$"}
_DEFAULTS = {"description": "Hydra's defaults list.", "type": "array", "items": {"type": ["string", "object"]}}
_TARGET = {"description": "Dotted path of the class or function that Hydra calls.", "type": "string"}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", types.NoneType: "null"}


def schema_dir() -> Path:
    """Return the folder with the schemas of this installation. Hydra does not list the folder as a config group."""
    return conf_dir() / HIDDEN / "schemas"


def write_schemas(folder: Path) -> None:
    """Write all schemas into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        text = json.dumps(schema, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """Return all schemas by file name. For example, the schema of the group `hydra/launcher` is `hydra_launcher`."""
    catalog = Catalog()
    found = {_file_name(group): _group_schema(catalog, group) for group in catalog.groups if group not in RECIPES}
    return {**found, **{name: _recipe_schema(catalog, name) for name in RECIPES}}


def _file_name(group: str) -> str:
    return group.replace("/", "_")


def _group_schema(catalog: Catalog, group: str) -> dict[str, Any]:
    fields = catalog.fields(group)
    used = {key.partition(".")[0] for option in catalog.options[group].values() for key in option.values}
    properties: dict[str, Any] = {"defaults": _DEFAULTS, "_target_": _TARGET}
    properties |= {entries[0].name: _field_schema(entries) for entries in fields.values()}
    properties |= {key: {} for key in sorted(used - {*properties})}
    if group == "model":
        properties |= {"_checkpoint_": {"type": ["string", "null"]}}
    schema = _object(f"xlstm-hydra: options of {group}", catalog.summary(group), properties)
    if not fields:
        return schema | {"additionalProperties": True}
    return _open_to_others(schema, "model_class" if group == "model" else "_target_" if "/" in group else "")


def _object(title: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": DIALECT,
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {"interpolation": _INTERPOLATION},
    }


def _open_to_others(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """Extend a schema to allow any properties if the value of `key` names a class that is not ours, because the fields
    of that class are unknown."""
    if not key:
        return schema
    del schema["additionalProperties"]
    names = dict.fromkeys(schema["properties"], True)
    is_foreign = {"required": [key], "properties": {key: {"not": {"pattern": "^(xlstm_hydra|hydra_plugins)\\."}}}}
    return schema | {"if": is_foreign, "else": {"properties": names, "additionalProperties": False}}


def _field_schema(entries: list[FieldEntry]) -> dict[str, Any]:
    """Return the schema of a field. It accepts every value that a config class with this field accepts, and
    interpolations."""
    meanings = dict.fromkeys(entry.meaning for entry in entries)
    schema: dict[str, Any] = {"description": " ".join(meanings)}
    defaults = [entry.default for entry in entries]
    if defaults[0] is not MISSING and all(default == defaults[0] for default in defaults):
        schema["default"] = defaults[0]
    variants = _distinct(_value_schema(entry) for entry in entries)
    if {} in variants:
        return schema
    return schema | {"anyOf": [*variants, {"$ref": "#/$defs/interpolation"}]}


def _distinct(schemas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    return found


def _value_schema(entry: FieldEntry) -> dict[str, Any]:
    if entry.allowed:
        return {"enum": list(entry.allowed)}
    return _type_schema(entry.hint, entry.bounds)


def _type_schema(hint: Any, bounds: dict[str, float]) -> dict[str, Any]:
    if hint in _TYPES:
        return {"type": _TYPES[hint], **(bounds if hint in (int, float) else {})}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(argument, bounds) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], {})}
    if origin is dict:
        return {"type": "object"}
    assert hint is Any or not issubclass(hint, enum.Enum)
    return {}


def _recipe_schema(catalog: Catalog, name: str) -> dict[str, Any]:
    """Return the schema of a file that sets several groups: a recipe in the package `_global_`, or the primary
    config."""
    groups = [group for group in catalog.groups if group not in RECIPES]
    properties: dict[str, Any] = {"defaults": _defaults_schema(catalog)}
    properties |= {group: {"$ref": f"{group}.json"} for group in groups if "/" not in group}
    inside = {group.partition("/")[2]: {"$ref": f"{_file_name(group)}.json"} for group in groups if "/" in group}
    properties["hydra"] = {"description": "Settings of Hydra.", "type": "object", "properties": inside}
    title = "xlstm-hydra: primary config" if name == "config" else f"xlstm-hydra: recipes for {name}"
    return _object(title, "A file that sets several groups at once.", properties)


def _defaults_schema(catalog: Catalog) -> dict[str, Any]:
    """Return the schema of the defaults list, with the built-in options for completion."""
    choices = {}
    for group in catalog.groups:
        option = {"anyOf": [{"enum": [*catalog.options[group], None]}, {"type": ["string", "array"]}]}
        choices |= {group: option, f"override /{group}": option}
    return _DEFAULTS | {"items": {"anyOf": [{"type": "string"}, {"type": "object", "properties": choices}]}}
