"""Reading of checkpoint metadata into configs. `formats` translates the values recorded by xlstm-jax into fields of
this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xlstm_hydra.codec import Flags, collect, dotted, find_class
from xlstm_hydra.formats import (
    FORMAT,
    PUBLISHED_CLASSES,
    STRICT,
    WRITER,
    MetadataError,
    PlainGroup,
    Reading,
    error,
    is_xlstm_jax,
    parse,
    problems_beside,
    read_xlstm_jax,
    unset_note,
    upgrade,
)
from xlstm_hydra.problems import ConfigError, Problem, UnknownField, nearest, show

from ._config_dict import ConfigDict
from ._registry import (
    WAY_OUT,
    allowed_class,
    config_class_of,
    refused_config,
    refused_model_class,
    refused_tags,
)


@dataclass(frozen=True, kw_only=True)
class RecordedConfigs:
    """Configs read from a metadata text, with notes about fields that could not be used."""

    writer: str
    """Program that wrote the metadata: xlstm_hydra or xlstm_jax."""

    groups: Mapping[str, ConfigDict]
    """Config of every recorded group, by name. Metadata of xlstm-hydra has all groups; metadata of xlstm-jax has model,
    parallel, optimizer, scheduler, trainer, checkpoint and logger."""

    content: Mapping[str, Any]
    """The whole metadata as plain JSON values."""

    unknown: tuple[str, ...] = ()
    """Paths of unknown fields with a value other than null, which are allowed only if reading is lenient."""

    unset: tuple[str, ...] = ()
    """Paths of unknown fields that are null and therefore have no effect."""

    notes: tuple[str, ...] = ()
    """Notes about recorded values that are in no config, because they had no effect or have no equivalent."""


def read_configs(text: str | bytes, *, lenient: bool = False, classes: Iterable[type] = ()) -> RecordedConfigs:
    """Read a metadata text; see `xlstm_hydra.metadata.read_record`."""
    content = parse(text)
    try:
        return _read_foreign(content, lenient) if is_xlstm_jax(content) else _read_own(content, classes, lenient)
    except RecursionError:
        raise error("", "nested too deeply to be metadata") from None


def _class(name: str) -> Any:
    """Return a config class of this package by name. Its module cannot be imported by this module, because
    `ModelConfig.from_metadata` uses this module."""
    return find_class(f"{__package__}.{name}")


# ---- our own metadata


def _read_own(content: dict[str, Any], classes: Iterable[type], lenient: bool) -> RecordedConfigs:
    content = upgrade(content)
    problems = list(problems_beside(content))
    config = content.get("config")
    if not isinstance(config, dict):
        what = f"expected an object, got {show(config)}" if "config" in content else "missing"
        raise MetadataError([*problems, Problem.about("config", what)])
    run_class, by_name = _class("RunConfig"), {dotted(cls): cls for cls in classes}
    refused = list(_refused_classes(config, by_name))
    run, wrong = (None, refused) if refused else collect(run_class, config, STRICT)
    problems += [problem.at("config") for problem in wrong]
    passed = [problem for problem in problems if isinstance(problem, UnknownField) and (lenient or problem.is_null)]
    problems = [problem for problem in problems if problem not in passed]
    if wrong and not problems:  # only unknown fields: the rules have not been checked yet
        run, wrong = collect(run_class, config, Flags(as_written=True))
        problems = [problem.at("config") for problem in wrong]
    if run is not None and not problems:
        found = refused_config(run.model.class_path(), run.model.model_config)
        problems = [problem.at("config.model") for problem in found]
    if problems or run is None:
        raise MetadataError(problems)
    unset = tuple(key for problem in passed if problem.is_null for key in problem.keys)
    return RecordedConfigs(
        writer=FORMAT,
        groups=run.groups(),
        content=content,
        unknown=tuple(key for problem in passed if not problem.is_null for key in problem.keys),
        unset=unset,
        notes=tuple(map(unset_note, unset)),
    )


def _refused_classes(config: dict[str, Any], classes: Mapping[str, type]) -> Iterator[Problem]:
    yield from refused_tags(config, classes)
    model = config.get("model")
    if isinstance(model, dict) and "model_class" in model:
        yield from (problem.at("model.model_class") for problem in refused_model_class(model["model_class"], classes))


# ---- metadata of xlstm-jax


def _read_foreign(content: dict[str, Any], lenient: bool) -> RecordedConfigs:
    plain, reading = read_xlstm_jax(content, lenient)
    own = plain.pop("model", None)
    notes, broken = list(reading.notes), list[Problem]()
    model_class, config = ("", None) if own is None else _read_own_model(own, reading, broken)
    groups = _build(plain, notes, broken)
    if problems := [*broken, *reading.problems]:
        raise MetadataError(problems)
    if own is None:
        config = groups.pop("model_config")
        model_class = config.flax_class
    model = _class("ModelConfig")(model_class, groups["parallel"], config)
    return RecordedConfigs(
        writer=WRITER,
        groups={"model": model, **groups},
        content=content,
        unknown=tuple(reading.unknown),
        unset=tuple(reading.unset),
        notes=tuple(dict.fromkeys([*notes, *map(unset_note, reading.unset)])),
    )


def _build(plain: Mapping[str, PlainGroup], notes: list[str], broken: list[Problem]) -> dict[str, Any]:
    """Return the config of every group that can be built. If a group cannot be built, the reasons are added to
    `broken`, or to `notes` if the group is optional."""
    configs: dict[str, Any] = {}
    for name, group in plain.items():
        reason: Any = group.unsupported
        values = _with_defaults(group)
        notes += [note.format(values[field]) for field, note in group.not_recorded.items()]
        notes += group.notes
        try:
            configs |= {} if reason else {name: _class(group.class_name)(**values)}
        except (ValueError, ArithmeticError) as wrong:
            reason = wrong
        if reason and group.is_optional:
            notes.append(f"{group.path}: read without the group {name}, because its values are not supported: {reason}")
        elif reason:
            broken += _as_recorded(reason, group)
    return configs


def _with_defaults(group: PlainGroup) -> dict[str, Any]:
    """Return the values of a group, with the defaults of this package for values that were not recorded and have a
    note."""
    values = dict(group.values)
    for name in group.not_recorded:
        values.setdefault(name, _class(group.class_name).__dataclass_fields__[name].default)
    if "batch_size" in values and (parts := values["gradient_accumulate_steps"]) > 1:  # batch_size must be a multiple
        values["batch_size"] = -(-values["batch_size"] // parts) * parts
    return values


def _as_recorded(wrong: Exception, group: PlainGroup) -> list[Problem]:
    """Return the problems in the config of a group, with the recorded paths of the fields as keys."""
    if not isinstance(wrong, ConfigError):
        return [Problem.about(group.path, f"not a valid model: {wrong}")]
    fields = _class(group.class_name).__dataclass_fields__
    paths = {name: group.paths.get(name, f"{group.path}.{name}") for name in fields}

    def rename(text: str) -> str:
        for name, path in paths.items():
            text = text.replace(f"{{{name}}}", f"{{/{path}}}")
        return text

    return [
        replace(
            problem,
            given={f"/{paths.get(key, f'{group.path}.{key}')}": value for key, value in problem.given.items()},
            rule=rename(problem.rule),
            fix=rename(problem.fix),
        )
        for problem in wrong.problems
    ]


def _read_own_model(group: PlainGroup, reading: Reading, broken: list[Problem]) -> tuple[str, Any]:
    """Read a model class that xlstm-jax did not publish, and its config. The config class is the one that annotates the
    field `config`. Problems are added to `broken`, and unknown fields to `reading`."""
    cls, data = allowed_class(group.class_name), group.values.get("model_config")
    class_key, path = f"{group.path}.model_class", f"{group.path}.model_config"
    config_class = None if cls is None else config_class_of(cls)
    if cls is None:
        name = group.values["model_class"]
        text = f"{show(name)} is neither a model class published by xlstm-jax nor allowed in this program"
        broken.append(Problem.about(class_key, text, f"{nearest(str(name), PUBLISHED_CLASSES)} {WAY_OUT}"))
    elif not isinstance(data, dict):
        broken.append(Problem.about(path, f"expected an object, got {show(data)}" if data else "missing"))
    elif config_class is None:
        broken.append(Problem.about(class_key, f"the field config of {cls.__name__} is not annotated with a dataclass"))
    else:
        for problem in collect(config_class, data, Flags(ignore_unknown=False))[1]:
            if isinstance(problem, UnknownField):
                reading.unknown_field(f"{path}.{problem.keys[0]}", problem.fix, is_null=problem.is_null)
            else:
                broken.append(problem.at(path))
        return dotted(cls), collect(config_class, data, Flags(ignore_unknown=True))[0]
    return "", None
