"""The fields of all options by what they take, for messages and for quoting."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

from xlstm_hydra.codec import hints
from xlstm_hydra.configs import ParallelConfig, RunConfig, SubModelConfig

HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""Keys of Hydra's that take any text."""


def text_keys() -> set[str]:
    """Return the keys of all fields that take any text."""
    return {*HYDRA_TEXTS, *_keys(lambda kind: kind in (str, str | None))}


def list_keys() -> set[str]:
    """Return the keys of all fields that take a list."""
    return _keys(lambda kind: any(typing.get_origin(one) in (list, tuple) for one in (kind, *typing.get_args(kind))))


def _groups() -> dict[str, Any]:
    """Return the class of every group. The base of our models is that of a node, with the fields of a model."""
    return typing.get_type_hints(RunConfig) | {"model": SubModelConfig, "parallel": ParallelConfig}


def _keys(is_wanted: Callable[[Any], bool]) -> set[str]:
    from ._register import SCHEMAS  # most commands need none of them

    keys = set()
    for group, hint in _groups().items():
        bases = typing.get_args(hint) or (hint,)
        for schema in (schema for schema in SCHEMAS.values() if issubclass(schema, bases)):
            keys |= {f"{group}.{name}" for name, kind in hints(schema).items() if is_wanted(kind)}
    return keys
