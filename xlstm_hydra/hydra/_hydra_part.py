"""Hydra's own part of a config: its rules, and the objects that Hydra makes of it."""

from __future__ import annotations

import dataclasses
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.problems import ConfigError, Problem, Unread, show

REQUIRED = (*(field.name for field in dataclasses.fields(RunConfig) if field.name != "device"), "parallel")
"""Groups of which a run needs an option."""

_CALLBACKS = "hydra.callbacks"
_KEY, _ADVICE = "\nfull_key: ", ", set env var HYDRA_FULL_ERROR=1"
_INSTANTIATE = "hydra._internal.instantiate._instantiate2"
_LOCATING = "Error locating target "
_NO_ARGUMENT = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w+)'")
_NO_PLUGIN = re.compile(r"(?:Invalid plugin|Unknown plugin class :) '(.*?)'")
_PATH = "A _target_ is the dotted path of a class that is installed or in the current folder."


def callbacks_of(cfg: DictConfig) -> Callbacks:
    """Return the callbacks of a composed config.

    Raises:
        ConfigError: Hydra's own part breaks a rule.
    """
    if problems := [*hydra_rules(cfg)]:
        raise ConfigError(problems)
    return Callbacks(cfg)


def hydra_rules(cfg: DictConfig) -> Iterator[Problem]:
    """Yield every broken rule of Hydra's own part."""
    yield from callback_problems(cfg)
    yield from unchosen_groups(cfg.hydra.runtime.choices, cfg)
    record = cfg.hydra.output_subdir
    if record is not None and (os.path.isabs(record) or ".." in Path(record).parts):
        fix = "Write a name such as .hydra, or null for no record."
        yield Problem({"hydra.output_subdir": record}, "must be a path inside of the run's folder", fix)


def unchosen_groups(choices: Any, cfg: DictConfig) -> Iterator[Problem]:
    """Yield a problem for each group that a defaults list sets to null: the run would have the values of the class.

    Args:
        choices: the option of each group, as Hydra records them.
        cfg: the composed config.
    """
    for group in REQUIRED:
        if group in choices and choices[group] is None and group not in cfg:
            fix = f"Choose one: `override /{group}: OPTION` in the file, or {group}=OPTION as argument."
            yield Unread({group: None}, "a defaults list sets the group to null, and it is required", fix)


def callback_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a problem for each callback that names no class: Hydra would warn at each event of the run."""
    callbacks: Any = OmegaConf.select(cfg, _CALLBACKS, throw_on_resolution_failure=False)
    if callbacks is None:
        return
    plain: Any = OmegaConf.to_container(callbacks, resolve=False)
    for name, value in plain.items():
        if not isinstance(value, dict):
            rule = f"expected keys and values, one of them _target_, got {show(value)}"
            yield Problem.about(f"{_CALLBACKS}.{name}", rule, _PATH)
        elif "_target_" not in value:
            yield Problem.about(f"{_CALLBACKS}.{name}._target_", "missing", _PATH)


def not_made(error: Exception) -> Problem:
    """Return the problem with an object that Hydra could not make."""
    text, _, key = _with_notes(error).partition(_KEY)
    text = " ".join(text.partition(_ADVICE)[0].split()).rstrip(".")
    if not key:
        return Problem({}, text)
    if text.startswith(_LOCATING):
        return Problem.about(f"{key}._target_", f"cannot import {text.removeprefix(_LOCATING)}", _PATH)
    if match := _NO_ARGUMENT.search(text):
        return Problem.about(f"{key}.{match[1]}", "no such key")
    return Problem.about(key, text)


def unknown_engine(error: Exception) -> Problem | None:
    """Return the problem with a launcher or sweeper that is not a plugin, or that takes no such key; None for other
    errors."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")) for frame in frames[-1:]]
    if isinstance(error, TypeError) and names == [_INSTANTIATE] and _KEY in _with_notes(error):  # of Hydra 1.4
        return not_made(error)
    if not isinstance(error, RuntimeError | ImportError) or names != ["hydra.core.plugins"]:
        return None
    group = "launcher" if any(frame.f_code.co_name == "instantiate_launcher" for frame in frames) else "sweeper"
    key, fix = f"hydra.{group}._target_", f"Choose an option with hydra/{group}=..."
    if match := _NO_PLUGIN.match(str(error)):
        return Problem({key: match[1]}, f"is not a {group} that Hydra knows", fix)
    return Problem.about(key, " ".join(str(error).partition("\n\n")[0].split()), fix)


def _with_notes(error: Exception) -> str:
    """Return the text of an error, to which Hydra 1.4 adds the key as a note."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
