"""How a broken rule is worded: the key as typed, the values, the rule, and the way out."""

from __future__ import annotations

import enum
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from xlstm_hydra._printable import printable
from xlstm_hydra.synonyms import meant, same_meaning

_PLACEHOLDER = re.compile(r"\{(/?[\w.]+)\}")
_HIDDEN = ...
"""Stands in `Problem.given` for a value that the rule tells in its own words."""


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Keys are relative to the config that states the rule; `at` puts them where the user types them. A key with a leading
    slash is already whole (`/parallel.model_axis_size`). Keys in braces in `rule` or `fix` are printed the same way.
    """

    given: Mapping[str, Any]
    """Every key that takes part, with its value."""

    rule: str
    """What should hold."""

    fix: str = ""
    """What to type instead."""

    unused: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """The keys whose value has no effect as things are, each with a value that says so and keeps the rule."""

    also: tuple[str, ...] = field(default=(), kw_only=True)
    """Further keys on which the rule depends, which are not printed."""

    prefix: str = field(default="", kw_only=True)

    has_lines: bool = field(default=False, kw_only=True)
    """True if the rule is a text of several lines. Otherwise a line break comes from a file, and is escaped."""

    @classmethod
    def about(cls, key: str, text: str, fix: str = "") -> Problem:
        """A problem that tells the value in its own words, such as `expected int, got 'abc'`; braces stay braces."""
        return cls({key: _HIDDEN}, text, fix)

    def at(self, path: str) -> Problem:
        """The same problem, seen from the config that holds this one under `path`."""
        return replace(self, prefix=_join(path, self.prefix)) if path else self

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that take part, as the user types them."""
        return tuple(map(self._whole, self.given))

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The keys on which the rule depends, printed or not."""
        return (*self.keys, *map(self._whole, self.also))

    @property
    def unused_keys(self) -> dict[str, Any]:
        """`unused`, by the keys as the user types them."""
        return {self._whole(key): value for key, value in self.unused.items()}

    def __str__(self) -> str:
        values = zip(self.keys, self.given.values(), strict=True)
        head = ", ".join(key if value is _HIDDEN else f"{key}={show(value)}" for key, value in values)
        text = self.with_full_keys(f"{self.rule}. {self.fix}" if self.fix else self.rule)
        return printable(f"{head}: {text}" if head else text, keep="\n" if self.has_lines else "")

    def with_full_keys(self, text: str) -> str:
        """The rule or the fix with its keys as the user types them; braces in `about` are no keys."""
        if _HIDDEN in self.given.values():
            return text
        return _PLACEHOLDER.sub(lambda match: self._whole(match[1]), text)

    def _whole(self, key: str) -> str:
        return key[1:] if key.startswith("/") else _join(self.prefix, key)


@dataclass(frozen=True)
class UnknownField(Problem):
    """A field that a class does not have, which a lenient reading lets pass."""

    is_null: bool = field(default=False, kw_only=True)
    """True if its value is null."""

    @classmethod
    def of(cls, key: str, value: Any, text: str, fix: str = "") -> UnknownField:
        """The problem of a field with this value."""
        return cls({key: _HIDDEN}, text, fix, is_null=value is None)


class UnknownGroup(UnknownField):
    """A group that a run does not have."""


class UnknownKey(Problem):
    """A key that a composed config does not have."""


def placed(problems: Iterable[Problem], keys: Iterable[str]) -> list[Problem]:
    """The problems, where an unknown field that has no counterpart beside it is given the key elsewhere that has its
    name or meaning.

    Args:
        problems: with keys as `keys` has them.
        keys: of all fields.
    """
    keys = list(keys)
    return [
        _placed(problem, keys) if isinstance(problem, UnknownField) and problem.fix else problem for problem in problems
    ]


def _placed(problem: UnknownField, keys: list[str]) -> Problem:
    parent, _, name = problem.keys[0].rpartition(".")
    places = same_meaning(name, keys)
    is_here = any(place.rpartition(".")[0] == parent for place in places)
    return replace(problem, fix=f"Did you mean {either(places)}?") if places and not is_here else problem


@dataclass(frozen=True)
class Unread(Problem):
    """A value that is missing or cannot be read, so that no rule about it can be checked."""

    whole: bool = field(default=False, kw_only=True)
    """True if nothing else can be read of the config that holds the key."""

    def hides(self, key: str) -> bool:
        """True if a rule about this key, as the user types it, follows from what could not be read."""
        own = [name.rpartition(".")[0] if self.whole else name for name in self.keys]
        return any(not name or _is_below(key, name) or _is_below(name, key) for name in own)


class Missing(Unread):
    """A value that is required and not given."""


def _is_below(key: str, other: str) -> bool:
    return key == other or key.startswith((f"{other}.", f"{other}["))


def independent(found: Iterable[Problem], known: Iterable[Problem]) -> list[Problem]:
    """The problems that do not follow from a value that is missing or cannot be read, each once and none that is
    known."""
    known = list(known)
    unread = [problem for problem in known if isinstance(problem, Unread)]
    texts = {str(problem) for problem in known}
    new: list[Problem] = []
    for problem in found:
        if str(problem) not in texts and not any(one.hides(key) for one in unread for key in problem.all_keys):
            texts.add(str(problem))
            new.append(problem)
    return new


class ConfigError(ValueError):
    """A config that breaks rules: all of them, in `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)  # what pickle gives back to __init__, on the way out of a worker process

    def __repr__(self) -> str:  # what Hydra prints of an error inside `instantiate`
        return f"ConfigError: {self}"

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        return "\n".join([f"{len(lines)} problems:", *lines])


def _join(left: str, right: str) -> str:
    if not left or not right:
        return left or right
    return left + right if right.startswith("[") else f"{left}.{right}"


class _Short(reprlib.Repr):
    """`repr` that costs no more than it shows, whatever the value's size and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 20
        self.maxstring = self.maxother = self.maxlong = 80

    def repr1(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, bool):
            return {None: "null", True: "true", False: "false"}[x]
        if isinstance(x, enum.Enum | PurePath):
            return getattr(x, "name", "") if isinstance(x, enum.Enum) else str(x)
        try:
            return super().repr1(x, level)
        except (ValueError, RecursionError):  # such as an integer with more digits than Python prints
            return f"<{type(x).__name__}>"


def show(value: Any) -> str:
    """A value as the user would type it, short enough for one line."""
    text = printable(_Short().repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?`, or the whole list where nothing is near."""
    known = list(known)
    if near := near_name(name, known):
        return f"Did you mean {near!r}?"
    return f"Known: {', '.join(known)}." if known else "There are none."


def near_name(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is meant by `name`, if one is near enough."""
    import difflib  # only a wrong name needs it

    lowered = {option.lower(): option for option in known}
    if same := lowered.get(str(name).lower()) or meant(str(name), lowered.values()):
        return same
    begun = [option for option in lowered if str(name) and option.startswith(str(name).lower())]
    if len(begun) == 1:
        return lowered[begun[0]]
    close = difflib.get_close_matches(str(name)[:80].lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None


def divisors(number: int) -> list[int]:
    """All positive divisors, ascending; beyond 2**32, those up to 2**16 and their counterparts."""
    number = abs(number)
    small = [d for d in range(1, min(math.isqrt(number), 2**16) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def either(options: Iterable[Any]) -> str:
    """`1, 2 or 4`; a long list loses its middle."""
    texts = [str(option) for option in options]
    if len(texts) > 12:
        texts = [*texts[:6], "...", *texts[-5:]]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
