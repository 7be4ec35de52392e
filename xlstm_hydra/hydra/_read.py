"""Convert a composed config to a `RunConfig`, collecting all problems instead of stopping at the first one."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.base import Node
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from xlstm_hydra.codec import Flags, collect, hints, unchecked
from xlstm_hydra.configs import (
    AutoParallelConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    locate_class,
)
from xlstm_hydra.problems import ConfigError, Missing, Problem, UnknownGroup, Unread, independent, nearest, show

from ._interpolations import unresolved
from ._options import planned_device

_STRICT = Flags(ignore_unknown=False)
_LAYOUT = "${oc.select:parallel,null}"
"""Value of `model.parallel` in `conf/`: the layout selected in the group `parallel`."""
_TARGET = "xlstm_hydra.hydra.make_model_config"
"""Required value of `model._target_`: the function that `hydra.utils.instantiate(cfg.model)` calls."""
_NODE_KEYS = ("_target_", "model_class", "config_class", "parallel", "_checkpoint_")


def config_of(data: Any) -> DictConfig:
    """Make an OmegaConf config from plain data.

    Raises:
        ConfigError: the data is not a mapping, or has keys that are not strings.
    """
    if not isinstance(data, Mapping):
        raise ConfigError([Problem({}, f"expected a composed config or a mapping of groups, got {show(data)}")])
    if problems := list(_wrong_keys(data, "")):
        raise ConfigError(problems)
    return OmegaConf.create(dict(data))


def _wrong_keys(data: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    for key, value in data.items():
        if not isinstance(key, str):
            yield Problem.about(path, f"a key must be a string, got {show(key)}")
        elif isinstance(value, Mapping):
            yield from _wrong_keys(value, f"{path}.{key}" if path else key)


def read_groups(cfg: DictConfig, problems: list[Problem], without: Sequence[str] = ("hydra",)) -> RunConfig:
    """Return the run, without values that cannot be read. Their problems are appended to `problems`.

    Args:
        cfg: the composed config.
        problems: list to append to.
        without: dotted keys to skip.
    """
    plain = to_plain(cfg, problems, without=(*without, "model.parallel") if _shows_layout(cfg) else without)
    groups: dict[str, Any] = {}
    hints_of_run = typing.get_type_hints(RunConfig)
    names = [field.name for field in dataclasses.fields(RunConfig)]
    for key in plain:
        if key not in names and key != "parallel":
            problems.append(UnknownGroup.about(key, "no such group", nearest(key, [*names, "parallel"])))
    for name in names:
        if name == "model":
            groups[name] = _read_model(plain, problems)
        elif name in plain:
            groups[name] = collect_field(hints_of_run[name], plain[name], name, problems)
    groups["device"] = planned_device(groups.get("task"), groups.get("device"), problems)
    return unchecked(RunConfig, {name: value for name, value in groups.items() if value is not None})


def fields_of(run: RunConfig) -> Iterator[str]:
    """Yield the dotted keys of all fields of a run, as the user types them."""
    for group, config in run.groups().items():
        own = config.model_config if isinstance(config, ModelConfig) else config
        yield from (f"{group}.{name}" for name in (() if own is None else hints(type(own))))


def _shows_layout(cfg: DictConfig) -> bool:
    """True if `model.parallel` is the interpolation of the group `parallel`, so that it need not be read separately."""
    model = cfg.get("model") if "parallel" in cfg and not OmegaConf.is_missing(cfg, "model") else None
    child = model._get_node("parallel") if isinstance(model, DictConfig) and "parallel" in model.keys() else None
    return isinstance(child, Node) and child._value() == _LAYOUT


def cross_rules(run: RunConfig, broken: list[Problem]) -> list[Problem]:
    """Return the broken rules that involve several groups.

    Args:
        run: the run. Values that could not be read are missing.
        broken: problems already found. Rules that depend on their keys are skipped.
    """
    found = (
        problem for part in run.rule_parts(os.environ) for problem in (_as_far_as_possible(part) if broken else part)
    )
    return independent(found, broken)


def _as_far_as_possible(rules: Iterable[Problem]) -> Iterator[Problem]:
    """Yield broken rules of a run with missing values, and stop at the first rule that needs a missing value."""
    try:
        yield from rules
    except (AttributeError, TypeError, ArithmeticError):
        return


def collect_field(hint: Any, data: Any, path: str, problems: list[Problem]) -> Any:
    """Convert a value to its annotated type, and append any problems to `problems`.

    Args:
        hint: annotated type.
        data: plain value.
        path: dotted key of the value.
        problems: list to append to.
    """
    value, found = collect(hint, data, _STRICT)
    problems.extend(independent((problem.at(path) for problem in found), problems))
    return value


def to_plain(
    node: DictConfig, problems: list[Problem], path: str = "", without: Sequence[str] = ("hydra",)
) -> dict[str, Any]:
    """Return a node as plain data, without missing values (`???`) and interpolations that cannot be resolved. A
    `Problem` for each of them is appended to `problems`."""
    plain: dict[str, Any] = {}
    for key in map(str, node):
        where = f"{path}.{key}" if path else key
        if where in without:
            continue
        if (known := _simple_value(node, key)) is not _NOT_SIMPLE:
            plain[key] = known
            continue
        try:
            value = node[key]
            if isinstance(value, str) and value == "???":  # target of an interpolation; OmegaConf 2.4 itself raises
                raise MissingMandatoryValue
            if isinstance(value, DictConfig):  # problems are reported at the interpolation's target
                value = to_plain(value, [] if OmegaConf.is_interpolation(node, key) else problems, where, without)
            plain[key] = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except (MissingMandatoryValue, InterpolationToMissingValueError):
            problems.append(Missing.about(where, "missing", f"Write {where}=..."))
        except OmegaConfBaseException as error:
            raw: Any = OmegaConf.to_container(node, resolve=False)
            problems.append(unresolved(where, raw[key], error, cast(DictConfig, node._get_root())))
    return plain


_NOT_SIMPLE: Any = object()


def _simple_value(node: DictConfig, key: str) -> Any:
    """Return a scalar that is not an interpolation, read 10x faster than with OmegaConf; `_NOT_SIMPLE` for all other
    values."""
    content = node.__dict__["_content"]
    child = content.get(key) if isinstance(content, dict) else None
    value = child._value() if isinstance(child, ValueNode) else _NOT_SIMPLE
    if value is None or type(value) in (bool, int, float):
        return value
    return value if type(value) is str and value.isidentifier() else _NOT_SIMPLE


def _read_model(plain: dict[str, Any], problems: list[Problem]) -> ModelConfig:
    """Read the model and its layout. Problems are appended to `problems`."""
    node = plain.get("model")
    if not isinstance(node, Mapping):
        missing, node = Missing.about("model", "missing", "Choose a model, for example model=tiny."), {}
        problems.extend(independent([missing], problems))
    elif "model_class" not in node:
        fix = "Write model.model_class=my_package.MyModel, the dotted path of a Flax class."
        problems.extend(independent([Missing.about("model.model_class", "missing", fix)], problems))
    if (target := node.get("_target_", _TARGET)) != _TARGET:
        fix = "Remove it, and set the model class with model.model_class."
        problems.append(Problem({"model._target_": target}, f"must be {_TARGET}", fix))
    parallel = _read_parallel(plain, node, problems)
    is_known = "model_class" in node or node.get("config_class") is not None
    config_class = config_class_of(node, problems) if is_known else None
    config = config_class and collect_field(config_class, config_fields(node), "model", problems)
    values = {"model_class": node.get("model_class", ""), "parallel": parallel, "model_config": config}
    return unchecked(ModelConfig, values)


def _read_parallel(plain: dict[str, Any], node: Mapping[str, Any], problems: list[Problem]) -> ParallelConfig:
    """Read the layout from the group `parallel`, or from `model.parallel` in apps without that group."""
    own = node.get("parallel")
    if "parallel" not in plain:
        return collect_layout(own or {}, "model.parallel", problems)
    if own is not None and own != plain["parallel"]:
        text = "must be the same layout as in the group parallel"
        problems.append(Problem.about("model.parallel", text, "Set parallel=OPTION or a field of parallel instead."))
    return collect_layout(plain["parallel"] or {}, "parallel", problems)


def collect_layout(data: Any, path: str, problems: list[Problem]) -> ParallelConfig:
    """Read a layout: as `AutoParallelConfig` if it has a `name` (`parallel=auto`), otherwise as `ParallelConfig`."""
    is_open = isinstance(data, Mapping) and "name" in data
    return collect_field(AutoParallelConfig if is_open else ParallelConfig, data, path, problems)


def config_fields(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the model's config dataclass from the `model` node."""
    return {key: value for key, value in node.items() if key not in _NODE_KEYS}


def config_class_of(node: Mapping[str, Any], problems: list[Problem]) -> Any:
    """Return the config class of a `model` node; None if it cannot be imported, which is reported in `problems`."""
    path = node.get("config_class")
    try:
        if path is not None:
            return locate_class(path, "model.config_class")
        return _annotated_config(node["model_class"])
    except ConfigError as error:  # without the class, no field of the model can be checked
        problems.extend(Unread(one.given, one.rule, one.fix, whole=True) for one in error.problems)
        return None


def _annotated_config(path: Any) -> Any:
    hint = typing.get_type_hints(locate_class(path, "model.model_class")).get("config")
    if not dataclasses.is_dataclass(hint):
        text = "the field `config` of this class is not annotated with a config dataclass"
        raise ConfigError(
            [Unread({"model.model_class": path}, text, "Annotate it, or set model.config_class to the dataclass.")]
        )
    return hint
