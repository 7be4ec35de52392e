"""The text beside a checkpoint: one JSON object with a version, written simply and read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from xlstm_hydra.codec import Flags, collect, dotted
from xlstm_hydra.configs import RunConfig
from xlstm_hydra.problems import Problem, UnknownField, nearest, show

from ._json_text import MetadataError, error, parse, step
from ._registry import refused_config, refused_model_class, refused_tags

VERSION = 2
"""Version of what `write_metadata` writes."""

FORMAT = "xlstm_hydra"
"""Marks a text as ours."""

_STRICT = Flags(ignore_unknown=False, as_written=True)

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
    """In version 1, the cell always added 1e-6, original mLSTM blocks had no feed-forward layer, and checkpoints had no
    manifest and were read strictly."""
    content = content | {"version": 2}
    if not isinstance(config := content.get("config"), dict):
        return content
    new: dict[str, Any] = {}
    if isinstance(model := config.get("model"), dict):
        new["model"] = model | _new_fields_of(model.get("model_config"))
    if isinstance(checkpoint := config.get("checkpoint"), dict):
        new["checkpoint"] = _CHECKPOINT | checkpoint
    return content | {"config": config | new}


def _new_fields_of(fields: Any) -> dict[str, Any]:
    """The config of a model of version 1, with the fields that were added. A family is recognised by its fields, as the
    config of a user's model may be a subclass of ours."""
    if not isinstance(fields, dict) or "reset_fgate_value" not in fields:
        return {}
    is_original = "conv1d_kernel_size" in fields and "slstm_at" not in fields
    return {"model_config": _CELL | (_FEED_FORWARD if is_original else {}) | fields}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _v1_to_v2}
"""For each old version, what turns its content into the next one's."""


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
"""What may be recorded beside the config, with its type: `provenance`, the list of parameters, a digest of the
data, how the steps before were made, and where parameters come from that others trained."""


def write_metadata(run: RunConfig, **extra: Any) -> dict[str, Any]:
    """Everything that a run was made from, as plain JSON values. Where its processes were is no part of that.

    Args:
        run: the config.
        extra: what else belongs to the record, of `EXTRAS`. Plain JSON values.

    Raises:
        ValueError: a value that JSON cannot hold, or that would not be read back.
    """
    config = run.to_dict() | {"distributed": run.distributed.lasting().to_dict()}
    content = {"format": FORMAT, "version": VERSION, "config": config, **extra}
    json.dumps(content, allow_nan=False)  # a bad value would otherwise fail later, in the thread that writes
    wrong = [problem.at("config") for problem in collect(RunConfig, config, _STRICT)[1]]
    if problems := [*wrong, *_beside(extra)]:
        raise MetadataError(problems)
    return content


def read_metadata(text: str | bytes) -> dict[str, Any]:
    """The content of a metadata text in the current version.

    Raises:
        MetadataError: not JSON, not ours, or of a version that this program does not know.
    """
    return upgrade(parse(text))


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Metadata of ours, of any version, in the current version.

    Raises:
        MetadataError: not ours, or of a version that this program does not know.
    """
    if content.get("format") != FORMAT:
        text = f"expected {FORMAT!r}, got {show(content.get('format'))}"
        raise error("format", text, "This is no metadata of xlstm_hydra.")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        is_newer = type(version) is int and version > VERSION
        fix = "A newer xlstm-hydra wrote it; upgrade to read it." if is_newer else "It is a whole number from 1 on."
        raise error("version", f"expected 1 to {VERSION}, got {show(version)}", fix)
    for old in range(version, VERSION):
        content = _UPGRADES[old](content)
    return content


def read_run(text: str | bytes, classes: Iterable[type] = ()) -> RunConfig:
    """The run that a metadata text of ours records.

    Args:
        text: the metadata.
        classes: model and config classes that it may name beside ours and those that `register_model_class` and
            `allow_modules` allow.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    return decode_run(read_metadata(text), classes)[0]


def decode_run(
    content: dict[str, Any], classes: Iterable[type] = (), lenient: bool = False
) -> tuple[RunConfig, list[UnknownField]]:
    """The run that metadata of ours records, with the unknown fields that are null or that a lenient reading let pass.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    known = ("format", "version", "config", *EXTRAS)
    strangers = [name for name in content if name not in known]
    problems: list[Problem] = [
        UnknownField.of(step(name), content[name], "no such field", nearest(name, known) if index < 20 else "")
        for index, name in enumerate(strangers)
    ]
    problems += _beside({name: value for name, value in content.items() if name in EXTRAS})
    config = content.get("config")
    if not isinstance(config, dict):
        what = f"expected an object, got {show(config)}" if "config" in content else "missing"
        raise MetadataError([*problems, Problem.about("config", what)])
    by_name = {dotted(cls): cls for cls in classes}
    refused = list(_refused_classes(config, by_name))
    run, wrong = (None, refused) if refused else collect(RunConfig, config, _STRICT)
    problems += [problem.at("config") for problem in wrong]
    unknown = [problem for problem in problems if isinstance(problem, UnknownField) and (lenient or problem.is_null)]
    problems = [problem for problem in problems if problem not in unknown]
    if wrong and not problems:  # its own rules have not been looked at yet
        run, wrong = collect(RunConfig, config, Flags(as_written=True))
        problems = [problem.at("config") for problem in wrong]
    if run is not None and not problems:
        problems = [problem.at("config.model") for problem in refused_config(run.model)]
    if problems or run is None:
        raise MetadataError(problems)
    return run, unknown


def _refused_classes(config: dict[str, Any], classes: Mapping[str, type]) -> Iterator[Problem]:
    yield from refused_tags(config, classes)
    model = config.get("model")
    if isinstance(model, dict) and "model_class" in model:
        yield from (problem.at("model.model_class") for problem in refused_model_class(model["model_class"], classes))


def _beside(extra: Mapping[str, Any]) -> Iterator[Problem]:
    """Every problem of what stands beside the config."""
    for name, value in extra.items():
        if name not in EXTRAS:
            yield Problem.about(step(name), "no such field", nearest(name, EXTRAS))
        elif name == "parameters" and isinstance(value, dict):  # thousands, which a closer look would make slow
            wrong = (path for path, parameter in value.items() if not _is_parameter(parameter))
            yield from (Problem.about(step(path), "expected a shape and a dtype").at(name) for path in wrong)
        else:
            yield from (problem.at(name) for problem in collect(EXTRAS[name], value, _STRICT)[1])


def _is_parameter(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"shape", "dtype"} or not isinstance(value["shape"], list):
        return False
    return isinstance(value["dtype"], str) and all(type(size) is int and size >= 0 for size in value["shape"])
