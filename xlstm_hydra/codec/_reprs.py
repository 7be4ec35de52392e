"""Parse the `repr` of a value without evaluating any code.

xlstm-jax used it for values that JSON does not support: `ParallelConfig(remat=('mLSTMBlock',))`, `['.*kernel']`,
`<class 'jax.numpy.bfloat16'>`.
"""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 100_000
"""Maximum length of a `repr` in characters."""

MAX_DEPTH = 32
"""Maximum nesting of brackets."""

CLASS = "<class '"
"""Prefix of the `repr` of a class."""

_CLASS_END = "'>"

_LOCALS, _LOCALS_NAME = "<locals>", "__locals__"
_OPENING, _CLOSING = "([{", ")]}"
_NAMES = {"None": None, "True": True, "False": False, "nan": math.nan, "inf": math.inf}
_WRAPPERS = ("set", "frozenset", "dtype", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")


def class_in(text: str) -> str | None:
    """Return `a.B` for `<class 'a.B'>`, or None if the text has another form."""
    is_class = text.startswith(CLASS) and text.endswith(_CLASS_END)
    return text[len(CLASS) : -len(_CLASS_END)] if is_class else None


@dataclass(frozen=True)
class Instance:
    """Parsed `repr` of a dataclass instance, `Name(field=value, ...)`."""

    name: str
    """Name of the class as written in the `repr`, usually its `__qualname__`."""

    fields: dict[str, Any]
    """Values of the fields. Each is a plain value or an `Instance`."""

    @property
    def last_name(self) -> str:
        """Last part of `name`: the class name without enclosing classes or the module, which some `repr`s include."""
        return self.name.rpartition(".")[2]


class ReprError(ValueError):
    """The text is not the `repr` of plain values, classes and dataclasses."""


def parse_repr(text: str) -> Any:
    """Return the plain value that a `repr` represents.

    Lists, tuples, dicts, numbers, strings and None are returned unchanged, sets are returned as lists, and dataclass
    instances as `Instance`. A class is returned as the string `<class 'a.B'>`, and a dotted name, a dtype or an enum
    member as its name.

    Raises:
        ReprError: the text has another form, is too long, or is nested too deeply.
    """
    if len(text) > MAX_LENGTH:
        raise ReprError(f"longer than {MAX_LENGTH:,} characters")
    try:
        return _value(_parsed(_quote_angles(text.strip())).body)
    except SyntaxError as error:
        raise ReprError(f"cannot be read as a value: {error.msg}") from None
    except ReprError:
        raise
    except (ValueError, MemoryError, RecursionError):
        raise ReprError("cannot be read as a value") from None


def _parsed(text: str) -> ast.Expression:
    with warnings.catch_warnings():  # for example about "\d": only the author of the text can correct it
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval")


def _quote_angles(text: str) -> str:
    """Replace every `<...>`, which is not valid Python, with a string or a name. Text inside strings is not changed."""
    if "<" not in text and text.count("(") + text.count("[") + text.count("{") <= MAX_DEPTH:
        return text
    parts, at, depth = [], 0, 0
    while at < len(text):
        char, end = text[at], at + 1
        if char in "'\"":
            end = _end_of_string(text, at)
            parts.append(text[at:end])
        elif char == "<":
            replaced, end = _angle(text, at)
            parts.append(replaced)
        else:
            depth += (char in _OPENING) - (char in _CLOSING)
            if depth > MAX_DEPTH:
                raise ReprError(f"more than {MAX_DEPTH} nested brackets")
            parts.append(char)
        at = end
    return "".join(parts)


def _end_of_string(text: str, start: int) -> int:
    at = start + 1
    while at < len(text) and text[at] != text[start]:
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _angle(text: str, start: int) -> tuple[str, int]:
    """Return the replacement for the `<...>` at `start`, and the position after the `<...>`."""
    if text.startswith(_LOCALS, start):
        return _LOCALS_NAME, start + len(_LOCALS)
    if text.startswith(CLASS, start):
        end = text.find(_CLASS_END, start)
        name = text[start + len(CLASS) : end]
        if end >= 0 and all(part.isidentifier() for part in name.replace(_LOCALS, _LOCALS_NAME).split(".")):
            return repr(text[start : end + 2]), end + 2
    name, colon, _ = text[start + 1 :].partition(": ")
    if colon and all(part.isidentifier() for part in name.split(".")) and "." in name:
        return repr(name.rpartition(".")[2]), _end_of_enum(text, start + len(name) + 3)
    raise ReprError(f"{text[start : start + 40]!r} cannot be read as a value")


def _end_of_enum(text: str, at: int) -> int:
    while at < len(text) and text[at] != ">":
        at = _end_of_string(text, at) if text[at] in "'\"" else at + 1
    return at + 1


def _value(node: ast.expr) -> Any:
    reader = _NODES.get(type(node))
    if reader is None:
        raise ReprError(f"{type(node).__name__} is not supported; only numbers, strings, collections and objects are")
    return reader(node)


def _constant(node: ast.Constant) -> Any:
    if isinstance(node.value, bytes | complex) or node.value is Ellipsis:
        raise ReprError(
            f"{type(node.value).__name__} is not supported; only numbers, strings, collections and objects are"
        )
    if isinstance(node.value, int) and abs(node.value) >= 2**63:
        raise ReprError("an integer has more than 64 bits")
    if node.value == math.inf:
        raise ReprError("a number is too large")
    return node.value


def _signed(node: ast.UnaryOp) -> Any:
    value = _value(node.operand) if isinstance(node.operand, ast.Constant | ast.Name) else None
    if isinstance(node.op, ast.USub) and isinstance(value, int | float) and not isinstance(value, bool):
        return -value
    raise ReprError("only a number can have a sign")


def _dict(node: ast.Dict) -> dict[Any, Any]:
    if None in node.keys:
        raise ReprError("** is not supported")
    return _unique([(_value(key), _value(value)) for key, value in zip(node.keys, node.values, strict=True) if key])


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        found = dict(pairs)
    except TypeError:
        raise ReprError("a key is not hashable") from None
    if len(found) < len(pairs):
        raise ReprError("duplicate key")
    return found


def _call(node: ast.Call) -> Any:
    name = _dotted(node.func)
    if name in _WRAPPERS and not node.keywords and len(node.args) <= 1:
        return _value(node.args[0]) if node.args else []
    if node.args:
        raise ReprError(f"{name}(...) has a positional argument; only keyword arguments are supported")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ReprError("** is not supported")
    return Instance(name, _unique([(str(keyword.arg), _value(keyword.value)) for keyword in node.keywords]))


def _name(node: ast.expr) -> Any:
    name = _dotted(node)
    return _NAMES.get(name, name)


def _dotted(node: ast.expr) -> str:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ReprError("only class names can be called")
    return ".".join([node.id, *reversed(names)]).replace(_LOCALS_NAME, _LOCALS)


_NODES: dict[type[ast.expr], Any] = {
    ast.Constant: _constant,
    ast.UnaryOp: _signed,
    ast.List: lambda node: [_value(item) for item in node.elts],
    ast.Tuple: lambda node: tuple(_value(item) for item in node.elts),
    ast.Set: lambda node: [_value(item) for item in node.elts],
    ast.Dict: _dict,
    ast.Call: _call,
    ast.Name: _name,
    ast.Attribute: _name,
}
