"""What Hydra refuses, said like the rest: every refused override at once, with the nearest name that would be accepted."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from xlstm_hydra.configs import Problem
from xlstm_hydra.configs._problems import nearest

from ._load import read

REFUSED = (HydraException, OmegaConfBaseException)
"""What Hydra and OmegaConf raise for a user's mistake."""


def explain(error: Exception, overrides: Sequence[str], config_name: str, config_dir: str | None) -> list[Problem]:
    """Find every override that Hydra refuses, and every rule that the rest breaks.

    Hydra stops at the first mistake; here each override is tried on its own.

    Args:
        error: what Hydra raised for all of them together.
        overrides: the command line's.
        config_name: name of the primary config.
        config_dir: what `--config-dir` gave.
    """
    GlobalHydra.instance().clear()
    parser = OverridesParser.create()
    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    problems: list[Problem] = []
    accepted: list[str] = []
    with initialize(version_base="1.3", config_path=None):
        base = compose(config_name, overrides=search)
        for text in overrides:
            try:
                override = parser.parse_override(text)
                if override.is_sweep_override():
                    continue
                compose(config_name, overrides=[*search, *accepted, text])
                accepted.append(text)
            except REFUSED as refused:
                problems.append(_explain_one(text, refused, base))
        rest = compose(config_name, overrides=[*search, *accepted])
    if not problems:
        problems.append(Problem({}, _first_line(error)))
    return problems + read(rest)[1]


def _explain_one(text: str, error: Exception, base: DictConfig) -> Problem:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return Problem({}, f"{text}: not an override. {_first_line(error)}", "The form is key=value; quote what has special characters.")
    key = override.key_or_group
    if isinstance(error, MissingConfigException) and error.options:
        return _unknown_option(override, list(error.options))
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ValidationError):
        return Problem.about(key, _validation_text(cause, override))
    if OmegaConf.select(base, key, throw_on_missing=False) is None and (unknown := _unknown_key(key, base)):
        return unknown
    return Problem.about(key, _first_line(error))


def _unknown_option(override: Override, options: list[str]) -> Problem:
    value = override.value()
    hint = nearest(str(value), options)
    listing = hint if hint.startswith("Known") else f"{hint} Options: {', '.join(options)}."
    return Problem({override.key_or_group: value}, "no such option", listing)


_TYPES = {"Integer": "int", "Float": "float", "Boolean": "bool", "String": "str"}


def _validation_text(error: Exception, override: Override) -> str:
    line = _first_line(error)
    for theirs, ours in _TYPES.items():
        if f"to {theirs}" in line or f"a valid {'bool' if theirs == 'Boolean' else theirs.lower()}" in line:
            return f"expected {ours}, got {override.value()!r}"
    return line


def _unknown_key(key: str, base: DictConfig) -> Problem | None:
    """The first part of a dotted key that leads nowhere."""
    node, done = base, []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            break
        if part not in node:
            path = ".".join([*done, part])
            hint = nearest(part, [str(name) for name in node])
            fix = hint if hint.startswith("Known") else f"{hint} To add a key that is not there, write +{key}=..."
            return Problem.about(path, "no such key", fix)
        done.append(part)
        node = node._get_node(part)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
