"""Errors for arguments that Hydra cannot parse, each with the invalid part and the correct syntax."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from omegaconf.errors import GrammarParseError

from xlstm_hydra.problems import Problem, nearest

from ._quote import as_override

_CALL = re.compile(r"while evaluating '((\w+)\(.*?\))': ")
"""Pattern of Hydra's error messages about function calls."""

_FUNCTIONS = {
    "choice": "values: choice(1,2,3)",
    "range": "numbers: range(stop), range(start,stop) or range(start,stop,step)",
    "interval": "two numbers: interval(0,1)",
    "tag": "tag names, followed by choice(...), range(...) or interval(...): tag(log,interval(1e-3,1e-2))",
    "sort": "values of the same type: sort(3,1,2), or choice(...) or range(...)",
    "shuffle": "values: shuffle(1,2,3), or choice(...) or range(...)",
    "glob": "a pattern or a list of patterns: glob(a*), glob([a*,b*],exclude=ab*)",
    "int": "an integer: int(3.0), or choice(...), range(...) or interval(...) of numbers",
    "float": "a number: float(3), or choice(...), range(...) or interval(...) of numbers",
    "str": "values: str(3), or choice(...) or range(...)",
    "bool": "true, false or a number: bool(1), or choice(...) of these",
}
"""Arguments that each function in Hydra's override grammar accepts, for messages."""

INTERPOLATION_FORM = "Write ${key}, or ${resolver:argument}."

_CLOSING = {"[": "]", "{": "}", "(": ")"}
_KEY = re.compile(r"[\w$][\w$-]*([./@:][\w$-]+)*", re.ASCII)
_OUTSIDE = re.compile(r"[^A-Za-z0-9_/\-+.$%*@?| \t:,()\[\]{}'\"\\=]")
"""A character that must be quoted in Hydra's override grammar."""


def unreadable(text: str, error: Exception) -> Problem:
    """Return the `Problem` for an argument that Hydra cannot parse.

    Args:
        text: the argument.
        error: exception raised by Hydra. Its message lists parser tokens, so it is not shown to the user.
    """
    key, equals, value = text.partition("=")
    if not equals:
        name, rest = (part.strip() for part in text.partition(":")[::2])
        fix = f"Write {name}={rest or 'VALUE'}." if _KEY.fullmatch(name) and not name[0].isdigit() else ""
        return Problem.about(text, "expected key=value or a flag", fix)
    if problem := _bad_key(text, key, value) or _bad_call(text, error):
        return problem
    flaw = _structure(value)
    return Problem.about(text, *(flaw[:2] if flaw else _element(key, value)))


def _bad_key(text: str, key: str, value: str) -> Problem | None:
    name = key.lstrip("+~")
    if not name.strip():
        return Problem.about(text, "no key before the =", "Write key=value, for example trainer.max_steps=3.")
    if _KEY.fullmatch(name):
        return None
    if _KEY.fullmatch(name.strip()):
        return Problem.about(text, "there is a space before the =", f"Write {key.strip()}={value.strip()}.")
    if "[" in name:
        return of_list_element(text)
    fix = "A key consists of names joined by dots, such as trainer.max_steps."
    return Problem.about(text, f"{name!r} is not a valid key", fix)


def of_list_element(text: str) -> Problem:
    """Return the `Problem` for an override of a single list element (`key[0]=1`), which Hydra 1.4 can parse but Hydra
    1.3 cannot."""
    base = text.partition("=")[0].partition("[")[0]
    return Problem.about(text, "single elements of a list cannot be set", f"Write the whole list: {base}=[...].")


def _bad_call(text: str, error: Exception) -> Problem | None:
    """Return the `Problem` for a function call that Hydra rejected; None for any other error."""
    if (match := _CALL.search(str(error))) is None:
        return None
    call, name = match[1], match[2]
    if name in _FUNCTIONS:
        return Problem.about(text, f"{call} has invalid arguments", f"{name} takes {_FUNCTIONS[name]}.")
    hint = nearest(name, _FUNCTIONS)
    fix = f"""{hint} Text with brackets must be quoted twice, for example 'data.path="a(b)"'."""
    return Problem.about(text, f"there is no function {name}", fix)


class _Flaw(NamedTuple):
    """A mismatched quote or bracket in a value."""

    rule: str
    fix: str
    is_open: bool = False
    """True if a quote or bracket is not closed."""


def _structure(value: str) -> _Flaw | None:
    """Return the first unmatched quote, bracket or interpolation; None if all are matched."""
    opened: list[str] = []
    position = 0
    while position < len(value):
        char = value[position]
        if char == "\\":
            position += 1
        elif char in "'\"":
            if (end := _end_of_quote(value, position)) is None:
                return _Flaw(
                    f"the quote {char} is not closed", f"Add {char} at the end, or quote the whole argument.", True
                )
            position = end
        elif value.startswith("${", position):
            if "}" not in value[position:]:
                return _Flaw("${ is not closed", INTERPOLATION_FORM, is_open=True)
            end = value.index("}", position)
            if "${" in value[position + 2 : end]:
                return _Flaw("nested interpolations must be quoted", """For example 'key="${a:${b}}"'.""")
            position = end
        elif char in _CLOSING:
            opened.append(char)
        elif char in _CLOSING.values() and (not opened or _CLOSING[opened.pop()] != char):
            return _Flaw(f"unmatched {char}", "Remove it, or add the opening bracket.")
        position += 1
    if not opened:
        return None
    fix = f"Add {_CLOSING[opened[-1]]}. Quote the value if it contains spaces."
    return _Flaw(f"the {opened[-1]} is not closed", fix, is_open=True)


def _end_of_quote(value: str, start: int) -> int | None:
    match = re.compile(r"(?:\\.|[^\\])*?" + value[start]).match(value, start + 1)
    return match.end() - 1 if match else None


def _element(key: str, value: str) -> tuple[str, str]:
    """Return the broken rule and the fix for an invalid value in which all quotes and brackets match."""
    quoted = f"Write {quoted_argument(key, value)}"
    if value.startswith("="):
        return "there are two = signs after the key", f"Write {key}={value.lstrip('= ')}."
    if value.rstrip().endswith(","):
        return "the value ends with a comma", f"Write {key}={value.rstrip(', ')}, or add a value after the comma."
    if re.search(r"(^|[\[,(])\s*,|,\s*[\])}]", value):
        return "a value is missing next to a comma", "Remove the comma, or write '' for an empty string."
    if value.startswith("{") and "=" in value:
        return "inside braces, use a colon between a key and its value", f"Write {key}={value.replace('=', ':')}."
    if value.startswith("("):
        return (
            "a value cannot start with (",
            f"For a list, write {key}=[...]. For text, {quoted[:1].lower()}{quoted[1:]}.",
        )
    if match := _OUTSIDE.search(value):
        return f"the value contains {match[0]!r}, which must be quoted", f"{quoted}."
    if "=" in value:
        return "the value contains =, which must be quoted", f"{quoted}."
    return "cannot be read as key=value", f"If the value is text, {quoted[:1].lower()}{quoted[1:]}."


def quoted_argument(key: str, value: str) -> str:
    """Return `key=value` as a shell argument, quoted so that Hydra reads the value as plain text."""
    if not re.search(r"[\"'\\$`!]", value):
        return f"""'{key}="{value}"'"""
    return shlex.quote(as_override(key, value))


def num_pieces(texts: Sequence[str]) -> int:
    """Return the number of leading arguments that form a single override, which the shell has split at spaces; 1 if the
    first argument is a complete override."""
    whole, number = texts[0], 1
    while number < len(texts) and _is_continued(whole, texts[number]):
        whole, number = f"{whole} {texts[number]}", number + 1
    return number


def _is_continued(left: str, right: str) -> bool:
    """True if the argument `left` is an incomplete override that the next argument, `right`, may continue."""
    if "=" in right.lstrip("="):
        return False
    flaw = _structure(left.partition("=")[2])
    is_open = "=" in left and flaw is not None and flaw.is_open
    return is_open or left.endswith((",", "=")) or right.startswith((",", "="))


def split_at_blanks(texts: Sequence[str], is_readable: Callable[[str], bool]) -> Problem:
    """Return the `Problem` for a single override that the shell split into several arguments at spaces.

    Args:
        texts: the arguments.
        is_readable: returns True if an argument is a valid override.
    """
    text, dense = " ".join(texts), "".join(texts)
    rule = f"the shell splits arguments at spaces, so {texts[-1]} is a separate argument"
    if is_readable(dense):
        return Problem.about(text, rule, f"Write {dense} without spaces, or quote the argument.")
    if is_readable(text):
        return Problem.about(text, rule, f"Quote the argument: {shlex.quote(text)}.")
    return unreadable(dense, GrammarParseError())
