"""The text beside a checkpoint: one JSON object with a version, written simply and read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from xlstm_hydra.configs import ConfigError, ModelConfig, RunConfig
from xlstm_hydra.configs._problems import Problem

VERSION = 1
"""Version of what `write_metadata` writes."""

FORMAT = "xlstm_hydra"
"""Marks a text as ours."""

_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each old version, what turns its content into the next one's."""


class MetadataError(ConfigError):
    """Metadata that cannot be read, with the path of every field that is wrong."""


def write_metadata(run: RunConfig, **extra: Any) -> dict[str, Any]:
    """Everything that a run was made from, as plain JSON values. Where its processes were is no part of that.

    Args:
        run: the config.
        extra: what else belongs to the record, such as `provenance` or the list of parameters. Plain JSON values.

    Raises:
        ValueError: a value that JSON cannot hold.
    """
    config = run.to_dict() | {"distributed": run.distributed.lasting().to_dict()}
    content = {"format": FORMAT, "version": VERSION, "config": config, **extra}
    json.dumps(content, allow_nan=False)  # a bad value would otherwise fail later, in the thread that writes
    return content


def read_metadata(text: str) -> dict[str, Any]:
    """The content of a metadata text in the current version.

    Raises:
        MetadataError: not JSON, not ours, or of a version that this program does not know.
    """
    content = _parse(text)
    if content.get("format") != FORMAT:
        raise _error(
            "format", f"expected {FORMAT!r}, got {content.get('format')!r}", "This is no metadata of xlstm_hydra."
        )
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise _error(
            "version", f"expected 1 to {VERSION}, got {version!r}", "A newer xlstm-hydra wrote it; upgrade to read it."
        )
    for old in range(version, VERSION):
        content = _UPGRADES[old](content)
    return content


def read_run(text: str) -> RunConfig:
    """The run that a metadata text records.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    return _decode(RunConfig, read_metadata(text), ("config",))


def read_model(text: str) -> ModelConfig:
    """The model that a metadata text records, with its class as a dotted path.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    return _decode(ModelConfig, read_metadata(text), ("config", "model"))


def _decode(config_class: type, content: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    data: Any = content
    for depth, key in enumerate(path):
        if not isinstance(data, Mapping) or key not in data:
            raise _error(".".join(path[: depth + 1]), "missing", "")
        data = data[key]
    try:
        return config_class.from_dict(config_class, data, ignore_extensive_attributes=False)  # pyright: ignore[reportAttributeAccessIssue]
    except ConfigError as error:
        raise MetadataError(problem.at(".".join(path)) for problem in error.problems) from None


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _error("", f"not JSON: {error.msg} at {where}", "The file may be cut off.") from None
    except RecursionError:
        raise _error("", "nested too deeply to be metadata", "") from None
    if not isinstance(content, dict):
        raise _error("", f"expected a JSON object, got a {type(content).__name__}", "")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _error(twice, "stands there twice", "")
    return content


def _refuse_constant(name: str) -> Any:
    raise _error("", f"{name} is not JSON", "Numbers that are not finite are written as strings.")


def _error(path: str, text: str, fix: str) -> MetadataError:
    return MetadataError([Problem.about(path, text, fix)])
