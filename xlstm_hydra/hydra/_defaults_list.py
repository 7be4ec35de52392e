"""Defaults list entries: the options they select, and explanations of Hydra's errors about them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from hydra.core.default_element import GroupDefault

from xlstm_hydra.problems import Problem, nearest

_ENTRY = re.compile(r"(Could not override|Override) '/?([^' :]+)(?: : |: |'\. )")
_NONE_EARLIER = re.compile(r"(Invalid Defaults List override) '.*'\.\s+No earlier Group Default for '([^']+)'")
_TWICE = re.compile(r"Multiple values for ([^ ]+)\. To override")
_INTERPOLATION = re.compile(r"Error resolving interpolation '(.+?)', possible")
_SEARCH_PATH = re.compile(r"Overriding hydra\.searchpath is only supported")
"""Hydra's error messages about defaults list entries."""


class EntryFault(NamedTuple):
    """A problem with a defaults list entry."""

    problem: Problem
    number: int | None = None
    """Index of the entry. None: unknown."""
    is_misplaced: bool = False
    """True if only the position of the entry is wrong."""


def entry_fault(text: str, entries: Iterable[tuple[int, Any]], groups: list[str]) -> EntryFault | None:
    """Return the defaults list entry that caused an error, and its problem; None if no entry caused the error.

    Args:
        text: Hydra's error message.
        entries: (index, entry) for each entry of the file's defaults list.
        groups: existing config groups.
    """
    if _SEARCH_PATH.match(text):
        rule, fix = (
            "can only be set in the primary config",
            "Use --config-dir=DIR, or hydra.searchpath=[DIR] on the command line.",
        )
        return EntryFault(Problem.about("hydra.searchpath", rule, fix))
    chosen = [(number, entry) for number, entry in entries if isinstance(entry, GroupDefault)]
    if match := _INTERPOLATION.match(text):
        number = next((number for number, entry in chosen if match[1] in str(entry.value)), None)
        return EntryFault(Problem.about("defaults", f"{match[1]} must refer to a group in a defaults list"), number)
    if match := _TWICE.match(text):
        found = _entry_of(match[1], chosen, is_override=False)
        return found and EntryFault(_chosen_twice(found[1]), found[0])
    match = _ENTRY.match(text) or _NONE_EARLIER.match(text)
    found = _entry_of(match[2], chosen, is_override=True) if match else None
    if match is None or found is None:
        return None
    number, entry = found
    if match[1] == "Override":
        rule = "must come after the entries without override"
        problem = Problem.about(f"override {entry.group}", rule, "Move it to the end.")
        return EntryFault(problem, number, is_misplaced=True)
    return EntryFault(_nothing_to_override(entry, groups), number)


def outside_group(entry: GroupDefault, groups: Iterable[str]) -> str:
    """Return the fix for an entry that lacks the slash before a top-level group; an empty string for other entries."""
    if entry.group is not None and entry.group in groups and entry.group != entry.get_group_path():
        keyword = "override " if entry.is_override() else ""
        written = f"{keyword}/{entry.group}: {entry.value}"
        return f"Write `{written}`: without the slash, the name is relative to the group of the file."
    return ""


def _entry_of(key: str, chosen: list[tuple[int, GroupDefault]], is_override: bool) -> tuple[int, GroupDefault] | None:
    group = key.partition("@")[0]
    own = [one for one in chosen if one[1].is_override() == is_override and one[1].get_group_path() == group]
    return next((one for one in own if key_of(one[1]) == key), own[0] if own else None)


def _chosen_twice(entry: GroupDefault) -> Problem:
    group = entry.get_group_path()
    rule = "the defaults list already selects an option of this group"
    return Problem.about(f"/{group}", rule, f"Write `override /{group}: {entry.value}`.")


def _nothing_to_override(entry: GroupDefault, groups: list[str]) -> Problem:
    group = entry.get_group_path()
    if fix := outside_group(entry, groups):
        return Problem.about(f"override {entry.group}", f"there is no group {group} to override", fix)
    if entry.package is not None and group in groups:
        name, rule = (
            f"override /{group}@{entry.package}",
            f"the config has no group {group} in the package {entry.package}",
        )
        return Problem.about(name, rule, f"Write `override /{group}: {entry.value}`.")
    return Problem.about(f"override /{group}", "no such group", nearest(group, groups))


def paths_of(default: Any) -> list[str]:
    """Return the paths of the options that a defaults list entry selects."""
    if default.is_self() or default.is_missing():
        return []
    if isinstance(default, GroupDefault) and isinstance(default.value, list):
        return [f"{default.get_group_path()}/{name}" for name in default.value]
    return [] if default.get_name() is None else [default.get_config_path()]


def key_of(default: Any) -> str:
    """Return the override key for an entry's group, such as `model` or `optimizer@package`; empty for other entries."""
    return default.get_override_key() if isinstance(default, GroupDefault) else ""


def circle(start: str, below: dict[str, set[str]]) -> list[str] | None:
    """Return the shortest path through defaults lists from an option back to itself; None if there is no such path.

    Args:
        start: the option.
        below: options that each option's defaults list selects.
    """
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for option in sorted(below.get(way[-1], ())):
            if option == start:
                return [*way, start]
            if option not in seen:
                seen.add(option)
                ways.append([*way, option])
    return None
