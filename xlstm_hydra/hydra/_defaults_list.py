"""The options that the entries of a defaults list lead to."""

from __future__ import annotations

from typing import Any

from hydra.core.default_element import GroupDefault


def paths_of(default: Any) -> list[str]:
    """The options that an entry of a defaults list names."""
    if default.is_self() or default.is_missing():
        return []
    if isinstance(default, GroupDefault) and isinstance(default.value, list):
        return [f"{default.get_group_path()}/{name}" for name in default.value]
    return [] if default.get_name() is None else [default.get_config_path()]


def key_of(default: Any) -> str:
    """The group that an entry is about, as an override names it."""
    return default.get_override_key() if isinstance(default, GroupDefault) else ""


def circle(start: str, below: dict[str, set[str]]) -> list[str] | None:
    """The way from an option back to itself."""
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
