"""Values that are text, such as paths, typed without regard to Hydra's grammar: they are quoted for it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from ._field_kinds import text_keys
from ._quote import as_override, as_value
from ._refusals import REFUSED

TEXTS = ("task.prompt",)
"""Keys whose values are text whatever it would mean to Hydra."""

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
