"""Python's own text for a value (`repr`), read back without evaluating anything.

xlstm-jax wrote what JSON could not hold this way: `ParallelConfig(remat=('mLSTMBlock',))`, `['.*kernel']`,
`<class 'jax.numpy.bfloat16'>`.
"""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 100_000
"""Characters that a text may have."""

MAX_DEPTH = 32
"""Brackets within brackets that a text may have."""

CLASS = "<class '"
"""What the text of a class begins with."""

_CLASS_END = "'>"

_LOCALS, _LOCALS_NAME = "<locals>", "__locals__"
_OPENING, _CLOSING = "([{", ")]}"
_NAMES = {"None": None, "True": True, "False": False, "nan": math.nan, "inf": math.inf}
_WRAPPERS = ("set", "frozenset", "dtype", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")


def class_in(text: str) -> str | None:
    """`a.B` from `<class 'a.B'>`; None where the text has another form."""
    is_class = text.startswith(CLASS) and text.endswith(_CLASS_END)
    return text[len(CLASS) : -len(_CLASS_END)] if is_class else None


@dataclass(frozen=True)
class Instance:
    """`Name(field=value, ...)`: the class by its name, and what its fields were."""

    name: str
    """Name of the class, as in `__qualname__`."""

    fields: dict[str, Any]
    """The values, plain or instances again."""

    @property
    def last_name(self) -> str:
        """Name of the class without what it is in: some classes print their module too."""
        return self.name.rpartition(".")[2]


class ReprError(ValueError):
    """A text that is no `repr` of plain values, classes and dataclasses."""


def parse_repr(text: str) -> Any:
    """The plain value that a `repr` stands for.

    Lists, tuples, sets, dicts, numbers, strings and None are themselves. A dataclass becomes an `Instance`; a class
    stays the text `<class 'a.B'>`, a dotted name and a dtype its name, an enum member its member's name.

    Raises:
        ReprError: it is something else, or too long or too deep.
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
    with warnings.catch_warnings():  # such as that of "\d", which whoever wrote the text has to see, not its reader
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval")


def _quote_angles(text: str) -> str:
    """The text with everything in angle brackets, which is no Python, as a string or a name; strings stay."""
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
                raise ReprError(f"nested deeper than {MAX_DEPTH} brackets")
            parts.append(char)
        at = end
    return "".join(parts)


def _end_of_string(text: str, start: int) -> int:
    at = start + 1
    while at < len(text) and text[at] != text[start]:
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _angle(text: str, start: int) -> tuple[str, int]:
    """What stands for `<...>` at `start`, and where the text goes on."""
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
    raise ReprError(f"{text[start : start + 40]!r} has no plain form")


def _end_of_enum(text: str, at: int) -> int:
    while at < len(text) and text[at] != ">":
        at = _end_of_string(text, at) if text[at] in "'\"" else at + 1
    return at + 1


def _value(node: ast.expr) -> Any:
    reader = _NODES.get(type(node))
    if reader is None:
        raise ReprError(f"a {type(node).__name__} is no plain value")
    return reader(node)


def _constant(node: ast.Constant) -> Any:
    if isinstance(node.value, bytes | complex) or node.value is Ellipsis:
        raise ReprError(f"a {type(node.value).__name__} is no plain value")
    if isinstance(node.value, int) and abs(node.value) >= 2**63:
        raise ReprError("an integer of more than 64 bits")
    if node.value == math.inf:
        raise ReprError("a number that is too large")
    return node.value


def _signed(node: ast.UnaryOp) -> Any:
    value = _value(node.operand) if isinstance(node.operand, ast.Constant | ast.Name) else None
    if isinstance(node.op, ast.USub) and isinstance(value, int | float) and not isinstance(value, bool):
        return -value
    raise ReprError("only a number has a sign")


def _dict(node: ast.Dict) -> dict[Any, Any]:
    if None in node.keys:
        raise ReprError("a ** is no plain value")
    return _unique([(_value(key), _value(value)) for key, value in zip(node.keys, node.values, strict=True) if key])


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        found = dict(pairs)
    except TypeError:
        raise ReprError("a key that is not hashable") from None
    if len(found) < len(pairs):
        raise ReprError("a key stands there twice")
    return found


def _call(node: ast.Call) -> Any:
    name = _dotted(node.func)
    if name in _WRAPPERS and not node.keywords and len(node.args) <= 1:
        return _value(node.args[0]) if node.args else []
    if node.args:
        raise ReprError(f"{name}(...) has a value without a name")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ReprError("a ** is no plain value")
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
        raise ReprError("what is called is no name")
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
