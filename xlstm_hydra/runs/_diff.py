"""Differences between the configs of two runs, and their effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from xlstm_hydra.configs import KINDS, PARAMETERS, ConfigDict, ModelConfig, RunConfig, effect_of, effects_of, options_of

from ._record import Record


class _Absent:
    """Placeholder for the value of a field that only the other config has."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""Value of a field that only the other config has."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field whose value differs between two configs."""

    key: str
    """Key of the field as typed on the command line, such as `model.num_blocks`."""

    before: Any
    """Value in the first config as plain JSON, or `ABSENT`."""

    after: Any
    """Value in the second config as plain JSON, or `ABSENT`."""

    kind: str
    """Kind of the effect of the field. A key of `KINDS`."""


def diff(before: Record | RunConfig, after: Record | RunConfig) -> list[Difference]:
    """Return every field that differs, strongest effects first. Groups that only one config has are omitted; see
    `not_compared`."""
    old, new = _groups(before), _groups(after)
    found = [each for group in old if group in new for each in _differences(group, old[group], new[group])]
    order = list(KINDS)
    return sorted(found, key=lambda each: order.index(each.kind))


def not_compared(before: Record | RunConfig, after: Record | RunConfig) -> list[str]:
    """Return the groups that only one of the two configs has."""
    return sorted(_groups(before).keys() ^ _groups(after).keys())


def kind_of(key: str) -> str:
    """Return the kind of effect of a field, given its key, such as `optimizer.lr`. If several options of the group have
    the field, return the strongest kind. An unknown key is assumed to change the parameters."""
    group, _, name = key.partition(".")
    found = {effects[name].kind for effects in map(effects_of, options_of(group)) if name in effects}
    return next((kind for kind in KINDS if kind in found), PARAMETERS)


def _groups(side: Record | RunConfig) -> Mapping[str, ConfigDict]:
    return side.groups() if isinstance(side, RunConfig) else side.groups


def _differences(group: str, before: ConfigDict, after: ConfigDict) -> Iterator[Difference]:
    old, new = dict(_fields(before)), dict(_fields(after))
    for name in {**old, **new}:
        owner = (old.get(name) or new[name])[1]
        left, right = old.get(name, (ABSENT, owner))[0], new.get(name, (ABSENT, owner))[0]
        if left != right:
            yield Difference(f"{group}.{name}", left, right, effect_of(owner, name).kind)


def _fields(config: ConfigDict) -> Iterator[tuple[str, tuple[Any, type]]]:
    """Yield the name of every field, its plain value, and the class that defines the field. The fields of a model are
    yielded without nesting, as they are typed on the command line."""
    if not isinstance(config, ModelConfig):
        yield from ((name, (value, type(config))) for name, value in config.to_dict().items())
        return
    yield "model_class", (config.class_path(), ModelConfig)
    if config.model_config is not None:
        yield from _fields(config.model_config)
