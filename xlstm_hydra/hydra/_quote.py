"""Plain values as Hydra's command line and OmegaConf read them back."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

_BARE = re.compile(r"[A-Za-z_/][\w/.@%-]*(://[\w/.@%-]*)?", re.ASCII)
_RESERVED = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_QUOTE = re.compile(r"(\\*)('|\Z)")


def as_override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar, which gives the config that plain value."""
    return f"{key}={as_value(literal(value))}"


def literal(value: Any) -> Any:
    """A plain value whose strings OmegaConf takes as they are: no `${...}` in them is resolved."""
    if isinstance(value, str):
        return _INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list | tuple) else value


def as_value(value: Any) -> str:
    """A plain value in Hydra's grammar; `${...}` in a string stays an interpolation."""
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
    """A float in the fewest characters: 3, 0.5 or 3e-4."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    scientific = f"{'-' * sign}{''.join(map(str, digits))}e{exponent}"
    return min(repr(value).removesuffix(".0"), scientific, key=len)


def _quoted(text: str) -> str:
    """In single quotes, with a backslash before those in the text; backslashes count only before a quote."""
    return "'" + _QUOTE.sub(lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"
