"""A group of ours as plain values: what a foreign format is read into, before a config is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class PlainGroup:
    """The fields of one config of ours, by our names, as another program recorded them."""

    class_name: str = ""
    """Name of the config class in `xlstm_hydra.configs`. Empty: there is none for what was recorded."""

    path: str
    """Where it was recorded."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the names of our fields. One that was not recorded is left out."""

    paths: Mapping[str, str] = field(default_factory=dict)
    """Where a field of ours was recorded, if not below `path` by the same name."""

    not_recorded: Mapping[str, str] = field(default_factory=dict)
    """Notes about fields that were not recorded, with {} for the value that they have here."""

    notes: list[str] = field(default_factory=list)
    """Other notes about this group."""

    is_optional: bool = False
    """True if the group is left out, with a note, where our config cannot express what was recorded."""

    unsupported: str = ""
    """Why no config of ours can express what was recorded."""
