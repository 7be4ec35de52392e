"""The values of a config, one by one, and whether they can be merged into another."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from xlstm_hydra.configs import RunConfig

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
    for path, value in leaves(other):
        if empties(cfg, path, value):
            return ValidationError(f"{path[0]} cannot be null")
    try:
        copy.deepcopy(cfg).merge_with(copy.deepcopy(other))
    except (OmegaConfBaseException, *REFUSED) as error:
        return error
    return None


def empties(cfg: Any, path: tuple[str, ...], value: Any) -> bool:
    """True for a null in the place of a whole group, which OmegaConf accepts and a run does not."""
    if value is not None or len(path) != 1 or path[0] not in (*RunConfig.__dataclass_fields__, "hydra"):
        return False
    is_optional = type(None) in typing.get_args(typing.get_type_hints(RunConfig).get(path[0]))
    return not is_optional and isinstance(cfg.get(path[0]), DictConfig)
