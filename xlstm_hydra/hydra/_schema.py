"""Structured configs whose integers may be given as integral floats: `trainer.max_steps=1e3` is 1000."""

from __future__ import annotations

import typing
from typing import Any

from omegaconf import DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf.base import Container

from xlstm_hydra.configs._scalars import MISSING, Flags, read_scalar

_FLAGS = Flags()


class IntegralNode(IntegerNode):
    """An integer of a config. OmegaConf's own accepts no float at all."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        number = read_scalar(int, value, _FLAGS)
        return super()._validate_and_convert_impl(value if number is MISSING else number)

    def __deepcopy__(self, memo: dict[int, Any]) -> IntegralNode:
        copied = IntegralNode()
        self._deepcopy_impl(copied, memo)
        return copied


def structured(schema: type) -> DictConfig:
    """The node of a dataclass as `OmegaConf.structured` makes it, but for its integers."""
    node = OmegaConf.structured(schema)
    _accept_integral(node)
    return node


def _accept_integral(node: Container) -> None:
    content = node.__dict__["_content"]
    if not isinstance(content, dict):
        return
    for child in content.values():
        if type(child) is IntegerNode:
            child.__class__ = IntegralNode
        elif isinstance(child, DictConfig):
            _accept_integral(child)
        elif isinstance(child, ListConfig) and child._metadata.element_type is int:
            # OmegaConf makes the node of every new element from its type, so that `load` has to check these.
            child._metadata.element_type, child._metadata.ref_type = Any, typing.List[Any]  # noqa: UP006
