"""Convert Hydra's errors about overrides to `Problem`s, which name the key, the broken rule and a fix."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    OmegaConfBaseException,
    UnsupportedValueType,
    ValidationError,
)

from xlstm_hydra.codec import hints, type_name
from xlstm_hydra.configs import RunConfig
from xlstm_hydra.errors import first_line
from xlstm_hydra.problems import Problem, UnknownKey, Unread, either, near_name, nearest, show
from xlstm_hydra.synonyms import same_meaning

from ._hydra_part import not_installed
from ._options import no_such_option, options_near, options_with
from ._quote import list_keys, text_keys
from ._unreadable import INTERPOLATION_FORM, of_list_element, quoted_argument

PARAMS = "hydra.sweeper.params."
"""Prefix of keys whose values are sweep overrides."""

_MODEL_KEYS = ("model_class", "config_class", "parallel")
"""Keys of the `model` node that each option of `model` sets, so that they are not suggested to users."""

_TYPO = 0.85
"""Minimum similarity, from 0 to 1, at which a key is treated as a typo of another key in its group, even if another
group has a key of exactly this name."""


def unset_variable(error: Exception) -> Problem | None:
    """Return the `Problem` for an environment variable in `hydra.job.env_copy` that is not set; None for any other
    error."""
    if not isinstance(error, KeyError):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-2:]
    names = [str(frame.f_globals.get("__name__")) for frame in frames]
    if names != ["hydra._internal.config_loader_impl", "os"]:
        return None
    fix = "Set it, or remove it from the list."
    return Problem.about("hydra.job.env_copy", f"the environment variable {error.args[0]} is not set", fix)


def of_params(key: str, text: str) -> Problem:
    """Return the `Problem` for an override of a single key of `hydra.sweeper.params`."""
    fix = f"Write {text.partition(PARAMS)[2]}, which has the same effect."
    return Problem.about(key, "single keys of hydra.sweeper.params cannot be set on the command line", fix)


def interval_types(overrides: Iterable[Override], cfg: DictConfig) -> Iterator[Problem]:
    """Yield a `Problem` for each override that sweeps an integer field over an interval of floats.

    Args:
        overrides: sweep overrides.
        cfg: config without the overrides.
    """
    for override in overrides:
        interval, key = override.value(), override.key_or_group
        if not isinstance(interval, IntervalSweep) or not isinstance(interval.start, float) or not _exists(key, cfg):
            continue
        expected = expected_type(key, cfg)
        if expected in ("int", "int or null"):
            text = str(override.input_line)
            fix = f"Write {override.get_key_element()}=int({override.get_value_string()})."
            yield Problem.about(text, f"expected {expected}, but the interval gives floats", fix)


def refused(override: Override, error: Exception, cfg: DictConfig) -> Problem:
    """Return the `Problem` for an override that Hydra rejected.

    Args:
        override: the rejected override.
        error: exception raised by Hydra.
        cfg: config without the override.
    """
    key, text = override.key_or_group, str(override.input_line)
    if "[" in key:
        return of_list_element(text)
    if key.startswith(PARAMS) and not _exists(key, cfg):
        return of_params(key, text)
    if problem := missing_engine(error):
        return problem
    if getattr(error, "missing_cfg_file", None) == f"{key}/{override.value()}":
        return no_such_option(key, override.value(), getattr(error, "options", None) or ())
    choices = OmegaConf.select(cfg, "hydra.runtime.choices") or ()
    exists, is_choice = _exists(key, cfg), key in choices
    if "/" in key and not override.is_delete():
        return _no_such_group(override, choices)
    if override.is_delete():
        rule = "a field cannot be removed" if exists else "the key to remove does not exist"
        return Problem.about(text, rule, "Set it to another value." if exists else "")
    if override.is_add() and (is_choice or exists):
        return Problem.about(text, f"{key} already exists", f"Write {text[1:]}, without the +.")
    if is_choice and not isinstance(override.value(), str | list):
        return _no_option_name(override)
    if is_choice and override.is_force_add() and isinstance(override.value(), str):
        return _forced_option(override)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, GrammarParseError):
        return Problem.about(text, "the value is not a valid interpolation", INTERPOLATION_FORM)
    problem = _wrong_type(key, override.value(), cause, cfg)
    if problem is None and not is_choice:
        problem = unknown_key(key, cfg, override.config_loader)
    return problem or Problem.about(text, first_line(error))


def not_options(override: Override) -> Problem | None:
    """Return a `Problem` if an override selects a list of options and not all of them are strings, which makes Hydra
    crash."""
    value: Any = override.value()
    is_wrong = isinstance(value, list) and not all(isinstance(item, str) for item in value)
    return _no_option_name(override) if is_wrong and _options_of(override) else None


def _no_option_name(override: Override) -> Problem:
    options = _options_of(override)
    fix = f"Known: {', '.join(options)}." if options else ""
    return Problem({override.key_or_group: override.value()}, "must be the name of an option", fix)


def _options_of(override: Override) -> list[str]:
    loader = override.config_loader
    return (
        [] if loader is None else [name for name in loader.get_group_options(override.key_or_group) if name[0] != "_"]
    )


def _no_such_group(override: Override, choices: Iterable[Any]) -> Problem:
    """Return the `Problem` for an override of a config group without a selected option."""
    key, loader = override.key_or_group, override.config_loader
    options = [] if loader is None else loader.get_group_options(key)
    if options and not override.is_add():
        text = str(override.input_line)
        return Problem.about(text, "this group is not in the defaults list", f"To add it, write +{text.lstrip('+')}.")
    if key in choices:
        return Problem.about(
            key, "the group has no options", "Use --config-dir=DIR to add a folder with options of the group."
        )
    known = nearest(key, map(str, choices))
    return Problem.about(
        key, "no such group", known if known.startswith("Did") else "To list all groups, use --info defaults."
    )


def _forced_option(override: Override) -> Problem:
    """Return the `Problem` for `++group=option`, which would set a value instead of selecting the option."""
    key, name, loader = override.key_or_group, override.value(), override.config_loader
    options = loader.get_group_options(key) if loader else ()
    if name in options:
        return Problem.about(str(override.input_line), "++ cannot select an option", f"Write {key}={name}.")
    return no_such_option(key, name, options)


def wrong_value(key: str, value: Any, error: Exception, cfg: DictConfig, config_loader: ConfigLoader) -> Problem:
    """Return the `Problem` for a value that cannot be merged into the config.

    Args:
        key: key of the value.
        value: the rejected value.
        error: exception raised by OmegaConf.
        cfg: config without the value.
        config_loader: Hydra's config loader.
    """
    problem = _wrong_type(key, value, error, cfg) or unknown_key(key, cfg, config_loader)
    return problem or Problem({key: value}, first_line(error))


def _wrong_type(key: str, value: Any, error: Exception, cfg: DictConfig) -> Problem | None:
    node = OmegaConf.select(cfg, key, throw_on_missing=False) if _exists(key, cfg) else None
    if isinstance(node, DictConfig) and isinstance(value, dict) and (expected := _expected_of_items(node)):
        wrong = next((name for name, item in value.items() if item is None or isinstance(item, dict | list)), None)
        if wrong is not None:
            return Unread.about(
                key, f"expected {expected} for {wrong}, got {show(value[wrong])}", _quoted(value[wrong])
            )
    if isinstance(node, DictConfig):
        return Unread.about(key, f"expected a mapping, got {show(value)}")
    if isinstance(error, ValidationError | UnsupportedValueType) and (expected := expected_type(key, cfg)):
        return Unread.about(key, f"expected {expected}, got {show(value)}", _quoted(value) if expected == "str" else "")
    return None


def _quoted(value: Any) -> str:
    """Return the suggested fix if `value` is null where text is expected; otherwise an empty string."""
    return "Write 'null' in quotes for the text null." if value is None else ""


def missing_engine(error: Exception) -> Problem | None:
    """Return the `Problem` for a launcher or sweeper that Hydra cannot find because its package is not installed; None
    for any other error."""
    group, _, name = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
    return not_installed(group, name)


def _exists(key: str, cfg: DictConfig) -> bool:
    try:
        parent, name = _parent(key, cfg)
    except (OmegaConfBaseException, TypeError):
        return False
    return isinstance(parent, DictConfig) and name in parent


def _parent(key: str, cfg: DictConfig) -> tuple[Any, str]:
    path, _, name = key.rpartition(".")
    return (OmegaConf.select(cfg, path) if path else cfg), name


def expected_type(key: str, cfg: DictConfig) -> str | None:
    """Return the type of a field as text for messages, such as `int or null`; None if the type is unknown."""
    parent, name = _parent(key, cfg)
    cls = OmegaConf.get_type(parent) if isinstance(parent, DictConfig) else None
    if cls and dataclasses.is_dataclass(cls):
        return type_name(hints(cls)[name]) if name in hints(cls) else None
    return _expected_of_items(parent) if isinstance(parent, DictConfig) else None


def _expected_of_items(node: DictConfig) -> str | None:
    """Return the declared type of a mapping's values as text for messages; None if they are not declared as scalars."""
    kind = node._metadata.element_type
    return type_name(kind) if kind in (bool, int, float, str) else None


def unknown_key(key: str, cfg: DictConfig, config_loader: ConfigLoader | None = None) -> Problem | None:
    """Return the `Problem` for a dotted key that does not exist, naming its shortest missing prefix; None if the key
    exists."""
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return Problem.about(key, f"{'.'.join(parts[:depth])} is a single value and has no fields")
        if part not in node:
            fix = _way_out(parts, depth, node, cfg, config_loader)
            return UnknownKey.about(".".join(parts[: depth + 1]), "no such key", fix)
        if OmegaConf.is_interpolation(node, part) and depth < len(parts) - 1:
            text = "its fields cannot be set, because its value is an interpolation"
            return Problem.about(".".join(parts[: depth + 1]), text, _same_name(parts[-1], cfg))
        node = OmegaConf.select(cfg, ".".join(parts[: depth + 1]))
    return None


def _way_out(parts: list[str], depth: int, node: DictConfig, cfg: DictConfig, loader: ConfigLoader | None) -> str:
    """Suggest a replacement for an unknown key. Tried in this order: a very similar key of the same node, a key of
    another option of the group, a key of another group, and a less similar key of the same node."""
    if depth == 0 and parts[0] in RunConfig.__dataclass_fields__:
        return f"No option of this group is selected: add {parts[0]}=OPTION."
    siblings, has_schema = _typed_names(parts[:depth], node), dataclasses.is_dataclass(OmegaConf.get_type(node))
    meant = near_name(parts[depth], siblings, cutoff=_TYPO)
    if meant is None and parts[0] != "hydra":
        if depth == 1 and has_schema and (options := options_with(parts[0], parts[1], loader)):
            return f"It is only available with {either(options)}."
        if has_schema and depth == 1 and (found := options_near(parts[0], parts[1], loader, cutoff=_TYPO)):
            return f"Did you mean {parts[0]}.{found[0]}? It is only available with {either(found[1])}."
        if elsewhere := _same_name(parts[-1], cfg):
            return elsewhere
    if meant := meant or near_name(parts[depth], siblings):
        return f"Did you mean {'.'.join([*parts[:depth], meant, *parts[depth + 1 :]])}?"
    if depth and not has_schema:
        return f"To add it, write +{'.'.join(parts)}=..."
    return f"Known: {', '.join(siblings)}."


def _typed_names(path: list[str], node: DictConfig) -> list[str]:
    """Return the keys of a node that users set: excluding `hydra`, private keys, and keys set by the `model` option."""
    names = [str(name) for name in node if name != "hydra" and not str(name).startswith("_")]
    fields = [name for name in names if path != ["model"] or name not in _MODEL_KEYS]
    return fields or names


def _same_name(name: str, cfg: DictConfig) -> str:
    same = same_meaning(name, paths(OmegaConf.to_container(cfg, resolve=False)))
    return f"Did you mean {either(same)}?" if same else ""


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values outside the `hydra` node."""
    for name, item in tree.items():
        if not name.startswith("_") and (prefix or name != "hydra"):
            yield from paths(item, f"{prefix}{name}.") if isinstance(item, dict) else [f"{prefix}{name}"]


def several_values(override: Override) -> Problem:
    """Return the `Problem` for an override that lists several values (`a=1,2`) without -m."""
    key, _, values = str(override.input_line).partition("=")
    name, is_choice = override.key_or_group, isinstance(override.value(), ChoiceSweep)
    fix = "Add -m to run one job for each value"
    if is_choice and name in text_keys():
        fix += f", or write {quoted_argument(key, values)} for text that contains commas"
    elif is_choice and (name in list_keys() or override.is_add()):
        fix += f", or write {key}=[{values}] for a list"
    return Problem.about(str(override.input_line), "several values for a single run", f"{fix}.")


def several_for_hydra(override: Override) -> Problem:
    """Return the `Problem` for a sweep over a key of the `hydra` node."""
    text = str(override.input_line)
    if override.key_or_group.startswith(PARAMS):
        return of_params(override.key_or_group, text)
    return Problem.about(text, "Hydra's own settings must be the same for all jobs of a sweep", "Give a single value.")
