"""The values of a config, one by one, and whether they can be merged into another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ._refusals import REFUSED


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a config that are not keys and values themselves, unresolved."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not plain:
        if path:
            yield path, plain
        return
    for key, value in plain.items():
        yield from leaves(value, (*path, str(key)))


def nested(path: tuple[str, ...], value: Any) -> DictConfig:
    """A config of one value."""
    for key in reversed(path):
        value = {key: value}
    return cast(DictConfig, OmegaConf.create(value))


def refusal(cfg: Any, other: Any) -> Exception | None:
    """What OmegaConf raises when a config is merged into another."""
    try:
        copy.deepcopy(cfg).merge_with(copy.deepcopy(other))
    except (OmegaConfBaseException, *REFUSED) as error:
        return error
    return None
