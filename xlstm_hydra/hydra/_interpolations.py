"""Errors not caused by a single override: unresolved interpolations, and objects that Hydra cannot instantiate."""

from __future__ import annotations

import re
import traceback
from typing import Any

from hydra.errors import InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import InterpolationResolutionError, UnsupportedInterpolationType

from xlstm_hydra.errors import first_line
from xlstm_hydra.problems import Problem, Unread, either, near_name, nearest
from xlstm_hydra.synonyms import same_meaning

from ._hydra_part import TARGET_FORM
from ._refusals import expected_type, missing_engine, paths
from ._unreadable import unreadable

_NO_KEY = re.compile(r"Interpolation key '(.+?)' not found(?: \(resolved to '(.+)'\))?")
_NO_RESOLVER = re.compile(r"Unsupported interpolation type '?([^' ]+)")
_NO_VARIABLE = re.compile(r"Environment variable '(.+)' not found")
_WRONG_VALUE = re.compile(r"While dereferencing interpolation .*?: Value ('.*?'|\S+) ")
_FAILED = re.compile(r"(\w+) raised while resolving interpolation: (.*)")
"""OmegaConf's error messages about interpolations."""

_KEY = "\nfull_key: "
_ADVICE = ", set env var HYDRA_FULL_ERROR=1"
_INSTANTIATE = "hydra._internal.instantiate._instantiate2"
_LOCATING = "Error locating target "
_NO_ARGUMENT = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w+)'")
_NO_PLUGIN = re.compile(r"(?:Invalid plugin|Unknown plugin class :) '(.*?)'")


def whole(error: Exception) -> Problem:
    """Return the `Problem` for an error not caused by a single override, without the listings that Hydra appends."""
    if isinstance(error, OverrideParseException):  # an override in a file, such as in hydra.sweeper.params
        return unreadable(error.override, error)
    if isinstance(error, InstantiationException):
        return not_made(error)
    if problem := missing_engine(error):
        return problem
    if isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType):
        return Problem.about(str(error.full_key or "an interpolation"), *_why_unresolved("", error, OmegaConf.create()))
    text = str(error).strip().partition("\n\n")[0].partition("\n    full_key: ")[0]
    return Problem({}, " ".join(text.split()) or type(error).__name__)


def unresolved(key: str, value: Any, error: Exception, cfg: DictConfig) -> Problem:
    """Return the `Problem` for an interpolation that cannot be resolved.

    Args:
        key: dotted key whose value is or contains the interpolation.
        value: the unresolved value.
        error: exception raised by OmegaConf.
        cfg: the whole config.
    """
    return Unread({key: value}, *_why_unresolved(key, error, cfg))


def _why_unresolved(key: str, error: Exception, cfg: DictConfig) -> tuple[str, str]:
    """Return the broken rule and the fix for an interpolation that cannot be resolved."""
    text = first_line(error)
    if "GrammarParseError" in text:
        return "the interpolation resolves to text that cannot be parsed as a value", ""
    if match := _NO_KEY.search(text):
        name = match[2] or match[1]
        return f"refers to a key that does not exist: {name}", _near_key(name, cfg)
    if match := _NO_RESOLVER.search(text):
        known = [name for name in BaseContainer._resolvers if not name.startswith("xlstm_")]
        return f"there is no resolver {match[1]}", nearest(match[1], sorted(known))
    if "Recursive interpolation" in text:
        return "refers to itself", ""
    if "Interpolation to parent node" in text:
        return "refers to a group that contains it", "Refer to a single key of the group."
    if match := _NO_VARIABLE.search(text):
        return f"the environment variable {match[1]} is not set", ""
    if match := _WRONG_VALUE.search(text):
        return f"expected {expected_type(key, cfg) or 'another type'}, got {match[1]}", ""
    if match := _FAILED.search(text):
        is_call = match[1] == "TypeError" and "argument" in match[2]
        return "the resolver does not accept these arguments" if is_call else f"the resolver failed: {match[2]}", ""
    return text, ""


def _near_key(name: str, cfg: DictConfig) -> str:
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    is_own = name.startswith("hydra.")
    names = list(paths(tree.get("hydra", {}), "hydra.") if is_own else paths(tree))
    if near := near_name(name, names, cutoff=0.75):
        return f"Did you mean {near}?"
    same = same_meaning(name.rpartition(".")[2], names)
    return f"Did you mean {either(same)}?" if same else ""


def not_made(error: Exception) -> Problem:
    """Return the `Problem` for an object that `hydra.utils.instantiate` could not create."""
    text, _, key = _with_notes(error).partition(_KEY)
    text = " ".join(text.partition(_ADVICE)[0].split()).rstrip(".")
    if not key:
        return Problem({}, text)
    if text.startswith(_LOCATING):
        return Problem.about(f"{key}._target_", f"cannot import {text.removeprefix(_LOCATING)}", TARGET_FORM)
    if match := _NO_ARGUMENT.search(text):
        return Problem.about(f"{key}.{match[1]}", "no such key")
    return Problem.about(key, text)


def unknown_engine(error: Exception) -> Problem | None:
    """Return the `Problem` for a launcher or sweeper that is not a Hydra plugin, or that does not accept one of its
    settings; None for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")) for frame in frames[-1:]]
    if isinstance(error, TypeError) and names == [_INSTANTIATE] and _KEY in _with_notes(error):  # Hydra 1.4
        return not_made(error)
    if not isinstance(error, RuntimeError | ImportError) or names != ["hydra.core.plugins"]:
        return None
    group = "launcher" if any(frame.f_code.co_name == "instantiate_launcher" for frame in frames) else "sweeper"
    key, fix = f"hydra.{group}._target_", f"Choose an option with hydra/{group}=..."
    if match := _NO_PLUGIN.match(str(error)):
        return Problem({key: match[1]}, f"is not a Hydra {group} plugin", fix)
    return Problem.about(key, " ".join(str(error).partition("\n\n")[0].split()), fix)


def _with_notes(error: Exception) -> str:
    """Return the message of an error, followed by its notes, because Hydra 1.4 adds the key as a note."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
