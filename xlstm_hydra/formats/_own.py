"""Our own metadata format: a JSON object with a version number, read strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xlstm_hydra.codec import Flags, collect
from xlstm_hydra.problems import Problem, UnknownField, nearest, show

from ._json_text import error, parse, path_part

VERSION = 3
"""Version of the format in which metadata is written."""

FORMAT = "xlstm_hydra"
"""Value of the key `format` that identifies our metadata."""

STRICT = Flags(ignore_unknown=False, as_written=True)
"""Flags for reading our own metadata."""

_CELL = {"cell_eps": 1e-6}
_FEED_FORWARD = {
    "ff_type": None,
    "ff_proj_factor": 4 / 3,
    "ff_round_proj_up_dim_up": True,
    "ff_round_proj_up_to_multiple_of": 64,
    "act_fn": "gelu",
    "ff_dtype": None,
}
_CHECKPOINT = {"lenient": False, "verify": True}


def _v1_to_v2(content: dict[str, Any]) -> dict[str, Any]:
    """Upgrade version 1 to version 2. In version 1, the epsilon of the cell was always 1e-6, original mLSTM blocks had
    no feed-forward layer, and checkpoints had no manifest and were read strictly."""
    content = content | {"version": 2}
    if not isinstance(config := content.get("config"), dict):
        return content
    new: dict[str, Any] = {}
    if isinstance(model := config.get("model"), dict):
        new["model"] = model | _new_fields_of(model.get("model_config"))
    if isinstance(checkpoint := config.get("checkpoint"), dict):
        new["checkpoint"] = _CHECKPOINT | checkpoint
    return content | {"config": config | new}


def _v2_to_v3(content: dict[str, Any]) -> dict[str, Any]:
    """Upgrade version 2, in which the logger never printed the whole plan."""
    config = content.get("config")
    if isinstance(config, dict) and isinstance(logger := config.get("logger"), dict):
        content = content | {"config": config | {"logger": {"verbose": False} | logger}}
    return content | {"version": 3}


def _new_fields_of(fields: Any) -> dict[str, Any]:
    """Return the upgraded model config of version 1. The model family is recognized by the fields of the config,
    because a user's config class may be a subclass of ours."""
    if not isinstance(fields, dict) or "reset_fgate_value" not in fields:
        return {}
    is_original = "conv1d_kernel_size" in fields and "slstm_at" not in fields
    return {"model_config": _CELL | (_FEED_FORWARD if is_original else {}) | fields}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _v1_to_v2, 2: _v2_to_v3}
"""For each old version, the function that upgrades its content to the next version."""


EXTRAS: Mapping[str, Any] = {
    "overrides": list[str],
    "packages": dict[str, str],
    "python": str,
    "git": dict[str, Any] | None,
    "package_git": dict[str, Any] | None,
    "argv": list[str],
    "parameters": dict,
    "corpus": str,
    "history": list[dict[str, Any]],
    "imported": dict[str, Any],
}
"""Further keys that the metadata may contain, with their types: the keys of `provenance`, the shapes and dtypes of the
parameters, a digest of the corpus, the history of earlier runs, and the origin of imported parameters."""


def read_metadata(text: str | bytes) -> dict[str, Any]:
    """Return the content of our own metadata text, upgraded to the current version.

    Raises:
        MetadataError: the text is not JSON, not our format, or has an unknown version.
    """
    return upgrade(parse(text))


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Upgrade our own metadata from any version to the current version.

    Raises:
        MetadataError: the content is not our format or has an unknown version.
    """
    if content.get("format") != FORMAT:
        text = f"expected {FORMAT!r}, got {show(content.get('format'))}"
        raise error("format", text, "The file is not xlstm_hydra metadata.")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        is_newer = type(version) is int and version > VERSION
        fix = (
            "The file was written by a newer xlstm-hydra. Upgrade first." if is_newer else "Versions are whole numbers."
        )
        raise error("version", f"expected 1 to {VERSION}, got {show(version)}", fix)
    for old in range(version, VERSION):
        content = _UPGRADES[old](content)
    return content


def problems_beside(content: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem with a key other than `config` in metadata of the current version."""
    known = ("format", "version", "config", *EXTRAS)
    for index, name in enumerate(name for name in content if name not in known):
        guess = nearest(name, known) if index < 20 else ""
        yield UnknownField.of(path_part(name), content[name], "no such field", guess)
    for name in content:
        if name in EXTRAS:
            yield from (problem.at(name) for problem in _problems_of(name, content[name]))


def _problems_of(name: str, value: Any) -> Iterator[Problem]:
    if name == "parameters" and isinstance(value, dict):  # thousands of entries, for which `collect` would be slow
        wrong = (path for path, parameter in value.items() if not _is_parameter(parameter))
        yield from (Problem.about(path_part(path), "expected a shape and a dtype") for path in wrong)
    else:
        yield from collect(EXTRAS[name], value, STRICT)[1]


def _is_parameter(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"shape", "dtype"} or not isinstance(value["shape"], list):
        return False
    return isinstance(value["dtype"], str) and all(type(size) is int and size >= 0 for size in value["shape"])
