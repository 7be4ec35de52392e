"""Hydra's override grammar: write plain values, and quote text that the user typed without quotes."""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from xlstm_hydra.codec import hints
from xlstm_hydra.configs import ParallelConfig, RunConfig, SubModelConfig

from ._omegaconf import REFUSED
from ._schemas import SCHEMAS

_BARE = re.compile(r"[A-Za-z_/][\w/.@%-]*(://[\w/.@%-]*)?", re.ASCII)
_RESERVED = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_QUOTE = re.compile(r"(\\*)('|\Z)")

HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""Keys of the `hydra` node whose values may be any text."""

TEXTS = ("task.prompt",)
"""Keys whose values are always plain text, even if the override grammar would parse them differently."""

_PLAIN = re.compile(r"[\w./@%+-]*", re.ASCII)
"""A value without characters that are special in the override grammar."""

_MEANT = re.compile(r"[\"'=\[{(]|.*\$\{|\w+\(", re.DOTALL)
"""Start of a value that uses the syntax of the override grammar, valid or not, and must not be quoted."""

_HOME = re.compile(r"(^|[,\[(]\s*)(~[\w.-]*(?:/[^,\[\]()]*)?)(?=[,\])]|$)")


def as_override(key: str, value: Any) -> str:
    """Return the override that sets `key` to a plain value, in Hydra's override grammar."""
    return f"{key}={as_value(literal(value))}"


def literal(value: Any) -> Any:
    """Escape each `${` in a plain value, so that OmegaConf does not resolve it as an interpolation."""
    if isinstance(value, str):
        return _INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list | tuple) else value


def as_value(value: Any) -> str:
    """Return a plain value in Hydra's override grammar. `${...}` in strings is kept as an interpolation."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and not _RESERVED.fullmatch(value) else _quoted(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_value, value)) + "]"
    return _number(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def _number(value: float) -> str:
    """Return the shortest notation of a float, such as 3, 0.5 or 3e-4."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    scientific = f"{'-' * sign}{''.join(map(str, digits))}e{exponent}"
    return min(repr(value).removesuffix(".0"), scientific, key=len)


def _quoted(text: str) -> str:
    """Put text in single quotes. Single quotes in the text are escaped; backslashes are doubled only before a quote."""
    return "'" + _QUOTE.sub(lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def text_keys() -> set[str]:
    """Return the dotted keys of all fields whose values may be any text."""
    return {*HYDRA_TEXTS, *_keys(lambda kind: kind in (str, str | None))}


def list_keys() -> set[str]:
    """Return the dotted keys of all fields whose values are lists."""
    return _keys(lambda kind: any(typing.get_origin(one) in (list, tuple) for one in (kind, *typing.get_args(kind))))


def _groups() -> dict[str, Any]:
    """Return the config class of every group. For `model`, this is the base class of the model configs, because the
    `model` node has their fields."""
    return typing.get_type_hints(RunConfig) | {"model": SubModelConfig, "parallel": ParallelConfig}


def _keys(is_wanted: Callable[[Any], bool]) -> set[str]:
    keys = set()
    for group, hint in _groups().items():
        bases = typing.get_args(hint) or (hint,)
        for schema in (schema for schema in SCHEMAS.values() if issubclass(schema, bases)):
            keys |= {f"{group}.{name}" for name, kind in hints(schema).items() if is_wanted(kind)}
    return keys


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Expand `~` at the start of each value in `key=value` and `--flag=value`, which shells leave unexpanded."""
    return [_expanded(text) for text in arguments]


def _expanded(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or key in TEXTS or "~" not in value or "'" in value or '"' in value:
        return text
    quote = str if key.startswith("-") else as_value
    return key + equals + _HOME.sub(lambda match: match[1] + quote(os.path.expanduser(match[2])), value)


def quote_texts(arguments: Sequence[str]) -> list[str]:
    """Quote unquoted text in arguments as Hydra's override grammar requires: `task.prompt` always, and other text
    fields if Hydra could not parse their value."""
    args = get_args_parser().parse_intermixed_args(list(arguments))
    is_sweep = args.multirun or any(text.startswith("hydra.mode=MULTI") for text in args.overrides)
    return [_quoted_override(text, is_sweep) if text in args.overrides else text for text in arguments]


def _quoted_override(text: str, is_sweep: bool) -> str:
    key, equals, value = text.partition("=")
    if equals and key in TEXTS:
        is_quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
        return text if is_sweep or is_quoted else as_override(key, value)
    if not equals or _PLAIN.fullmatch(value):
        return text
    if _MEANT.match(value) or _is_readable(text) or key not in text_keys():
        return text
    if not is_sweep or "," not in value:
        return as_override(key, value)
    return f"{key}={','.join(as_override('', one)[1:] for one in value.split(','))}"


def _is_readable(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except REFUSED:
        return False
    return True
