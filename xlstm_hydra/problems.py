"""Broken rules of configs. Each is reported with its keys (as the user types them), their values, the rule and the
fix."""

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
"""Placeholder in `Problem.given` for a value that the text of the rule already contains."""


@dataclass(frozen=True)
class Problem:
    """One broken rule.

    Keys are relative to the config that states the rule; `at` adds the path of that config in front of them. A key with
    a leading slash is already absolute (`/parallel.model_axis_size`). Keys in braces in `rule` or `fix` are expanded to
    absolute keys too.
    """

    given: Mapping[str, Any]
    """The keys that the rule involves, with their values."""

    rule: str
    """The rule, without a full stop."""

    fix: str = ""
    """How to correct the problem, in whole sentences."""

    unused: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Keys whose values have no effect in this config, mapped to the values that they must have instead."""

    also: tuple[str, ...] = field(default=(), kw_only=True)
    """Further keys that the rule depends on. They are not printed."""

    prefix: str = field(default="", kw_only=True)

    has_lines: bool = field(default=False, kw_only=True)
    """True if the rule itself has several lines. Otherwise line breaks come from a file, and are escaped."""

    @classmethod
    def about(cls, key: str, text: str, fix: str = "") -> Problem:
        """Return a problem whose text contains the value, such as `expected int, got 'abc'`. Braces in the text are
        printed unchanged."""
        return cls({key: _HIDDEN}, text, fix)

    def at(self, path: str) -> Problem:
        """Return the same problem with `path` in front of its keys."""
        return replace(self, prefix=_join(path, self.prefix)) if path else self

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the rule involves, as the user types them."""
        return tuple(map(self._whole, self.given))

    @property
    def all_keys(self) -> tuple[str, ...]:
        """All keys that the rule depends on, printed or not."""
        return (*self.keys, *map(self._whole, self.also))

    @property
    def unused_keys(self) -> dict[str, Any]:
        """`unused`, with the keys as the user types them."""
        return {self._whole(key): value for key, value in self.unused.items()}

    def __str__(self) -> str:
        values = zip(self.keys, self.given.values(), strict=True)
        head = ", ".join(key if value is _HIDDEN else f"{key}={show(value)}" for key, value in values)
        text = self.with_full_keys(f"{self.rule}. {self.fix}" if self.fix else self.rule)
        return printable(f"{head}: {text}" if head else text, keep="\n" if self.has_lines else "")

    def with_full_keys(self, text: str) -> str:
        """Return a rule or fix with its keys as the user types them. Braces in texts of `about` are not keys."""
        if _HIDDEN in self.given.values():
            return text
        return _PLACEHOLDER.sub(lambda match: self._whole(match[1]), text)

    def _whole(self, key: str) -> str:
        return key[1:] if key.startswith("/") else _join(self.prefix, key)


@dataclass(frozen=True)
class UnknownField(Problem):
    """A field that the class does not have. Lenient reading ignores it."""

    is_null: bool = field(default=False, kw_only=True)
    """True if the value of the field is null."""

    @classmethod
    def of(cls, key: str, value: Any, text: str, fix: str = "") -> UnknownField:
        """Return the problem for a field with this value."""
        return cls({key: _HIDDEN}, text, fix, is_null=value is None)


class UnknownGroup(UnknownField):
    """A config group that a run does not have."""


class UnknownKey(Problem):
    """A key that a composed config does not have."""


def placed(problems: Iterable[Problem], keys: Iterable[str]) -> list[Problem]:
    """Improve the suggestions for unknown fields. If no field of the same config has the unknown name or is a synonym,
    suggest a field of another config that has the name or is a synonym.

    Args:
        problems: problems with keys relative to the same config as `keys`.
        keys: dotted keys of all fields.
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
    """A value that is missing or cannot be read. Rules that depend on it are not checked."""

    whole: bool = field(default=False, kw_only=True)
    """True if the whole config that contains the key cannot be read."""

    def hides(self, key: str) -> bool:
        """True if a rule about this key, as the user types it, depends on the unreadable value."""
        own = [name.rpartition(".")[0] if self.whole else name for name in self.keys]
        return any(not name or _is_below(key, name) or _is_below(name, key) for name in own)


class Missing(Unread):
    """A required value that is not given."""


def _is_below(key: str, other: str) -> bool:
    return key == other or key.startswith((f"{other}.", f"{other}["))


def independent(found: Iterable[Problem], known: Iterable[Problem]) -> list[Problem]:
    """Return the problems in `found`, without duplicates, that are not in `known` and do not depend on a missing or
    unreadable value."""
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
    """The config breaks rules. `problems` lists all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)  # pickle passes this to __init__ when the error leaves a worker process

    def __repr__(self) -> str:  # Hydra prints this for an error inside `instantiate`
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
    """A `repr` of bounded length and cost, however large or deep the value is."""

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
    """Return a value as the user would type it, shortened to at most 80 characters."""
    text = printable(_Short().repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?`, or the list of known names if none is similar."""
    known = list(known)
    if near := near_name(name, known):
        return f"Did you mean {near!r}?"
    return f"Known: {', '.join(known)}." if known else "None are available."


def near_name(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that `name` most likely means, or None if none is similar enough."""
    import difflib  # needed only for a wrong name

    lowered = {option.lower(): option for option in known}
    if same := lowered.get(str(name).lower()) or meant(str(name), lowered.values()):
        return same
    begun = [option for option in lowered if str(name) and option.startswith(str(name).lower())]
    if len(begun) == 1:
        return lowered[begun[0]]
    close = difflib.get_close_matches(str(name)[:80].lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None


def divisors(number: int) -> list[int]:
    """Return the positive divisors in ascending order. For numbers above 2**32, divisors above 2**16 are listed only if
    their cofactor is at most 2**16."""
    number = abs(number)
    small = [d for d in range(1, min(math.isqrt(number), 2**16) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def either(options: Iterable[Any]) -> str:
    """Return the options joined as `1, 2 or 4`. The middle of a long list is omitted."""
    texts = [str(option) for option in options]
    if len(texts) > 12:
        texts = [*texts[:6], "...", *texts[-5:]]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
