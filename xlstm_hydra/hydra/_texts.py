"""Values that are text, such as paths, typed without regard to Hydra's grammar: they are quoted for it."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.configs._hints import hints

from ._quote import as_override, as_value
from ._refusals import REFUSED

TEXTS = ("task.prompt",)
"""Keys whose values are text whatever it would mean to Hydra."""

_HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
_PLAIN = re.compile(r"[\w./@%+-]*", re.ASCII)
"""A value in which the grammar finds nothing special."""
_MEANT = re.compile(r"[\"'=\[{(]|.*\$\{|\w+\(", re.DOTALL)
"""How a value starts that was written for the grammar, if with a mistake."""
_HOME = re.compile(r"(^|[,\[(]\s*)(~[\w.-]*(?:/[^,\[\]()]*)?)(?=[,\])]|$)")


def expand_home(arguments: Sequence[str]) -> list[str]:
    """The arguments with the home folder in place of a `~` at the start of a value, which shells leave alone there."""
    return [_expanded(text) for text in arguments]


def _expanded(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or key in TEXTS or "~" not in value or "'" in value or '"' in value:
        return text
    quote = str if key.startswith("-") else as_value
    return key + equals + _HOME.sub(lambda match: match[1] + quote(os.path.expanduser(match[2])), value)


def quote_texts(arguments: Sequence[str]) -> list[str]:
    """The arguments of the command, in which text is quoted as Hydra's grammar asks for: of `task.prompt` always, of
    other fields that take text where the grammar could not read it. What is quoted already is left alone."""
    args = get_args_parser().parse_intermixed_args(list(arguments))
    is_sweep = args.multirun or any(text.startswith("hydra.mode=MULTI") for text in args.overrides)
    return [_quoted(text, is_sweep) if text in args.overrides else text for text in arguments]


def _quoted(text: str, is_sweep: bool) -> str:
    key, equals, value = text.partition("=")
    if equals and key in TEXTS:
        is_quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
        return text if is_sweep or is_quoted else as_override(key, value)
    if not equals or _PLAIN.fullmatch(value):
        return text
    if _MEANT.match(value) or _is_readable(text) or key not in _text_keys():
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


def _text_keys() -> set[str]:
    """The keys of all fields that take any text."""
    from ._register import SCHEMAS  # most commands need none of them

    keys = {*_HYDRA_TEXTS}
    for group, hint in typing.get_type_hints(RunConfig).items():
        bases = typing.get_args(hint) or (hint,)
        for schema in (schema for schema in SCHEMAS.values() if issubclass(schema, bases)):
            keys |= {f"{group}.{name}" for name, kind in hints(schema).items() if kind in (str, str | None)}
    return keys
